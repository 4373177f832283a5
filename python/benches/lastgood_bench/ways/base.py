"""What every way of saving has."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from lastgood_bench.live import State
from lastgood_bench.tensors import Flat, Layout, allocate


class Way:
    """One manner of saving and loading. Its documentation says which settings it has, and whose advice that is.

    A save of number n begins with `save`; what trains calls `guard` before it changes the state, and `finish` waits
    until everything that was begun is as durable as the way makes it.
    """

    name: ClassVar[str]
    #: The packages whose versions are told.
    packages: ClassVar[tuple[str, ...]] = ()
    #: What is imported when it is made, so that no save or load pays for it.
    modules: ClassVar[tuple[str, ...]] = ()
    #: What is saved survives the loss of power: every file and folder is synced when `finish` returns. False: it is
    #: measured as it is and with a sync of the file system behind it.
    syncs: ClassVar[bool] = False
    #: `save` returns before it is done.
    behind: ClassVar[bool] = False
    #: It writes only what changed since the save before, or its difference.
    differences: ClassVar[bool] = False
    #: `load_into` fills memory that is there, without a copy of the state in between.
    in_place: ClassVar[bool] = False
    #: It only loads: what `saved_by` saves.
    saved_by: ClassVar[str | None] = None
    #: It reads parts: `pick`; and a range of rows: `rows`.
    picks: ClassVar[bool] = False
    slices: ClassVar[bool] = False
    ours: ClassVar[bool] = False
    #: Whether W1 and W3 measure it; what they say of a variant without it is said by another way.
    in_w1: ClassVar[bool] = True
    in_w3: ClassVar[bool] = True
    in_w4: ClassVar[bool] = True

    def __init__(self, folder: Path, state: State | None) -> None:
        self.folder, self.state = folder, state
        for module in self.modules:
            importlib.import_module(module)
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def absent(cls) -> str | None:
        """Why it cannot be measured here, or None."""
        for package in cls.packages:
            try:
                metadata.version(package)
            except metadata.PackageNotFoundError:
                return f"the package {package} is not installed"
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The version of each of its packages."""
        found = {}
        for package in cls.packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[package] = metadata.version(package)
        return found

    def flat(self) -> Flat:
        """The state that is saved."""
        assert self.state is not None
        return self.state.flat()

    def place(self, number: int) -> Path:
        """Where save ``number`` is, or lies in."""
        return self.folder / f"{number:06}"

    def open(self) -> None:
        """Does what a job does once, when it starts, and not for each save."""

    def save(self, number: int) -> None:
        """Begins to save the state."""
        raise NotImplementedError

    def guard(self) -> None:
        """Waits until the state may be changed."""

    def finish(self) -> None:
        """Waits until what was begun is done."""

    def load(self, number: int, layout: Layout) -> Flat:
        """The state of a save, in memory of its own."""
        out = allocate(layout)
        self.load_into(number, out)
        return out

    def load_into(self, number: int, out: Flat) -> None:
        """Writes the state of a save into ``out``."""
        import torch

        found = self.load(number, {})
        with torch.no_grad():
            for name, tensor in out.items():
                tensor.copy_(found[name])

    def pick(self, number: int, names: list[str], layout: Layout) -> Flat:
        """Only these tensors of a save."""
        raise NotImplementedError

    def rows(self, number: int, name: str, begin: int, end: int, layout: Layout) -> Flat:
        """Rows of one tensor of a save."""
        raise NotImplementedError

    def forget(self, number: int) -> None:
        """Removes a save that is not needed any more, if that can be done by removing its files."""
        where = self.place(number)
        if where.is_dir():
            shutil.rmtree(where)
        else:
            where.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends what it has running."""
        self.finish()
