"""Several ranks of a job: forks that form a process group, each with its part of every tensor."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lastgood_bench.tensors import Flat

Part = Callable[[int], Any]


def run(size: int, folder: Path, work: Part) -> list[Any]:
    """Calls ``work`` with each rank's number in a process of its own, and gives what they return, as JSON has it.

    This process must not have computed by several threads of torch: forks of one wait for them for ever.

    Raises:
        RuntimeError: if a rank failed; the others are ended then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = {}
    for rank in range(size):
        process = os.fork()
        if process == 0:
            _rank(rank, size, folder, work)
        processes[process] = rank
    failed: list[int] = []
    while processes:
        process, status = os.wait()
        rank = processes.pop(process, -1)
        if rank >= 0 and status != 0:
            failed.append(rank)
            for other in processes:
                os.kill(other, signal.SIGKILL)
    if failed:
        raise RuntimeError(f"rank {failed[0]} of {size} failed; its message is above")
    return [json.loads((folder / f"rank{rank}").read_text()) for rank in range(size)]


def _rank(rank: int, size: int, folder: Path, work: Part) -> None:
    code = 1
    try:
        import torch.distributed as dist

        store = dist.FileStore(str(folder / "group"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        told = work(rank)
        (folder / f"rank{rank}").write_text(json.dumps(told))
        # Nobody may take the group down while another one still talks to it.
        dist.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def shard(flat: Flat, layout: str) -> dict[str, Any]:
    """Each tensor as a DTensor by ``rows`` or by ``columns``; vectors are always by rows, a scalar is on every rank."""
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    out = {}
    for name, tensor in flat.items():
        place: Any = Shard(1 if layout == "columns" and tensor.dim() > 1 else 0)
        if tensor.dim() == 0:
            place = Replicate()
        out[name] = distribute_tensor(tensor.detach().clone(), mesh, [place], src_data_rank=None)
    return out


def clear(sharded: dict[str, Any]) -> None:
    """Zeros in every part."""
    with torch.no_grad():
        for tensor in sharded.values():
            tensor.to_local().zero_()


def local(sharded: dict[str, Any]) -> Flat:
    """This rank's parts."""
    return {name: tensor.to_local() for name, tensor in sharded.items()}
