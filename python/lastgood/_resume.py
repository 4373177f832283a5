"""Which checkpoint folder a job goes on from: the run's ledger decides, and the disk is made to agree with it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lastgood import _folders, _journal, _lastgood, _open, _preflight, _run, _steps, _world
from lastgood._lastgood import Corrupt, LastgoodError, NotFound
from lastgood._peers import Peers
from lastgood._policy import Never
from lastgood._run import Checkpoint, Run, SaveWarning
from lastgood._state import World

#: The runs that this process has open, so that asking for the last good one and saving are one attempt.
_opened: dict[tuple[str, str], Run] = {}
#: The newest step that this process saved in each.
_newest: dict[int, int] = {}
#: What the program said last of the preflight of each.
_given: dict[tuple[str, str], tuple[str | None, Mapping[str, str] | None]] = {}


def place_of(store: str | os.PathLike[str] | None, beside: Path) -> str:
    """The store: what is given, else ``LASTGOOD_STORE``, else a folder in ``beside`` that the trainers' own look-ups,
    rotations and uploads leave alone."""
    return os.fspath(
        store if store is not None else os.environ.get("LASTGOOD_STORE", beside / "_lastgood")
    )


def open_run(
    place: str,
    run: str | None,
    *,
    alone: bool = False,
    before: int | None = None,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
) -> Run:
    """The run, opened once in this process. ``alone``: only this rank saves. ``before``: a step that is to be saved;
    if this attempt has one as new already, a new attempt begins, and so it does if the ``preflight`` is another one."""
    name = run if run is not None else os.environ.get("LASTGOOD_RUN", "default")
    key = (place, name)
    known = _opened.get(key)
    newest, was = -1, _given.get(key, (None, None))
    given = was if preflight is None and accept is None else (preflight, accept)
    _given[key] = given
    if known is not None and not known._closed:
        newest = _newest.get(id(known), -1)
        is_new = newest < 0 or (before is not None and newest < before)
        if known._replays or (is_new and given == was):
            return known
        known.close()
    opened = (
        _open.open(
            place, {}, run=name, policy=Never(), rng=False, preflight=given[0], accept=given[1]
        )
        if not alone
        else _alone(place, name, *given)
    )
    if newest >= 0:
        with contextlib.suppress(NotFound, Corrupt):
            # Most of what is saved next is what was saved last.
            opened._native.build_on(opened._native.find("latest"))
    _opened[key] = opened
    _newest[id(opened)] = -1
    return opened


def _alone(place: str, name: str, preflight: str | None, accept: Mapping[str, str] | None) -> Run:
    # Under a supervisor a job of one rank is its attempt; one of several ranks is not, if only one of them saves.
    incarnation = _world.find_incarnation(World(), name) if _world.find_world().size == 1 else None
    native = _lastgood.Run(
        place,
        _world.store_options(),
        name,
        0,
        1,
        incarnation,
        {},
        replay=os.environ.get("LASTGOOD_REPLAY"),
        resume=_open.resume_of(None),
        preflight=_preflight.mode_of(preflight),
        accept=_preflight.acceptance_of(accept),
        **_journal.of_saves(place),
    )
    replays = _steps.plan() is not None
    never = Never()
    opened = Run(native, {}, World(), never, rng=False, overlap=True, journal=True, replays=replays)
    _run._open_runs.add(opened)
    return opened


def saved(run: Run, step: int) -> None:
    """Notes that this attempt has saved ``step``."""
    _newest[id(run)] = step


def tell(text: str) -> None:
    """Says what a person should know."""
    warnings.warn(f"lastgood: {text}", RuntimeWarning, stacklevel=4)


def tell_failure(error: Exception, what: str, strict: bool) -> None:
    """A failed save warns, and training goes on, unless it is asked to be strict."""
    if strict:
        raise error
    warnings.warn(
        f"lastgood: {what} is not saved, and training goes on: {type(error).__name__}: {error}",
        SaveWarning,
        stacklevel=4,
    )


@dataclass
class Resume:
    """How to find the folder to go on from. ``folders``: those on the disk, by step. ``doubt``: why an unknown folder
    is not proven whole, given its step and the files that the last stored one had; None if it is."""

    run: Run
    parent: Path
    owner: str
    folders: Callable[[], dict[int, Path]]
    doubt: Callable[[int, Path, set[str]], str | None]
    adopt: bool = True
    #: Where what is set aside goes; None for ``parent``.
    beside: Path | None = None
    #: False if the folder is only read: then what differs from the process that saved is told, and not refused.
    goes_on: bool = True
    notices: list[str] = field(default_factory=list)
    #: What was found of folders that are newer than a stored one, by its checkpoint.
    looked: dict[str, _Newer] = field(default_factory=dict)

    def find(self) -> str | None:
        """The folder, with every byte that was saved; None for a fresh run. Every rank asks, and gets the same.

        Raises:
            Incompatible: if a rank computes otherwise than the one that saved; nothing was changed.
        """
        peers = Peers(World(self.run.rank, self.run.world_size))
        if self.run._replays:
            return self._find_replayed(peers)
        if peers.world.size > 1:
            self._ask_all(peers)
        chosen = peers.in_turn("last-good", lambda: self._choose(peers.world))
        for notice in self.notices:
            tell(notice)
        if chosen is None:
            _journal.start_generators(self.run._native)
            return None
        folder, step = Path(chosen["name"]), chosen["adopt"]
        if step is not None:
            self._adopt(self.parent / folder, step, peers)
        return str(self.parent / folder)

    def _ask_all(self, peers: Peers) -> None:
        """Lets every rank compare itself before one of them changes anything. Several ranks go back to no other
        checkpoint in this start."""
        told = peers.in_turn("candidate", lambda: self._candidate(peers.world))
        if told is None:
            return
        checkpoint, *needs = told

        def ask() -> None:
            self._ask(self.run._native.find(f"id:{checkpoint}"), (needs[0], needs[1]))

        peers.agree("preflight", ask, _preflight.WAIT)

    def _candidate(self, world: World) -> list[Any] | None:
        """The id of the checkpoint that is gone on from, and what it needs; None for a folder that is on the disk
        alone, of which no environment is known."""
        if world.rank != 0:
            return None
        self.parent.mkdir(parents=True, exist_ok=True)
        damaged: set[int] = set()
        for stored in _folders.stored(self.run, self.owner, damaged):
            if self._newer(stored, world, damaged).folder is not None:
                return None
            return [stored.checkpoint.id, *_needs(stored)]
        return None

    def _ask(self, checkpoint: Any, needs: tuple[int, int]) -> None:
        if self.goes_on:
            self.notices += _preflight.of_run(self.run._native, checkpoint, needs)
        else:
            self.notices += _preflight.of_who_reads(self.run._native, checkpoint)

    def _find_replayed(self, peers: Peers) -> str | None:
        """The folder that a replay begins with, written aside."""
        checkpoint = self.run._native.candidate()
        if checkpoint is None:
            _journal.start_generators(self.run._native)
            return None
        stored = _folders.stored_in(self.run, self.owner, checkpoint)
        if self.run._native.only_looks():
            _steps.look(self.run, checkpoint, _needs(stored))
        folder = _steps.aside() / stored.name

        def write() -> None:
            if not folder.exists():
                _folders.write(self.run, stored, folder, _steps.aside())

        peers.in_turn("replayed", write)
        self.run._native.build_on(checkpoint)
        return str(folder)

    def _adopt(self, folder: Path, step: int, peers: Peers) -> None:
        # What is recorded leads from the checkpoint to this folder, which is gone on from whether it is saved or not.
        self.run._native.go_live()
        try:
            handle = _folders.ingest(self.run, folder, step, self.owner, peers)
            handle.durable.result()
            saved(self.run, step)
        except (LastgoodError, OSError) as error:
            tell_failure(error, f"{folder.name}, from which training goes on,", strict=False)

    def _choose(self, world: World) -> dict[str, Any] | None:
        self.parent.mkdir(parents=True, exist_ok=True)
        damaged: set[int] = set()
        for stored in _folders.stored(self.run, self.owner, damaged):
            newer = self._newer(stored, world, damaged) if world.rank == 0 else _Newer()
            if newer.folder is None and world.size == 1:
                self._ask(stored.checkpoint, _needs(stored))
            for folder, doubt in newer.doubted:
                self._set_aside(folder, doubt)
            if newer.folder is not None:
                return self._adopted(newer.step, newer.folder)
            try:
                return self._materialize(stored)
            except Corrupt as error:
                self.notices.append(f"the checkpoint of step {stored.step} is damaged: {error}")
                damaged.add(stored.step)
                _folders.reject(self.run, stored.checkpoint.id, error)
        return self._first(world) if world.rank == 0 else None

    def _newer(self, stored: _folders.Stored, world: World, damaged: set[int]) -> _Newer:
        """A folder newer than what is stored, if it is proven whole; the others are to be set aside, since a step that
        is done again would be mixed with what they hold. That the stored copy is ``damaged`` says nothing of one."""
        known = self.looked.get(stored.checkpoint.id)
        if known is None:
            known = self.looked[stored.checkpoint.id] = self._look(stored, world, damaged)
        return known

    def _look(self, stored: _folders.Stored, world: World, damaged: set[int]) -> _Newer:
        newer = _Newer()
        names = {file.path for file in stored.files}
        known = {found.step: found for found in self.run.history()}
        for step, folder in sorted(self.folders().items(), reverse=True):
            if step <= stored.step:
                break
            refused = _refused(known[step]) if step in known and step not in damaged else None
            doubt = refused or self._doubt(step, folder, names, world)
            doubt = doubt or _written_before_boot(folder)
            if doubt is None:
                newer.step, newer.folder = step, folder
                break
            newer.doubted.append((folder, doubt))
        return newer

    def _first(self, world: World) -> dict[str, Any] | None:
        """Without anything stored: the newest folder that is whole."""
        for step, folder in sorted(self.folders().items(), reverse=True):
            doubt = self._doubt(step, folder, set(), world)
            if doubt is None:
                return self._adopted(step, folder)
            self._set_aside(folder, doubt)
        return None

    def _doubt(self, step: int, folder: Path, names: set[str], world: World) -> str | None:
        if not self.adopt:
            return "it was never saved to the store, and adopt=False"
        if int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) != world.size:
            return (
                "it was never saved to the store, and this node does not see what the others wrote"
            )
        return self.doubt(step, folder, names)

    def _adopted(self, step: int, folder: Path) -> dict[str, Any]:
        self.notices.append(
            f"{folder.name} is not whole in the store, and is whole here: it is saved now"
        )
        return {"name": folder.name, "adopt": step}

    def _set_aside(self, folder: Path, reason: str) -> None:
        aside = _folders.set_aside(folder, reason, self.beside or self.parent)
        self.notices.append(f"{folder.name} is not resumed from: {reason}; it is kept as {aside}")

    def _materialize(self, stored: _folders.Stored) -> dict[str, Any]:
        folder = self.parent / stored.name
        differs = _folders.difference(stored, folder)
        try:
            self.run._native.verify(stored.checkpoint, None)
        except Corrupt as error:
            if differs is not None or self.run.world_size > 1:
                raise
            # The folder has every byte that the list of files tells of, and the list is verified.
            self.run.mark(f"id:{stored.checkpoint.id}", "bad", str(error))
            self.notices.append(
                f"the stored copy of {folder.name} is damaged, the folder is not: {error}"
            )
            return {"name": folder.name, "adopt": stored.step}
        if differs is not None:
            if folder.exists():
                self._set_aside(folder, differs)
            _folders.write(self.run, stored, folder, self.beside or self.parent)
            self.notices.append(f"{folder.name} is written back from the store")
        self.run._native.build_on(stored.checkpoint)
        return {"name": folder.name, "adopt": None}


@dataclass
class _Newer:
    """The folder that is newer than what is stored and whole, with its step, and the newer ones that are not."""

    step: int = -1
    folder: Path | None = None
    doubted: list[tuple[Path, str]] = field(default_factory=list)


def _needs(stored: _folders.Stored) -> tuple[int, int]:
    """The bytes that are read, and those of memory: one file after the other is."""
    sizes = [file.bytes for file in stored.files]
    return sum(sizes), max(sizes, default=0)


def _refused(known: Checkpoint) -> str:
    if known.standing == "bad":
        return f"its checkpoint was marked bad: {known.reason}"
    return "its checkpoint is in the store, and an older one is marked good"


def _written_before_boot(folder: Path) -> str | None:
    """A kill loses no byte that was written, but a loss of power does: what was not synced and is older than the
    system's start is not proven by its looks."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, StopIteration, ValueError):
        return "it was never saved to the store, and this system does not say when it was started"
    newest = max((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=0.0)
    if newest <= boot:
        return "it was never saved to the store, and the system was started since: it may have lost bytes"
    return None
