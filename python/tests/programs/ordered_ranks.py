"""One rank of the job of `test_ordered.py`: the same sums and trainings over 4 logical ranks, on 1 to 4 processes.

Started as ``ordered_ranks.py RANK FOLDER``. For each number of processes, each of them writes ``PROCESSES.RANK.json``:
a digest of each result, by its name, or what went wrong.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import lastgood as lg
import torch
import torch.distributed as dist
from lastgood.torch import _ordered
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LOGICAL = 4
#: No number of processes divides it.
ELEMENTS = 10_007
STEPS = 10
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64]


def digest(*tensors: torch.Tensor) -> str:
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def contribution(rank: int, dtype: torch.dtype, shape: tuple[int, ...] = (ELEMENTS,)) -> Any:
    """Numbers of very different sizes, so that the order of their sum decides its bits."""
    random = torch.Generator().manual_seed(rank)
    values = torch.randn(shape, generator=random, dtype=torch.float64)
    scale = 10 ** (3 * torch.rand(shape, generator=random, dtype=torch.float64))
    return (values * scale).to(dtype)


def sums(group: Any = None) -> Iterator[tuple[str, str]]:
    mine = lg.torch.logical_ranks(LOGICAL, group)

    def reduced(parts: list[torch.Tensor], **how: Any) -> str:
        return digest(lg.torch.ordered_all_reduce(parts, logical=LOGICAL, group=group, **how))

    for dtype in DTYPES:
        parts = [contribution(rank, dtype) for rank in mine]
        yield f"sum {dtype}", reduced(parts)
        if dtype != torch.int64:
            yield f"mean {dtype}", reduced(parts, op="mean")
    halves = [contribution(rank, torch.bfloat16) for rank in mine]
    yield "accumulated", reduced(halves, accumulate=torch.float32)
    for shape in [(), (0,), (1,), (3,), (2, 3, 5)]:
        yield f"shape {shape}", reduced([contribution(r, torch.float32, shape) for r in mine])
    first = [contribution(rank, torch.float32) for rank in mine]
    lg.torch.ordered_all_reduce(first, logical=LOGICAL, group=group, out=first[0])
    yield "sum in the first", digest(first[0])
    square = [contribution(rank, torch.float32, (7, 5)).t() for rank in mine]
    yield "transposed", reduced(square)


def references() -> Iterator[tuple[str, str]]:
    """What the sums have to be: additions one after the other."""
    for dtype in DTYPES:
        parts = [contribution(rank, dtype) for rank in range(LOGICAL)]
        total = ((parts[0] + parts[1]) + parts[2]) + parts[3]
        yield f"sum {dtype}", digest(total)
        if dtype != torch.int64:
            yield f"mean {dtype}", digest(total / LOGICAL)
    halves = [contribution(rank, torch.bfloat16).float() for rank in range(LOGICAL)]
    exact = ((halves[0] + halves[1]) + halves[2]) + halves[3]
    yield "accumulated", digest(exact.to(torch.bfloat16))
    floats = [contribution(rank, torch.float32) for rank in range(LOGICAL)]
    yield "sum in the first", digest(((floats[0] + floats[1]) + floats[2]) + floats[3])


def plain() -> str:
    """What everybody does: the sum of this process's part, and an all-reduce."""
    parts = [contribution(rank, torch.float32) for rank in lg.torch.logical_ranks(LOGICAL)]
    total = sum(parts[1:], parts[0])
    if dist.is_initialized():
        dist.all_reduce(total)
    return digest(total)


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(9, 33), nn.GELU(), nn.LayerNorm(33), nn.Linear(33, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(8, 9, generator=random)
    labels = torch.randint(0, 3, (8,), generator=random)
    return nn.functional.cross_entropy(model(inputs), labels)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    moments = [values["momentum_buffer"] for values in optimizer.state.values()]
    return digest(*model.state_dict().values(), *moments)


def train(total: int) -> str:
    model, optimizer = build()
    parameters = list(model.parameters())
    logical = lg.torch.LogicalRanks(total)
    for step in range(STEPS):
        grads = []
        for rank in logical.mine:
            grads.append(torch.autograd.grad(loss_of(model, step, rank), parameters))
        lg.torch.ordered_all_reduce_grads(model, grads, logical=logical)
        optimizer.step()
    return state_of(model, optimizer)


def train_ddp() -> str:
    """The same by a hook of DDP, where each process is a logical rank."""
    model, optimizer = build()
    # Several buckets, which DDP fills anew after the first step.
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.001)
    ddp.register_comm_hook(None, lg.torch.ordered_hook(logical=dist.get_world_size()))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(ddp, step, dist.get_rank()).backward()
        optimizer.step()
    return state_of(model, optimizer)


def results(rank: int, processes: int) -> Iterator[tuple[str, str]]:
    yield from sums()
    _ordered.PIECE_BYTES, kept = 4096, _ordered.PIECE_BYTES
    for name, value in sums():
        yield f"{name} in pieces", value
    _ordered.PIECE_BYTES = kept
    yield "plain", plain()
    yield "training", train(LOGICAL)
    _ordered.BUCKET_BYTES, kept = 64, _ordered.BUCKET_BYTES
    yield "training in pieces", train(LOGICAL)
    _ordered.BUCKET_BYTES = kept
    yield "training with a logical rank a process", train(processes)
    if processes == 1:
        for name, value in references():
            yield f"reference of {name}", value
    else:
        yield "training by DDP", train_ddp()
    if processes == 4:
        other = dist.new_group([1, 3])
        if rank in (1, 3):
            for name, value in sums(other):
                yield f"group of 2: {name}", value


def main() -> None:
    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(120, exit=True)
    for processes in (1, 2, 3, 4):
        if rank >= processes:
            continue
        if processes > 1:
            where = f"file://{folder}/group{processes}"
            dist.init_process_group("gloo", init_method=where, rank=rank, world_size=processes)
        found: Any
        try:
            found = dict(results(rank, processes))
        except BaseException:
            found = traceback.format_exc()
        path = f"{folder}/{processes}.{rank}.json"
        with open(f"{path}.part", "w") as file:
            json.dump(found, file)
        os.rename(f"{path}.part", path)
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
