"""lastgood, as a user of its Python package has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import lastgood as lg

from lastgood_bench.live import State
from lastgood_bench.tensors import Flat, Layout, allocate, nested
from lastgood_bench.ways.base import Way


class Lastgood(Way):
    """`lg.open` with nothing but its defaults: parameters and moments are copied behind the call."""

    name = "lastgood"
    packages = ("lastgood",)
    modules = ("lastgood.torch._modules",)
    syncs, behind, differences, in_place, ours = True, True, True, True, True
    settings: ClassVar[dict[str, Any]] = {}
    block: ClassVar[bool] = False

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder, state)
        self._run: Any = None
        self._last: Any = None

    @property
    def run(self) -> Any:
        """The run, opened when it is first asked for."""
        if self._run is None:
            given = self.state.components if self.state is not None else {}
            never = lg.Policy(at=[2**62])
            self._run = lg.open(
                str(self.folder), given, policy=never, preflight="off", **self.settings
            )
        return self._run

    def open(self) -> None:
        _ = self.run

    def save(self, number: int) -> None:
        self._last = self.run.save(number, block=self.block)

    def guard(self) -> None:
        self.run.wait_captured()

    def finish(self) -> None:
        if self._last is not None:
            self._last.durable.result()

    def load(self, number: int, layout: Layout) -> Flat:
        self.run.restore(at=number)
        return self.flat()

    def load_into(self, number: int, out: Flat) -> None:
        self.run.restore(at=number)

    def forget(self, number: int) -> None:
        """Later saves may be made of its objects; the whole folder goes at the end."""

    def close(self) -> None:
        if self._run is not None:
            self._run.close()


class LastgoodStrict(Lastgood):
    """`overlap=False`: everything is copied in the call."""

    name = "lastgood strict"
    in_w3 = False
    settings: ClassVar[dict[str, Any]] = {"overlap": False}


class LastgoodBlock(Lastgood):
    """`save(block=True)`: the call returns when the checkpoint is committed."""

    name = "lastgood block"
    behind, in_w3 = False, False
    block = True


class LastgoodZstd(Lastgood):
    """`compression="zstd:1"`: compressed whatever the disk's speed."""

    name = "lastgood zstd:1"
    settings: ClassVar[dict[str, Any]] = {"compression": "zstd:1"}


class LastgoodDelta(Lastgood):
    """`compression="delta:64"`: predictions and differences from the save before, whole once in 64 saves."""

    name = "lastgood delta:64"
    settings: ClassVar[dict[str, Any]] = {"compression": "delta:64"}


class LastgoodParts(Way):
    """`lg.torch.save` and `lg.torch.load`: of `torch.distributed.checkpoint`, on a run of lastgood, verified."""

    name = "lastgood dcp"
    packages = ("lastgood",)
    modules = ("lastgood.torch._dcp_calls", "lastgood.torch._dcp_read")
    syncs, in_place, picks, slices, ours = True, True, True, True, True
    in_w1, in_w3 = False, False

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder, state)
        self._writer: Any = None

    def save(self, number: int) -> None:
        if self._writer is None:
            self._writer = lg.torch.Writer(str(self.folder))
        lg.torch.save(nested(self.flat()), self._writer, checkpoint_id=str(number), no_dist=True)

    def load_into(self, number: int, out: Flat) -> None:
        reader = lg.torch.Reader(str(self.folder), at=number, preflight="off")
        lg.torch.load(nested(out), reader, no_dist=True)

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        out = allocate({name: layout[name] for name in names})
        self.load_into(number, out)
        return out

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        from lastgood_bench.ways.sharded import row_range

        reader = lg.torch.Reader(str(self.folder), at=number, preflight="off")
        with row_range(layout[name], begin, end) as part:
            lg.torch.load(nested({name: part}), reader, no_dist=True)
            return {name: part.to_local()}

    def forget(self, number: int) -> None:
        """Later saves may be made of its objects."""


WAYS: list[type[Way]] = [
    Lastgood,
    LastgoodStrict,
    LastgoodBlock,
    LastgoodZstd,
    LastgoodDelta,
    LastgoodParts,
]
