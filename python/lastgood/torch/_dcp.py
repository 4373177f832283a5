"""`Writer`: what `torch.distributed.checkpoint.save` and `async_save` write through.

All ranks of a save are one save of the engine. The coordinator names the incarnation and the step in the global plan,
which DCP brings to every rank; then each rank writes its part, and whoever comes last commits. A failed part is an
error of its rank, and the checkpoint then does not exist.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import sys
import threading
import time
import uuid
import warnings
import weakref
from dataclasses import dataclass, replace
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from lastgood import _journal, _lastgood, _steps, _world
from lastgood._lastgood import Fenced, Invalid, LastgoodError, NotFound
from lastgood._run import SaveWarning
from lastgood._state import World
from lastgood.torch import _dcp_table

#: How long the parts of other ranks are waited for. They have written them when it matters: this only bounds what
#: happens if one dies between that and the commit.
COMMIT_WAIT = 3600.0


@dataclass(frozen=True)
class Ticket:
    """What the coordinator tells every rank through the plan."""

    save: str
    incarnation: str
    step: int
    rank: int
    size: int
    alone: bool = False


class _Process:
    """What this process has open, by store and run: one attempt serves all writers."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[tuple[str, str], tuple[Ticket, Any]] = {}
        self.incarnations: dict[tuple[str, str], str] = {}
        self.renewed: dict[tuple[str, str, str], str] = {}
        self.used: set[str] = set()
        #: Saves that this process has begun and not seen through.
        self.pending: dict[tuple[str, str], tuple[Ticket, Any]] = {}

    def run(
        self, place: tuple[str, str], ticket: Ticket, settings: dict[str, Any], records: bool
    ) -> Any:
        """The rank's run in the attempt that the ticket is for."""
        with self.lock:
            known = self.runs.get(place)
            if known is not None:
                was = known[0]
                same = (was.incarnation, was.rank, was.size)
                if same == (ticket.incarnation, ticket.rank, ticket.size):
                    return known[1]
                del self.runs[place]
                _let_go(*known)
            _steps.refuse(*place, "lg.torch.Writer")
            options = {"commit_wait": COMMIT_WAIT, **settings}
            native = _lastgood.Run(
                place[0],
                _world.store_options(),
                place[1],
                ticket.rank,
                ticket.size,
                ticket.incarnation,
                options,
                **(_journal.of_saves(place[0]) if records else {}),
            )
            self.runs[place] = (ticket, native)
            return native

    def drop(self, place: tuple[str, str]) -> None:
        with self.lock:
            known = self.runs.pop(place, None)
            if known is not None:
                _let_go(*known)


def _let_go(ticket: Ticket, native: Any) -> None:
    """Ends a run of which nothing more comes: alone nothing is under way; among several it would be waited for."""
    if ticket.size > 1:
        native.abandon()
        return
    with contextlib.suppress(LastgoodError):
        native.close()


_process = _Process()
if hasattr(os, "register_at_fork"):

    def _forked() -> None:
        """The runs of the parent are not this process's to write or to close, and another thread may hold the lock."""
        global _process
        _process = _Process()

    os.register_at_fork(after_in_child=_forked)


def step_of(checkpoint_id: Any) -> int:
    """The step that a checkpoint id names: itself, or the last number in its last part.

    Raises:
        Invalid: if there is none.
    """
    if (
        isinstance(checkpoint_id, int)
        and not isinstance(checkpoint_id, bool)
        and checkpoint_id >= 0
    ):
        return checkpoint_id
    text = os.fspath(checkpoint_id) if not isinstance(checkpoint_id, int) else ""
    numbers = re.findall(r"\d+", str(text).rstrip("/").rsplit("/", 1)[-1])
    if not numbers:
        raise Invalid(
            f"checkpoint_id {checkpoint_id!r} names no step; give a number, or a text that ends in one, as 'step-100'"
        )
    return int(numbers[-1])


def is_written(place: tuple[str, str]) -> bool:
    """True if this process has made a `Writer` of the run."""
    made = {(_world.resolved(store), name) for store, name in list(_process.incarnations)}
    return (_world.resolved(place[0]), place[1]) in made


