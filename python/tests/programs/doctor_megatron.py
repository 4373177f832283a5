"""Saves with Megatron from two gloo ranks: doctor_megatron.py FOLDER

Nothing of it needs a GPU, but it asks for one in three places that do not matter here: they are answered.
`megatron-core` alone writes `core`. `megatron.training`, which is on no package index, writes the layout of each
`--ckpt-format` and the tracker, if a checkout of Megatron-LM is in PYTHONPATH. What both made is
python/tests/fixtures/doctor_megatron.tar.xz, by megatron-core 0.16.1, Megatron-LM d98e8a64dd (0.20) and torch
2.15.0: run it without and with the checkout, then with `--pack FILE` as well.
"""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from doctor_deepspeed import pack

ITERATIONS = (100, 200)
TRACKER = "latest_checkpointed_iteration.txt"


def arguments() -> Namespace:
    """Of the kinds that the arguments of a training are of."""
    import torch
    from megatron.core.enums import ModelType
    from megatron.core.transformer.enums import AttnBackend

    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    more = {"expert_model_parallel_size": 1, "world_size": 2, "use_distributed_optimizer": True}
    kinds = {"params_dtype": torch.bfloat16, "model_type": ModelType.encoder_or_decoder}
    chosen = {"attention_backend": AttnBackend.auto, "exit_signal": signal.SIGTERM}
    return Namespace(**sizes, **more, **kinds, **chosen, spec=SimpleNamespace(), no_save_optim=None)


def common(iteration: int) -> dict[str, Any]:
    schedule = {"max_lr": 1e-3, "num_steps": iteration}
    version = {"checkpoint_version": 3.0, "iteration": iteration}
    return {"args": arguments(), **version, "opt_param_scheduler": schedule}


def random_state() -> list[dict[str, Any]]:
    import torch

    return [{"torch_rng_state": torch.get_rng_state()[:16]}]


def distributed(rank: int, folder: Path, iteration: int) -> None:
    """`--ckpt-format torch_dist`: weights cut in two, an object for each rank, and what all have."""
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor

    weight = torch.full((2, 4), float(iteration + rank))
    bias = torch.arange(4.0) + iteration
    # Which Transformer Engine keeps of a layer.
    extra = ShardedObject("layer._extra_state", io.BytesIO(b"state"), (1,), (0,), replica_id=rank)
    model = {
        "weight": ShardedTensor.from_rank_offsets("weight", weight, (0, rank, 2)),
        "bias": ShardedTensor.from_rank_offsets("bias", bias, replica_id=rank),
        "layer._extra_state": extra,
    }
    random = ShardedObject("rng_state", random_state(), (1, 2), (0, rank))
    dist_checkpointing.save({**common(iteration), "model": model, "rng_state": random}, str(folder))


def core(rank: int) -> None:
    """The layout that 0.16 had, and the tracker that `megatron.training` writes beside it."""
    import torch

    for iteration in ITERATIONS:
        folder = Path("core") / f"iter_{iteration:07d}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.distributed.barrier()
        distributed(rank, folder, iteration)
        torch.distributed.barrier()
        (Path("core") / TRACKER).write_text(str(iteration))


class Optimizer:
    """As much of the distributed optimizer as a save asks for."""

    is_stub_optimizer = False
    config = None

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": {"param_groups": [{"lr": 1e-3, "step": 1}]}}

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"param_groups": [{"lr": 1e-3, "step": 1}]}

    def save_parameter_state(self, path: str) -> None:
        import torch

        torch.save({0: {torch.float32: {"param": torch.ones(4)}}}, path)


class Schedule:
    def state_dict(self) -> dict[str, Any]:
        return {"max_lr": 1e-3, "num_steps": 1}


def training(rank: int, kind: str) -> None:
    """What `megatron.training` writes with `--ckpt-format KIND --use-distributed-optimizer`."""
    import torch
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.training import checkpointing, global_vars

    class Model(torch.nn.Module):
        def __init__(self, iteration: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((2, 4), float(iteration + rank)))

        def state_dict_for_save_checkpoint(self) -> dict[str, Any]:
            return self.state_dict()

        def sharded_state_dict(self, **_: Any) -> dict[str, Any]:
            whole = ShardedTensor.from_rank_offsets("weight", self.weight.data, (0, rank, 2))
            return {"weight": whole}

    off = [
        "async_save", "async_strategy", "ckpt_assume_constant_structure", "ckpt_fully_parallel_save",
        "data_parallel_random_init", "dataloader_save", "dist_ckpt_optim_fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient", "enable_msc", "log_progress", "no_save_rng",
        "non_persistent_ckpt_type", "save_retain_interval", "save_tokenizer_assets",
        "use_layer_wise_distributed_optimizer",
    ]  # fmt: skip
    args = arguments()
    vars(args).update(
        dict.fromkeys(off), ckpt_format=kind, use_dist_ckpt=kind != "torch", save=kind
    )
    vars(args).update(ckpt_load_validate_sharding_integrity=True, verify_integrity=True)
    vars(args).update(dist_ckpt_workers=1, ckpt_fully_parallel_save_process_group="dp", rank=rank)
    global_vars._GLOBAL_ARGS = args
    for iteration in ITERATIONS:
        checkpointing.save_checkpoint(iteration, [Model(iteration)], Optimizer(), Schedule(), 0)


def rank(rank: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    import typing

    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()[:16]
    # Which Python has since 3.12.
    vars(typing).setdefault("override", lambda method: method)
    import megatron.core

    if importlib.util.find_spec("megatron.training"):
        megatron.core.parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
        for kind in ("torch", "torch_dist", "torch_dcp"):
            training(rank, kind)
    else:
        core(rank)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29542")
    into = Path(sys.argv[3]).absolute() if sys.argv[2:3] == ["--pack"] else None
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    # DCP keeps the path that it was given: one that says nothing of this machine.
    os.chdir(root)
    import torch.multiprocessing as mp

    mp.spawn(rank, nprocs=2)
    if into:
        pack(Path(), into)
