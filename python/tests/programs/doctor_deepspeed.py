"""Saves with DeepSpeed from two gloo ranks, for each way that it lays files out: doctor_deepspeed.py FOLDER

Needs `deepspeed` and `ninja`, not a GPU: DeepSpeed compiles a small extension when it starts. What this made is
python/tests/fixtures/doctor_deepspeed.tar.xz, by deepspeed 0.19.8 and torch 2.15.0; `--pack FILE` makes that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

STEPS = (1, 2, 3)
# Far enough apart that an optimizer which counts one more is not taken for one of the other save.
SAVED = (1, 3)
# What each is called, the stage of ZeRO, and the numbers that it computes with.
PLAIN = [
    ("zero0", 0, None),
    ("bf16", 0, "bf16"),
    ("zero1", 1, None),
    ("zero2", 2, "bf16"),
    ("zero3", 3, None),
]


def config(stage: int, numbers: str | None, batch: dict[str, int]) -> dict[str, Any]:
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    chosen = {numbers: {"enabled": True}} if numbers else {}
    return {**batch, "optimizer": optimizer, "zero_optimization": {"stage": stage}, **chosen}


def plain(root: Path) -> None:
    """A model of two layers, with its data on two ranks."""
    import deepspeed
    import torch

    for name, stage, numbers in PLAIN:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            config=config(stage, numbers, {"train_micro_batch_size_per_gpu": 2}),
        )
        for step in STEPS:
            engine.backward(engine(torch.randn(2, 2, dtype=next(model.parameters()).dtype)).sum())
            engine.step()
            if step in SAVED:
                engine.save_checkpoint(str(root / name))


def experts(root: Path) -> None:
    """Four experts on two ranks."""
    import deepspeed
    import torch
    from deepspeed.moe.layer import MoE
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as split

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2, 2)
            self.experts = MoE(2, torch.nn.Linear(2, 2), num_experts=4, ep_size=2, k=1)

        def forward(self, x: Any) -> Any:
            return self.experts(self.first(x))[0]

    torch.manual_seed(0)
    model = Model()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=split({"params": list(model.parameters()), "name": "all"}),
        config=config(1, None, {"train_micro_batch_size_per_gpu": 4}),
    )
    for step in STEPS:
        engine.backward(engine(torch.randn(4, 2)).sum())
        engine.step()
        if step in SAVED:
            engine.save_checkpoint(str(root / "experts"))


def pipeline(root: Path) -> None:
    """Four layers on two stages."""
    import deepspeed
    import torch
    from deepspeed.pipe import PipelineModule

    for name, stage in (("pipeline0", 0), ("pipeline1", 1)):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 2) for _ in range(4)]
        model = PipelineModule(
            layers=layers, num_stages=2, loss_fn=torch.nn.MSELoss(), partition_method="uniform"
        )
        batch = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2}
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=list(model.parameters()),
            config=config(stage, None, {**batch, "gradient_accumulation_steps": 2}),
        )
        data = iter([(torch.randn(2, 2), torch.randn(2, 2)) for _ in range(100)])
        for step in STEPS:
            engine.train_batch(data)
            if step in SAVED:
                engine.save_checkpoint(str(root / name))


def rank(rank: int, root: Path) -> None:
    # Ranks that are not told of each other on one machine use no shared memory of DeepSpeed's own.
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_SIZE": 1}
    os.environ.update({name: str(value) for name, value in world.items()})
    import deepspeed
    import torch

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    plain(root)
    experts(root)
    pipeline(root)
    torch.distributed.destroy_process_group()


def universal(root: Path) -> None:
    """Beside the checkpoint that it is made of, as DeepSpeed's tutorial does it."""
    step = f"global_step{SAVED[-1]}"
    subprocess.run(
        [
            sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
            "--input_folder", step, "--output_folder", f"{step}_universal",
            "--num_extract_workers", "1", "--num_merge_workers", "1",
        ],
        check=True, cwd=root / "zero1",
    )  # fmt: skip


def pack(root: Path, into: Path) -> None:
    """One file of them all, with nothing in it of the machine or the time."""

    def bare(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name.endswith(".py"):
            return None
        member.mtime, member.uid, member.gid, member.uname, member.gname = (
            1_700_000_000,
            0,
            0,
            "",
            "",
        )
        return member

    with tarfile.open(into, "w:xz") as packed:
        for path in sorted(root.iterdir()):
            packed.add(path, path.name, filter=bare)


if __name__ == "__main__":
    os.environ.update(DS_ACCELERATOR="cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT="29541")
    import torch.multiprocessing as mp

    root = Path(sys.argv[1])
    root.mkdir(parents=True)
    mp.spawn(rank, args=(root,), nprocs=2)
    universal(root)
    if sys.argv[2:3] == ["--pack"]:
        pack(root, Path(sys.argv[3]))