class _Staged(dict[str, Any]):
    """A staged state dict, of which it can be told whether anybody still holds it."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class Writer(StorageWriter, AsyncStager):
    """Saves through `torch.distributed.checkpoint` into a run: atomic, hashed, deduplicated, without pickle.

    Tensors are stored under their qualified names with their global shape, offsets and sizes; everything else as JSON.
    ``checkpoint_id`` is a step: a number, or a text that ends in one. At most one asynchronous save is under way: the
    next one waits for it, and reuses its memory. A failed asynchronous save warns at the next one and is told on stderr
    at exit. Each save is recorded, with fingerprints of every tensor and the environment of each process; one of a
    process that saves in the background is not.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``. It is owned by the newest job that writes it.
        settings: as for `lg.open`: ``chunk_bytes``, ``arena_bytes_max``, ``compression``, ``commit_wait``.

    Raises:
        Invalid: if there is no store or no such setting, or a save has what cannot be stored without pickle: the FQN
            is named.
        Unavailable, Overloaded, Denied, Fenced: of a save, if this rank's part failed. DCP wraps it into a
            `CheckpointException`, which is no `Exception`; `lg.torch.save` does not.

    Example:
        >>> import lastgood as lg, tempfile, torch, warnings
        >>> import torch.distributed.checkpoint as dcp
        >>> warnings.simplefilter("ignore")
        >>> store = tempfile.mkdtemp()
        >>> writer = lg.torch.Writer(store)
        >>> _ = dcp.save({"w": torch.ones(3), "epoch": 2}, checkpoint_id="step-7", storage_writer=writer)
        >>> state = {"w": torch.zeros(3), "epoch": 0}
        >>> dcp.load(state, storage_reader=lg.torch.Reader(store))
        >>> state["w"], state["epoch"]
        (tensor([1., 1., 1.]), 2)
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        run: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._place = _world.place_of(store, run)
        if not _steps.is_asked(*self._place):
            _steps.refuse(*self._place, "lg.torch.Writer")
        _lastgood.check_settings(settings)
        self._settings = settings
        self._maker: int | None = os.getpid()
        with _process.lock:
            # One start of a job is one attempt, however many writers it makes.
            new = secrets.token_hex(16)
            self._incarnation = _process.incarnations.setdefault(self._place, new)
        self._world_incarnation: str | None = None
        self._id: Any = None
        self._stager: DefaultStager | None = None
        self._clear()

    def _clear(self) -> None:
        self._step: int | None = None
        self._staged: weakref.ref[_Staged] | None = None
        self._thread: threading.Thread | None = None
        self._behind = False
        self._failure: str | None = None
        self._save_id = uuid.uuid4().hex
        self._alone = False

    @property
    def _pending(self) -> tuple[Ticket, Any] | None:
        """The save of this run that is not seen through, by whichever writer of this process."""
        return _process.pending.get(self._place)

    @_pending.setter
    def _pending(self, pending: tuple[Ticket, Any] | None) -> None:
        if pending is None:
            _process.pending.pop(self._place, None)
        else:
            _process.pending[self._place] = pending

    def __getstate__(self) -> dict[str, Any]:
        # Pickled for a process that saves: whoever pickles it is the thread that waits for that process.
        self._thread = threading.current_thread()
        kept = ("_place", "_settings", "_incarnation", "_world_incarnation", "_id", "_step")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        step = self._step
        self._maker = None
        self._stager = None
        self._clear()
        self._step = step

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begins a save of the step that ``checkpoint_id`` names; without one, of the step after the newest.

        Raises:
            Invalid: if it names none.
        """
        self._thread = threading.current_thread()
        self._step = None if checkpoint_id is None else step_of(checkpoint_id)
        self._id = checkpoint_id
        self._save_id = uuid.uuid4().hex

    @property
    def checkpoint_id(self) -> Any:
        """What the save under way, or the last one, is called."""
        return self._id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True if it names a step."""
        try:
            step_of(checkpoint_id)
        except (Invalid, TypeError):
            return False
        return True

    def storage_meta(self) -> StorageMeta:
        """Which save it is, for planners."""
        return StorageMeta(checkpoint_id=self._id, save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learns whether the ranks plan together."""
        self._thread = threading.current_thread()
        self._alone = not kwargs.get("use_collectives", True) and _world.find_world().size > 1

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing of the local plan is lastgood's."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tells every rank the incarnation and the step."""
        if self._alone:
            world = _world.find_world()
            if self._world_incarnation is None:
                self._world_incarnation = _world.find_incarnation(world, " ".join(self._place))
            if self._step is None:
                raise Invalid(
                    "without collectives the ranks cannot agree on a step; give a checkpoint_id"
                )
            ticket = Ticket(
                uuid.uuid4().hex,
                self._world_incarnation or "",
                self._step,
                world.rank,
                world.size,
                True,
            )
            return [replace(plan, storage_data=ticket) for plan in plans]
        incarnation = self._current()
        step = self._step if self._step is not None else self._next_step()
        size, save = len(plans), uuid.uuid4().hex
        return [
            replace(plan, storage_data=Ticket(save, incarnation, step, rank, size))
            for rank, plan in enumerate(plans)
        ]

    def _current(self) -> str:
        """The incarnation. After a save that not every rank wrote it is a new one, so that all count anew; but
        never if somebody else owns the run by now."""
        key = (*self._place, self._incarnation)
        current = _process.renewed.get(key, self._incarnation)
        if self._pending is None:
            return current
        _, handle = self._pending
        self._pending = None
        try:
            if handle is not None:
                handle.wait_committed(1.0)
        except Fenced:
            return current
        except LastgoodError:
            pass
        current = secrets.token_hex(16)
        _process.renewed[key] = current
        return current

    def _next_step(self) -> int:
        try:
            rows = _lastgood.Reader(
                self._place[0], _world.store_options(), self._place[1]
            ).history()
        except NotFound:
            return 0
        return 1 + max((row["step"] for row in rows), default=-1)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's part, and returns when it is durable.

        Raises:
            Invalid: if something cannot be stored; and whatever the save fails with.
        """
        ticket = self._ticket(plan)
        self._pending = (ticket, None)
        try:
            # Another process that saves for this one is of the same rank and attempt, of which one has the journal.
            records = self._maker == os.getpid()
            native = _process.run(self._place, ticket, self._settings, records)
            capture = _lastgood.Capture()
            world = World(ticket.rank, ticket.size)
            _dcp_table.declare(capture, plan, planner, world, alone=ticket.alone)
            capture.metadata("lastgood.python", _lastgood.__version__)
            capture.metadata("dcp.checkpoint_id", str(self._id))
            capture.metadata("dcp.collectives", "no" if ticket.alone else "yes")
            if records:
                # Where the generators are it cannot say: the training may be further by now.
                native.step(ticket.step, {"checkpoint": str(self._id)}, {})
            handle = native.save(ticket.step, capture, False)
            self._pending = (ticket, handle)
            self._wait_written(handle, ticket)
        except BaseException as error:
            self._fail(ticket, error)
            raise
        future: Future[list[WriteResult]] = Future()
        future.set_result(
            [WriteResult(item.index, item.tensor_storage_size() or 0, None) for item in plan.items]
        )
        return future

    def _ticket(self, plan: SavePlan) -> Ticket:
        ticket = plan.storage_data
        if not isinstance(ticket, Ticket):
            raise Invalid("the plan is not of this writer; let one Writer do the whole save")
        if ticket.save in _process.used:
            # A planner that caches plans gives that of an earlier save: only the step is another one.
            if self._step is None:
                raise Invalid("a planner with cached plans tells no step; give a checkpoint_id")
            ticket = replace(ticket, step=self._step)
        _process.used.add(ticket.save)
        # The next save names its own.
        self._step = None
        return ticket

    def _wait_written(self, handle: Any, ticket: Ticket) -> None:
        while handle.status() not in ("written", "committed"):
            # Raises what the save failed with.
            if handle.wait_committed(0.02) is not None:
                break
        if ticket.size == 1:
            handle.wait_committed()
        if ticket.rank != 0 and not ticket.alone:
            # Whether it is committed is for the coordinator to say.
            self._pending = None

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Returns when the checkpoint is committed.

        Raises:
            Whatever the save fails with.
        """
        if self._pending is None or self._pending[1] is None:
            raise Invalid("finish comes after write_data")
        ticket, handle = self._pending
        try:
            handle.wait_committed()
        except BaseException as error:
            self._fail(ticket, error)
            raise
        self._pending = None
        self._behind = False
        metadata.storage_meta = self.storage_meta()

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        if not isinstance(error, Fenced):
            _process.drop(self._place)
        if self._behind:
            self.note_failure(f"the save of step {ticket.step} failed: {error}")

    def note_failure(self, text: str) -> None:
        """Keeps a failure that nobody may have seen, for the next call and for the end of the process."""
        self._failure = text
        _untold.add(self)

    def tell_failure(self) -> None:
        """Warns of a failure that was not told."""
        pending = self._pending
        if self._failure is None and pending is not None and self._behind:
            self._failure = (
                f"the save of step {pending[0].step} was not committed: another rank failed"
            )
        if self._failure is not None:
            warnings.warn(f"lastgood: {self._failure}", SaveWarning, stacklevel=3)
        self._failure = None
        self._behind = False
        _untold.discard(self)

    @property
    def should_synchronize_after_execute(self) -> bool:
        """False: `stage` returns when the copy is done."""
        return False

    def stage(self, state_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Copies a state dict, once the save before it is through. The memory of the copies is reused."""
        self._wait_for_last()
        self.tell_failure()
        if self._stager is None:
            self._stager = DefaultStager(StagingOptions(False, False, False, False))
        copied = self._stager.stage(state_dict, **kwargs)
        assert isinstance(copied, dict)
        staged = _Staged(copied)
        self._thread = None
        self._behind = True
        self._staged = weakref.ref(staged)
        return staged

    def _wait_for_last(self) -> None:
        """DCP does not tell its stager that a save is through: either nobody holds the copy any more, or the thread
        that did has ended."""
        while self._staged is not None and self._staged() is not None:
            thread = self._thread
            if thread is not None and not thread.is_alive():
                break
            time.sleep(0.002)

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Waits for the save under way, warns if it failed, and frees the memory of the copies."""
        self._wait_for_last()
        self.tell_failure()
        if self._stager is not None:
            self._stager.close()
            self._stager = None


#: Writers with a failure that nobody was told.
_untold: set[Writer] = set()


def tell_all() -> None:
    """Tells what is untold when the process ends."""
    for writer in list(_untold):
        print(f"lastgood: {writer._failure}", file=sys.stderr)
    _untold.clear()


atexit.register(tell_all)
