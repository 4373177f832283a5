"""Replays within a program: steps of a run again, beside what was recorded of them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from lastgood import _lastgood, _open, _run, _world
from lastgood._lastgood import Diverged, Invalid

_MODES = ("audit", "reexecute", "travel", "resume", "shadow")


@dataclass(frozen=True)
class Divergence:
    """A place where a replay parts from what was recorded. ``code`` is of the table in the guide; ``what`` the member
    of the step's record, or ``component/name`` of a tensor; ``rank`` the logical rank, or None.

    Example:
        >>> import lastgood as lg
        >>> lg.Divergence("LG-ND-005", 7, 0, "loss", "0.5", "0.25", "step 7: loss").what
        'loss'
    """

    code: str
    step: int
    rank: int | None
    what: str
    expected: str
    actual: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Replayed:
    """What a replay came to. ``equal``: nothing parts, and a state is among what was compared; ``level`` is then
    ``D2``, or ``D3`` if the run had other numbers of ranks. ``states`` are the steps whose states were compared;
    ``digest`` is that of the last state; ``environment`` is what differs, each with the recorded value and that here;
    ``checkpoint`` is what a travel has saved, in the run ``branch``, or a resume at its end; ``window`` is the id of
    the checkpoint that a shadow ended with.

    Example:
        >>> import lastgood as lg
        >>> lg.Replayed(True, "D2", 0, 5, 5, [5], [], []).diverged
        False
    """

    equal: bool
    level: str | None
    from_step: int
    to: int
    steps: int
    states: list[int]
    divergences: list[Divergence]
    environment: list[tuple[str, str, str]]
    digest: str | None = None
    branch: str | None = None
    checkpoint: str | None = None
    window: str | None = None

    @property
    def diverged(self) -> bool:
        """True if it parts from what was recorded."""
        return bool(self.divergences)


@dataclass(frozen=True)
class Audited:
    """What is known of a journal without running anything: ``findings`` is what is wrong.

    Example:
        >>> import lastgood as lg
        >>> lg.Audited(120, 4, []).ok
        True
    """

    events: int
    cuts: int
    findings: list[str]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings


def replay(
    store: str | os.PathLike[str] | None = None,
    state: MutableMapping[str, Any] | None = None,
    step_fn: Callable[[int], Mapping[str, Any] | None] | None = None,
    *,
    run: str | None = None,
    mode: str = "reexecute",
    start: str | int | None = None,
    to: str | int = "last-good",
    branch: str | None = None,
    seen: Iterable[str] = (),
    rng: bool = True,
) -> Any:
    """Runs steps of a run again in this process, and compares them with what was recorded. The run is only read, but
    for ``resume``.

    It restores ``state`` from a checkpoint, calls ``step_fn`` once for each step, and leaves ``state`` as it is after
    the last one. A program that trains in a loop of its own is replayed by ``lastgood replay -- COMMAND`` instead, on
    any number of ranks; this is for one process.

    Args:
        store: as of `lg.open`.
        state: as the program gives it to `lg.open`, as it is before training.
        step_fn: does one step, given its number: what `Run.step` is told when it is done. It returns what the program
            gives `Run.step` as metrics, or None.
        run: as of `lg.open`.
        mode: ``reexecute``; ``travel``, which also saves the state at the end, as a checkpoint of the run ``branch``;
            ``resume``, which goes on with the run itself: what is recorded behind its last good checkpoint is done
            again, what was read from outside given as it was, and the state at the end saved; ``shadow``, a window
            between two checkpoints that is chosen by chance; or ``audit``, which runs nothing and checks every event.
        start: the checkpoint to begin with: a step, ``latest``, digits of an id, or ``start`` for none; default the
            last one before the end.
        to: the step to end with, or a checkpoint; for ``resume`` a step, which may be behind the last one that is
            recorded, the default: from there on it is live.
        branch: the run that a travel saves into; default ``RUN-at-STEP``.
        seen: windows that a shadow does not choose again: `Replayed.window` of earlier ones.
        rng: as of `lg.open`.

    Returns:
        A `Replayed`, or for an audit an `Audited`.

    Raises:
        NotFound: if there is no such checkpoint, or the steps are not recorded; for a shadow, if no window is left.
        Conflict: if the run to save into is there already.
        Incompatible: if the state does not fit the checkpoint.
        Unavailable, Denied, Corrupt: as the store and the run say.

    Example:
        >>> import lastgood as lg, tempfile
        >>> folder, state = tempfile.mkdtemp(), {"counter": {"seen": 0}}
        >>> def train(step):
        ...     state["counter"]["seen"] += step
        ...     return {"loss": 1 / step}
        >>> with lg.open(folder, state, policy=lg.Policy(steps=3)) as run:
        ...     for step in range(run.restore() + 1, 7):
        ...         _ = run.step(step, **train(step))
        >>> replayed = lg.replay(folder, state, train)
        >>> replayed.equal, replayed.level, replayed.from_step, replayed.to, state["counter"]["seen"]
        (True, 'D2', 3, 6, 21)
    """
    place, name = _world.place_of(store, run)
    if mode not in _MODES:
        raise Invalid(f"mode is one of {list(_MODES)}, given {mode!r}")
    if mode == "audit":
        events, cuts, findings = _lastgood.audit_journal(place, _world.store_options(), name)
        return Audited(events, cuts, findings)
    if step_fn is None or state is None:
        raise Invalid(f"to {mode} needs the state and step_fn, which does one step")
    if _world.find_world().size > 1:
        raise Invalid(
            "a replay within a program is of one process; `lastgood replay -- COMMAND` runs it on several ranks"
        )
    if branch is not None and mode != "travel":
        raise Invalid("only a travel saves into a branch")
    if mode == "resume":
        if start is not None:
            raise Invalid("a run goes on from its last good checkpoint: leave out start")
        return _go_on(place, state, step_fn, name, None if to == "last-good" else to, rng)
    if mode == "shadow" and (start is not None or to != "last-good"):
        raise Invalid("a shadow chooses its window by chance: leave out start and to")
    with tempfile.TemporaryDirectory(prefix="lastgood-replay.") as folder:
        into, into_run = (
            (place, branch or f"{name}-at-{to}") if mode == "travel" else (folder, name)
        )
        native = _lastgood.Replay(
            place,
            _world.store_options(),
            name,
            None if start is None else str(start),
            str(to),
            into,
            into_run,
            mode == "travel",
            list(seen) if mode == "shadow" else None,
        )
        _execute(native, place, state, step_fn, name, rng)
        return _replayed(native.judge(), into_run if mode == "travel" else None, mode)


def _execute(
    native: _lastgood.Replay,
    place: str,
    state: MutableMapping[str, Any],
    step_fn: Callable[[int], Mapping[str, Any] | None],
    name: str,
    rng: bool,
) -> None:
    begin, end = native.steps
    with _open.open_run(place, state, name, rng=rng, plan=native.plan, ends=False) as run:
        run.restore()
        for step in range(begin + 1, end + 1):
            run.step(step, **(step_fn(step) or {}))


def _go_on(
    place: str,
    state: MutableMapping[str, Any],
    step_fn: Callable[[int], Mapping[str, Any] | None],
    name: str,
    to: str | int | None,
    rng: bool,
) -> Replayed:
    """Goes on with a run: to the end of what is recorded, and then live up to ``to``."""
    saved = None
    with (
        contextlib.suppress(Diverged),
        _open.open_run(place, state, name, rng=rng, resume="replay") as run,
    ):
        begin = run.restore()
        todo = run._native.todo()
        recorded = begin if todo is None else todo[2]
        end = recorded if to is None else _run.as_step(to)
        if end < recorded:
            raise Invalid(
                f"steps up to {recorded} are recorded, and to is {end}: end there or later"
            )
        last = None
        for step in range(begin + 1, end + 1):
            last = run.step(step, **(step_fn(step) or {}))
        # What came apart on the way has no state at the end.
        saved = last if last is not None or end == begin else run.save(end)
    said = _lastgood.resumed(place, _world.store_options(), name, run.attempt) or {}
    divergences = [Divergence(**one) for one in said.get("divergences", [])]
    states = said.get("states", [])
    equal = bool(states) and not divergences
    return Replayed(
        equal=equal,
        level="D2" if equal else None,
        from_step=begin,
        to=end if not divergences else said["to"],
        steps=said["to"] - begin if said else 0,
        states=states,
        divergences=divergences,
        environment=[],
        checkpoint=None if saved is None else saved.durable.result(),
    )


def _replayed(said: Mapping[str, Any], branch: str | None, mode: str) -> Replayed:
    return Replayed(
        equal=said["equal"],
        level=said["claimed"] if said["equal"] else None,
        from_step=said["from_step"],
        to=said["to"],
        steps=said["steps"],
        states=said["states"],
        divergences=[Divergence(**one) for one in said["divergences"]],
        environment=[(key, recorded, found) for key, recorded, found in said["environment"]],
        digest=said["digest"],
        branch=branch,
        checkpoint=said["saved"] if branch is not None else None,
        window=said["end"] if mode == "shadow" else None,
    )
