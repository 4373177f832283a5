"""Saves with DCP from four ranks of a real process group: step 1, and step 2 with half of 3."""

from __future__ import annotations

import collections
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DTensor imports it in each rank otherwise, which costs seconds.
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

RANKS = 4


def state(step: int) -> dict[str, Any]:
    """A tensor cut by rows and full of the step, one cut by columns, one that all ranks have."""
    mesh = init_device_mesh("cpu", (RANKS,))
    rows: DTensor = distribute_tensor(torch.full((8, 4), float(step)), mesh, [Shard(0)])
    columns = distribute_tensor(torch.arange(32.0).reshape(4, 8), mesh, [Shard(1)])
    extra = {"plain": torch.arange(5.0), "step": step, "object": collections.deque([1])}
    return {"rows": rows, "columns": columns, **extra}


def rank(rank: int, root: Path, rendezvous: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    for step in (1, 2):
        dcp.save(state(step), checkpoint_id=root / f"step-{step}")
    dist.barrier()
    # Older than what follows, as it would be in a training.
    if rank == 0:
        for file in root.rglob("*"):
            before = time.time() - 600
            os.utime(file, (before, before))
    dist.barrier()
    again = state(3)
    if rank < 2:
        # Two ranks write their data of step 3 over that of step 2; the others die before.
        writer = dcp.FileSystemWriter(root / "step-2")
        planner = dcp.DefaultSavePlanner()
        planner.set_up_planner(again, is_coordinator=False)
        writer.set_up_storage_writer(False, rank=rank, use_collectives=False)
        old = dcp.FileSystemReader(root / "step-2").read_metadata()
        plan = planner.create_local_plan()
        # The plan that all ranks agreed on last time: who writes what all have.
        name = f"__{rank}_0.distcp"
        written = {k.fqn for k, v in old.storage_data.items() if v.relative_path == name}
        items = [item for item in plan.items if item.index.fqn in written]
        plan = writer.prepare_local_plan(plan.__class__(items, planner_data=plan.planner_data))
        plan = plan.__class__(
            plan.items, storage_data=old_prefix(rank), planner_data=plan.planner_data
        )
        planner.finish_plan(plan)
        writer.write_data(plan, planner).wait()
    dist.barrier()
    dist.destroy_process_group()


def old_prefix(rank: int) -> Any:
    """How the coordinator names the files of a rank."""
    from torch.distributed.checkpoint.filesystem import _StoragePrefix

    return _StoragePrefix(f"__{rank}_")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    rendezvous = f"file://{root}/rendezvous"
    # Forked ranks share the import of torch, which costs more than all else here.
    mp.start_processes(rank, args=(root, rendezvous), nprocs=RANKS, start_method="fork")
    (root / "rendezvous").unlink(missing_ok=True)
