"""PyTorch's own ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from lastgood_bench.live import State
from lastgood_bench.tensors import Flat, Layout, allocate, nested
from lastgood_bench.ways.base import Way


class TorchSave(Way):
    """`torch.save` of the state dicts. It syncs nothing. `load` is `torch.load` with its default `weights_only`."""

    name = "torch.save"
    packages = ("torch",)
    picks = True

    def save(self, number: int) -> None:
        torch.save(self.flat(), self.place(number))

    def load(self, number: int, layout: Layout) -> Flat:
        return torch.load(self.place(number), weights_only=True)

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        found = self.load(number, layout)
        return {name: found[name] for name in names}


class TorchMmap(TorchSave):
    """`torch.load(mmap=True)`, which PyTorch's guide to loading advises for large files; pages come when touched."""

    name = "torch.load mmap"
    saved_by = "torch.save"
    slices = True

    def load(self, number: int, layout: Layout) -> Flat:
        return torch.load(self.place(number), weights_only=True, mmap=True)

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        return {name: self.load(number, layout)[name][begin:end].clone()}


class Dcp(Way):
    """`dcp.save` without ranks. It syncs its files (`sync_files`, the default) and not their folder. A thread
    for each core writes, as the documentation of `FileSystemWriter` advises for hosts with few ranks."""

    name = "dcp"
    packages = ("torch",)
    syncs, in_place, picks, slices = True, True, True, True

    def _writer(self, number: int) -> FileSystemWriter:
        return FileSystemWriter(self.place(number), thread_count=2, single_file_per_rank=False)

    def save(self, number: int) -> None:
        dcp.save(nested(self.flat()), storage_writer=self._writer(number), no_dist=True)

    def load_into(self, number: int, out: Flat) -> None:
        dcp.load(nested(out), storage_reader=FileSystemReader(self.place(number)), no_dist=True)

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        out = allocate({name: layout[name] for name in names})
        self.load_into(number, out)
        return out

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        from lastgood_bench.ways.sharded import row_range

        reader = FileSystemReader(self.place(number))
        with row_range(layout[name], begin, end) as part:
            dcp.load(nested({name: part}), storage_reader=reader, no_dist=True)
            return {name: part.to_local()}


class DcpAsync(Dcp):
    """`dcp.async_save` with its defaults: it copies in the call, and a thread writes."""

    name = "dcp async"
    behind = True
    picks, slices, in_w3 = False, False, False
    process = AsyncCheckpointerType.THREAD

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder, state)
        self.pending: Any = None
        self.stager = self._stager()
        self._alone = False

    def _stager(self) -> Any:
        return None

    def open(self) -> None:
        if not dist.is_initialized():
            # Without ranks, but async_save wants a group whose backend works on CPUs.
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            self._alone = True

    def save(self, number: int) -> None:
        self.finish()
        self.open()
        self.pending = dcp.async_save(
            nested(self.flat()),
            storage_writer=self._writer(number),
            async_checkpointer_type=self.process,
            async_stager=self.stager,
        )

    def finish(self) -> None:
        if self.pending is not None:
            getattr(self.pending, "upload_completion", self.pending).result()

    def close(self) -> None:
        self.finish()
        if self.stager is not None:
            self.stager.close()
        if self._alone:
            dist.destroy_process_group()
            self._alone = False


class DcpCached(DcpAsync):
    """`dcp.async_save` with a `DefaultStager` that keeps its memory between saves. Pinned memory and another stream are
    of no use without a device."""

    name = "dcp async cached"

    def _stager(self) -> Any:
        return DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )


class DcpProcess(DcpAsync):
    """`dcp.async_save` in a process of its own, which leaves the interpreter's lock to training."""

    name = "dcp async process"
    process = AsyncCheckpointerType.PROCESS

    def _stager(self) -> Any:
        # The copies lie in memory that both processes have.
        return DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=True,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )


WAYS: list[type[Way]] = [TorchSave, TorchMmap, Dcp, DcpAsync, DcpCached, DcpProcess]
