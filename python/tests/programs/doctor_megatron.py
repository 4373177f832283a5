"""Saves with Megatron from two gloo ranks: doctor_megatron.py FOLDER

`torch_dist` is written by `megatron.core.dist_checkpointing`, which needs no GPU but asks for one in two places
that do not matter here: they are answered. `megatron.training`, which calls it and writes the tracker, is on no
package index; what it adds is written here as its `save_checkpoint` does (Megatron-LM, `checkpointing.py`): the
tracker, and the older layout with a folder for each rank. What this made is
python/tests/fixtures/doctor_megatron.tar.xz, by megatron-core 0.16.1 and torch 2.15.0; `--pack FILE` makes that.
"""

from __future__ import annotations

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


def legacy(rank: int, folder: Path, iteration: int) -> None:
    """`--ckpt-format torch` with `--use-distributed-optimizer`."""
    import torch

    mine = folder / f"mp_rank_{rank:02d}"
    mine.mkdir()
    shard = {0: {torch.float32: {"param": torch.full((4,), float(iteration + rank))}}}
    torch.save(shard, mine / "distrib_optim.pt")
    weights = {"weight": torch.full((2, 4), float(iteration + rank)), "bias": torch.arange(4.0)}
    saved = {**common(iteration), "model": weights, "rng_state": random_state()}
    optimizer = {"optimizer": {"param_groups": [{"lr": 1e-3, "step": iteration}]}}
    torch.save({**saved, "optimizer": optimizer}, mine / "model_optim_rng.pt")


def rank(rank: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    for name, save in (("torch_dist", distributed), ("torch", legacy)):
        for iteration in ITERATIONS:
            folder = Path(name) / f"iter_{iteration:07d}"
            folder.mkdir(parents=True, exist_ok=True)
            torch.distributed.barrier()
            save(rank, folder, iteration)
            torch.distributed.barrier()
            (Path(name) / TRACKER).write_text(str(iteration))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29542")
    into = Path(sys.argv[3]).absolute() if sys.argv[2:3] == ["--pack"] else None
    root = Path(sys.argv[1])
    root.mkdir(parents=True)
    # DCP keeps the path that it was given: one that says nothing of this machine.
    os.chdir(root)
    import torch.multiprocessing as mp

    mp.spawn(rank, nprocs=2)
    if into:
        pack(Path(), into)
