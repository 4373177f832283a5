"""Parts of tensors for `torch.distributed.checkpoint` in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def row_range(layout: tuple[list[int], str], begin: int, end: int) -> Iterator[Any]:
    """A DTensor of which this process has the rows from ``begin`` to ``end``: it is one of as many ranks as such ranges
    fit into the tensor, of a group that is only said to be there."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    shape, dtype = layout
    rows = end - begin
    if begin % rows or shape[0] % rows:
        raise ValueError(f"rows {begin} to {end} are no whole share of {shape[0]}")
    world = shape[0] // rows
    dist.init_process_group("fake", rank=begin // rows, world_size=world, store=FakeStore())
    try:
        mesh = dist.init_device_mesh("cpu", (world,))
        local = torch.empty([rows, *shape[1:]], dtype=getattr(torch, dtype))
        yield DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    finally:
        dist.destroy_process_group()
