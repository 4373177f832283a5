"""A run as its ranks have it: saving and restoring its state, step by step."""

from __future__ import annotations

import atexit
import contextlib
import operator
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any

from lastgood import _journal, _lastgood, _notice, _preflight, _rng, _state
from lastgood._handle import SaveHandle
from lastgood._heartbeat import heartbeat
from lastgood._history import Checkpoint as Checkpoint
from lastgood._history import Restored as Restored
from lastgood._history import SaveWarning as SaveWarning
from lastgood._lastgood import Closed, Corrupt, Invalid, LastgoodError, NotFound
from lastgood._policy import Explanation, Foreign, Policy, explanation
from lastgood._preflight import Report
from lastgood._restore import Plan
from lastgood._state import World

_open_runs: weakref.WeakSet[Run] = weakref.WeakSet()


def as_step(step: Any) -> int:
    """``step`` as a number of Python; numpy's and others' are taken as well."""
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise Invalid(f"a step is a whole number of at least 0, given {step!r}")
    return number


class Run:
    """One rank of one attempt of a run: made by `lg.open`, closed by `close` or at the end of a ``with``.

    Example:
        >>> import lastgood as lg, tempfile
        >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
        ...     run
        lg.Run(attempt=1, rank=0 of 1)
    """

    def __init__(
        self,
        native: _lastgood.Run,
        state: MutableMapping[str, Any],
        world: World,
        policy: Any,
        *,
        rng: bool,
        overlap: bool,
        journal: bool = False,
        digest_every: int = 0,
        replays: bool = False,
        ends: bool = True,
    ) -> None:
        self._native = native
        self._digest_every = digest_every
        self._replays = replays
        self._ends = ends
        self._recorder = _journal.Recorder(native, state) if journal else None
        self._state = state
        self._world = world
        self._policy = policy
        self._rng = rng
        self._overlap = overlap
        self._copying: SaveHandle | None = None
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.RLock()
        # Held while a save looks at the state, so that an optimizer in another thread does not step meanwhile. It is
        # not the lock of `lock`, under which optimizers may step.
        self._looking = threading.RLock()
        self._heartbeat = heartbeat()
        self._closed = False
        self._newest: _lastgood.SaveHandle | None = None
        # A forked child has none of the threads that save, and must not wait for them.
        self._process = os.getpid()
        self.last_restore: Restored | None = None
        self._adapters()
        if native.predicts():
            self._watch()
        self._listen()

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._native.attempt

    @property
    def rank(self) -> int:
        """This rank among all, from 0."""
        return self._world.rank

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self._world.size

    def _adapters(self) -> dict[str, tuple[_state.Declared, _state.Adapter | None]]:
        """Every component with its adapter; those that are not durable have none."""
        if _state.RNG in self._state and self._rng:
            raise Invalid(
                f"the name {_state.RNG!r} is taken by the generators; give the component another one, or rng=False"
            )
        found: dict[str, tuple[_state.Declared, _state.Adapter | None]] = {}
        look = _state.Look(self._state)
        for name, obj in self._state.items():
            if not isinstance(name, str) or not name:
                raise Invalid(f"a component's name is a string, given {name!r}")
            declared = _state.as_declared(obj)
            adapter = None
            if isinstance(declared, _state.Durable):
                adapter = _state.adapter_for(name, look, declared)
            found[name] = (declared, adapter)
        if self._rng:
            found[_state.RNG] = (_state.Durable(None, owner="lastgood"), _rng.GlobalRng())
        return found

    def save(
        self, step: int, *, block: bool = False, metadata: Mapping[str, str] | None = None
    ) -> SaveHandle:
        """Saves the state at ``step``. Returns when it is copied or, of what only an optimizer of the state changes,
        before that: the optimizer's next step then waits for the copy. With ``block``, returns when the checkpoint
        is committed. ``metadata`` is text that travels with it; every rank gives the same.

        Raises:
            Invalid: if something cannot be stored, or the step is none; nothing is saved then.
            Overloaded: if the state does not fit the memory that saves may take.
            Fenced: if a newer attempt owns the run.
            Closed: after `close`.
            With ``block`` whatever the save fails with; without, a failure warns at the next call and is raised by
            `close` and by the handle.

        Example:
            >>> import lastgood as lg, tempfile
            >>> run = lg.open(tempfile.mkdtemp(), {"x": {"y": 1}})
            >>> len(run.save(1, block=True).durable.result())
            64
            >>> run.close()
        """
        if os.getpid() != self._process:
            raise Closed("the run was opened by another process; a forked child must open its own")
        step = as_step(step)
        self._tell_failures()
        self._recorder_flush()
        with self._lock, self._looking:
            self.wait_captured()
            deferred = self._overlap and not block
            if deferred:
                self._guard()
            if self._native.predicts():
                self._watch()
            capture, behind = self._capture(deferred)
            capture.metadata("lastgood.python", _lastgood.__version__)
            for key, text in (metadata or {}).items():
                capture.metadata(key, text)
            if behind:
                capture.check(_unchanged(behind))
            # Not the handle, which knows this run: a cycle would keep the state alive.
            self._newest = self._native.save(step, capture, deferred)
            handle = SaveHandle(self, self._newest)
            self._copying = handle if deferred else None
            self._note_saved(step)
        if block:
            handle.durable.result()
        return handle

    def _capture(
        self, deferred: bool
    ) -> tuple[_lastgood.Capture, list[tuple[str, list[str], list[Any]]]]:
        """The state as it is now, and what of it is copied later if it is ``deferred``."""
        capture = _lastgood.Capture(deferred)
        behind: list[tuple[str, list[str], list[Any]]] = []
        for name, (declared, adapter) in self._adapters().items():
            component = capture.component(name, declared.owner, declared.durability)
            if adapter is None:
                continue
            snapshot = adapter.capture(self._world, deferred)
            snapshot.declare(capture, component, self._world.rank)
            behind += [(name, *held) for held in snapshot.deferred]
        return capture, behind

    def _guard(self) -> None:
        """Lets every optimizer of the state wait for the copy before it steps."""
        if "torch" not in sys.modules:
            return
        from lastgood.torch import _modules

        this = weakref.ref(self)

        def wait(*_: Any) -> None:
            run = this()
            if run is not None:
                run._wait_to_change()

        for optimizer in _modules.optimizers_of(self._state):
            if optimizer not in self._hooked:
                optimizer.register_step_pre_hook(wait)
                self._hooked.add(optimizer)

    def _watch(self) -> None:
        """Notes with which numbers the optimizers of the state step, for deltas."""
        if "torch" in sys.modules:
            from lastgood.torch import _modules, _updates

            for optimizer in _modules.optimizers_of(self._state):
                _updates.watch(optimizer)

    def _wait_to_change(self) -> None:
        with self._looking:
            self.wait_captured()

    def wait_captured(self) -> None:
        """Waits until the last save is copied, so that everything may be changed."""
        copying = self._copying
        if copying is not None:
            # What the capture failed with is told by the handle and at the next call.
            with contextlib.suppress(LastgoodError):
                copying.captured.result()
            # Another thread may have begun the next save meanwhile.
            if self._copying is copying:
                self._copying = None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Guards code that changes parameters or optimizer state without an optimizer of the state: waits for the
        copy of the last save, and holds up saves from other threads.

        Example:
            >>> import lastgood as lg, tempfile
            >>> run = lg.open(tempfile.mkdtemp(), {"x": {"y": 1}})
            >>> with run.lock():
            ...     pass  # weights.mul_(0.99)
            >>> run.close()
        """
        with self._lock:
            self.wait_captured()
            yield

    def step(self, step: int, **metrics: Any) -> SaveHandle | None:
        """Says that ``step`` is done: tells the supervisor, records it, and saves if the policy says so. ``step`` is
        what `restore` will give back: the number of finished steps. ``metrics`` are recorded bit for bit: numbers,
        text, and small arrays, such as the loss; of other things what they are.

        Raises:
            SystemExit: with `Policy.PREEMPTED`, after SIGTERM to a rank whose policy has a grace time.
            As `save`.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}, policy=lg.Policy(steps=2)) as run:
            ...     for step in range(5):
            ...         _ = run.step(step + 1, loss=0.5)
            >>> [c.step for c in run.history()]
            [2, 4]
        """
        self._note(step, metrics)
        if self._replays:
            return self._replay(step)
        want = self._wants(step)
        handle = self.save(step) if want in ("save", "save-and-end") else None
        if self._digest_every and step % self._digest_every == 0:
            self._digest(step)
        if want in ("save-and-end", "end"):
            self._end(step, handle)
        return handle

    def _listen(self) -> None:
        """Lets SIGTERM be a notice if the policy has a grace time."""
        policy = self._policy
        if isinstance(policy, Policy) and policy.grace is not None and not self._replays:
            _notice.listen(self)

    def _follow(self, policy: Policy) -> None:
        """Follows another policy than that which the run was opened with."""
        if policy is not self._policy:
            self._native.follow(policy._settings)
            self._policy = policy
            self._listen()

    def _wants(self, step: int) -> str:
        """What the policy wants after ``step``."""
        if isinstance(self._policy, Foreign):
            return "save" if self._policy.due(step) else "nothing"
        return self._native.wants(as_step(step))

    def _note_saved(self, step: int) -> None:
        if isinstance(self._policy, Foreign):
            self._policy.saved(step)

    def _end(self, step: int, handle: SaveHandle | None) -> None:
        """Ends the process after a notice, once ``handle`` is a checkpoint or its time is over."""
        last, what = "late", f"the state after step {step} is not saved: there was no time for it"
        try:
            last = self._native.wait_last(step, None if handle is None else handle._native)
            if last == "goes-on":
                return
            if handle is not None:
                what = {
                    "done": f"the state after step {step} is saved",
                    "late": f"the state after step {step} is not saved: the grace time is over",
                }[last]
        except LastgoodError as error:
            what = f"the state after step {step} is not saved: {error}"
        if last == "done":
            self.close()
        else:
            # Nobody waits for what cannot become a checkpoint in time.
            self._closed = True
            self._native.abandon()
            if handle is not None or self._newest is not None:
                what += "; the last checkpoint before it stays"
        print(f"lastgood: told to end: {what}", file=sys.stderr, flush=True)
        raise SystemExit(Policy.PREEMPTED)

    def explain_policy(self) -> Explanation | None:
        """What the policy makes of what is measured so far, and why; None while nothing is measured. What it has chosen
        for all ranks stands in the ledger: ``lastgood policy explain``.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}, policy=lg.Policy(auto=True)) as run:
            ...     for step in range(5):
            ...         _ = run.step(step + 1)
            ...     found = run.explain_policy()
            >>> found.every >= 1
            True
        """
        return explanation(self._native.explain_policy())

    def _note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tells the supervisor of ``step``, and records it."""
        if self._heartbeat is not None:
            self._heartbeat(step)
        if self._recorder is not None:
            self._recorder.step(as_step(step), metrics)

    def _digest(self, step: int) -> None:
        """Records fingerprints of the state, of everything that this rank holds."""
        with self._lock, self._looking:
            self.wait_captured()
            capture, _ = self._capture(False)
            self._native.digest(step, capture)

    def _replay(self, step: int) -> SaveHandle | None:
        """What `step` does in a replay: it saves what the replay wants, and ends the process after the last step."""
        handle = None
        if self._native.is_due(step) or self._wants(step) == "save":
            handle = self.save(step)
        self._recorder_flush()
        if not self._native.goes_on():
            if handle is not None:
                handle.durable.result()
            self.close()
            if self._ends:
                raise SystemExit(0)
        return handle

    def _recorder_flush(self) -> None:
        if self._recorder is not None:
            self._recorder.flush()

    def event(self, kind: str, data: Any = None) -> None:
        """Records an event of your own kind: None, numbers, text, bytes, and lists and dicts of these.

        Raises:
            Invalid: if the run has no journal, or the event is larger than 1 MiB.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {}) as run:
            ...     run.event("evaluation", {"accuracy": 0.93})
        """
        self._record().event(kind, _journal.plain(data))

    def read_external(self, key: str, value: Any) -> Any:
        """Records what was read from outside of the run, and gives what to go on with: ``value``. A replay gives the
        recorded value instead, since what is outside may have changed.

        Raises:
            As `event`.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {}) as run:
            ...     run.read_external("learning rate", 0.5)
            0.5
        """
        return self._record().external(key, _journal.plain(value))

    def _record(self) -> _lastgood.Run:
        self._recorder_flush()
        return self._native

    def restore(self, at: str | int | None = None, *, only: Iterable[str] | None = None) -> int:
        """Restores the last good checkpoint, or the one that ``at`` names, and gives its step; 0 for a fresh run.

        Everything is read and verified before the first live object changes. A damaged checkpoint is marked bad, and
        a rank alone goes back to the one before it by itself; several ranks go back together in their next start.

        Args:
            at: a step, ``last-good``, ``latest``, or at least 8 digits of an id; default the last good one, and of
                several ranks that which their attempt began with.
            only: the components to restore; default all, and every one must be there.

        Raises:
            NotFound: if there is no such checkpoint, or it lacks a component.
            Incompatible: if components or tensors are missing, left over, or of another shape or dtype: each is
                named, and nothing is changed.
            Corrupt: if it is damaged, and there is nothing to go back to.

        Example:
            >>> import lastgood as lg, tempfile
            >>> state = {"x": {"y": 1}}
            >>> with lg.open(tempfile.mkdtemp(), state) as run:
            ...     _ = run.save(5, block=True)
            ...     state["x"]["y"] = 2
            ...     step = run.restore()
            >>> step, state
            (5, {'x': {'y': 1}})
        """
        with self._lock:
            self.wait_captured()
            notices: list[str] = []
            if at is None and self._newest is not None and self._world.size > 1:
                raise Invalid(
                    "several ranks that go back during an attempt must name the checkpoint: at=…"
                )
            if at is not None:
                return self._restore_from(self._native.find(str(at)), only, notices)
            while (checkpoint := self._native.candidate()) is not None:
                notices += checkpoint.notices
                try:
                    return self._restore_from(checkpoint, only, notices)
                except Corrupt as error:
                    notices += self._native.reject(checkpoint, str(error))
            if self._rng and self._recorder is not None:
                _journal.start_generators(self._native)
            return 0

    def _restore_from(self, checkpoint: Any, only: Iterable[str] | None, notices: list[str]) -> int:
        plan = self._plan(checkpoint, only)
        found = self._native.preflight(checkpoint, plan.needs())
        if self._native.only_looks():
            self.close()
            raise SystemExit(0)
        notices += _preflight.notices_of(found)
        plan.check()
        placed, read = plan.read()
        plan.apply()
        notices += plan.notices
        self._native.build_on(checkpoint)
        notices += filter(None, [self._native.resume_notice()])
        self.last_restore = Restored(
            checkpoint.id, checkpoint.step, checkpoint.world_size, placed, notices, read
        )
        step: int = checkpoint.step
        self._note_saved(step)
        return step

    def _plan(self, checkpoint: Any, only: Iterable[str] | None) -> Plan:
        components = self._adapters()
        if only is not None:
            wanted = set(only)
            unknown = wanted - set(components)
            if unknown:
                raise NotFound(
                    f"there is no component {sorted(unknown)}; there are {sorted(components)}"
                )
            components = {k: v for k, v in components.items() if k in wanted}
        return Plan(self._native, checkpoint, components, self._world, partial=only is not None)

    def preflight(
        self,
        at: str | int | None = None,
        *,
        data: str = "size",
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Says whether a restore would succeed, and what it would do, and changes nothing: what is missing, left
        over, reshaped or retyped, what of this process computes otherwise than the one that saved, whether every
        object is there, the bytes to read, and the memory that it needs.

        Args:
            at: as of `restore`.
            data: ``size``: each object is there and has its size; ``sample``: some are read, which also says how long
                reading takes; ``full``: every byte is read.
            progress: is called with the bytes read so far and in all.

        Raises:
            NotFound: if there is no checkpoint.
            Corrupt: if an object is damaged or missing.
            Unavailable, Denied: if it cannot be read.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
            ...     _ = run.save(5, block=True)
            ...     report = run.preflight()
            >>> report.ok, report.step
            (True, 5)
        """
        selector = "last-good" if at is None else str(at)
        checkpoint = self._native.find(selector)
        plan = self._plan(checkpoint, None)
        objects = self._native.check_objects(checkpoint, data, progress)
        return plan.report(self._native.look(checkpoint, plan.needs()), objects)

    def verify(
        self, at: str | int = "last-good", *, progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Reads and verifies every byte of a checkpoint, and gives their number. ``progress`` is called with the bytes
        so far and in all. It does not mark it ``verified``: recovery prefers marked checkpoints to newer ones.

        Raises:
            NotFound: if there is no such checkpoint.
            Corrupt: naming the first object that is damaged; the checkpoint is marked bad.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
            ...     _ = run.save(5, block=True)
            ...     read = run.verify()
            >>> read > 0
            True
        """
        checkpoint = self._native.find(str(at))
        try:
            read = self._native.verify(checkpoint, progress)
        except Corrupt as error:
            self._native.mark(f"id:{checkpoint.id}", "bad", str(error))
            raise
        return read

    def mark(self, at: str | int, standing: str, reason: str) -> str:
        """Gives a checkpoint a standing (``good``, ``bad`` or ``verified``) with the reason, and gives its id.

        Raises:
            NotFound: if there is no such checkpoint.
            Conflict: if it is bad and is to become merely verified.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
            ...     _ = run.save(5, block=True)
            ...     _ = run.mark(5, "bad", "the loss was NaN after it")
            >>> run.history()[0].reason
            'the loss was NaN after it'
        """
        return self._native.mark(str(at), standing, reason)

    def expire(self, at: str | int, reason: str) -> str:
        """Takes a checkpoint off the list for good, and gives its id: nothing restores it any more unless its id is
        given, and a collection may delete what only it needs. It is for retention policies; a checkpoint that is
        not to be trusted is marked ``bad``.

        Raises:
            NotFound: if there is no such checkpoint.

        Example:
            >>> import lastgood as lg, tempfile
            >>> run = lg.open(tempfile.mkdtemp(), {"x": {"y": 1}})
            >>> for step in (1, 2):
            ...     _ = run.save(step, block=True)
            >>> _ = run.expire(1, "only the last is kept")
            >>> [c.step for c in run.history() if not c.expired]
            [2]
            >>> run.close()
        """
        return self._native.expire(str(at), reason)

    def history(self) -> list[Checkpoint]:
        """Every checkpoint of the run, oldest first.

        Raises:
            Unavailable, Denied, Corrupt: if the ledger cannot be read.

        Example:
            >>> import lastgood as lg, tempfile
            >>> with lg.open(tempfile.mkdtemp(), {}) as run:
            ...     run.history()
            []
        """
        return [Checkpoint(**row) for row in self._native.history()]

    def _tell_failures(self) -> None:
        for failure in self._native.take_failures():
            warnings.warn(f"lastgood: {failure}", SaveWarning, stacklevel=3)

    def _is_open(self) -> bool:
        """True until it is closed, in the process that opened it."""
        return not self._closed and os.getpid() == self._process

    def close(self) -> None:
        """Waits for every save that is under way, and ends the run's threads. A second call does nothing.

        Raises:
            The failures of saves that nobody has been told of.

        Example:
            >>> import lastgood as lg, tempfile
            >>> run = lg.open(tempfile.mkdtemp(), {})
            >>> run.close()
        """
        if not self._is_open():
            return
        self._closed = True
        _notice.forget(self)
        self.wait_captured()
        self._recorder_flush()
        self._native.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # What ended the block is what must be seen.
        with contextlib.suppress(LastgoodError):
            if isinstance(error, Exception):
                self._tell_end(error)
            self.close()

    def _tell_end(self, error: BaseException) -> None:
        """Lets estimates of how often the run fails know that it does."""
        if self._is_open():
            self._native.tell_end("process", f"{type(error).__name__}: {error}"[:500])

    def __repr__(self) -> str:
        return f"lg.Run(attempt={self.attempt}, rank={self.rank} of {self.world_size})"


def _unchanged(tensors: list[tuple[str, list[str], list[Any]]]) -> Callable[[], str | None]:
    """A check that nothing was changed while it was copied: the guard's own guard."""
    from lastgood.torch import _state as torch_state

    before = torch_state.versions(tensors)
    return lambda: torch_state.changed(before)


@atexit.register
def _close_all() -> None:
    """A process does not end with a save unwritten or a failure untold."""
    for run in list(_open_runs):
        newest = run._newest
        try:
            if isinstance(failed := getattr(sys, "last_value", None), Exception):
                run._tell_end(failed)
            if newest is not None and run._is_open():
                _say_if_it_waits(newest)
            run.close()
        except LastgoodError as error:
            print(f"lastgood: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            # Or it would be waited for when the interpreter lets go of the run.
            run._native.abandon()
            step = "of no step" if newest is None else f"of step {newest.step}"
            print(
                f"lastgood: the save {step} is given up: nobody has seen it become a checkpoint",
                file=sys.stderr,
            )


def _say_if_it_waits(save: _lastgood.SaveHandle) -> None:
    # What it fails with is told when the run is closed.
    with contextlib.suppress(LastgoodError):
        if save.wait_committed(1.0) is None:
            print(
                f"lastgood: waiting for the save of step {save.step} to become a checkpoint; Ctrl-C gives it up",
                file=sys.stderr,
                flush=True,
            )
