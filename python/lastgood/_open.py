"""Opening a run, and what a store has."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any

from lastgood import _environment, _journal, _lastgood, _preflight, _run, _world
from lastgood._lastgood import Invalid
from lastgood._policy import as_policy, settings_of
from lastgood._run import Run


def open(
    store: str | os.PathLike[str] | None = None,
    state: MutableMapping[str, Any] | None = None,
    *,
    run: str | None = None,
    policy: Any = None,
    rng: bool = True,
    overlap: bool = True,
    failures_max: int | None = None,
    incarnation: str | None = None,
    journal: bool | Mapping[str, Any] = True,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
    resume: str | None = None,
    **settings: Any,
) -> Run:
    """Opens a run in ``store`` as this process's rank, and fences every earlier attempt of it.

    Args:
        store: a folder, ``file:///…``, ``s3://bucket/prefix``, ``gs://…`` or ``az://…``; default ``LASTGOOD_STORE``.
        state: what is saved, by name: modules, optimizers, schedulers, scalers, loaders and everything else with
            ``state_dict`` and ``load_state_dict``; generators; torch tensors, numpy and jax arrays; numbers, strings,
            and nested containers of all these. It is looked at anew at every save, and values that cannot be changed
            in place are replaced in it by a restore. Wrap in `Durable`, `Derived` or `Volatile` to say more.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        policy: when `Run.step` saves, a `Policy`; default every 100 steps, and on demand.
        rng: capture the generators of python, numpy, torch and CUDA too.
        overlap: saves of parameters and of optimizer state are copied behind the call, while nothing changes them;
            the optimizer waits before its next step. Everything else is copied in the call.
        failures_max: after so many failed saves in a row a save is an error; default none: failed saves warn.
        incarnation: names this start for all its ranks; found by itself under torch.distributed and ``lastgood run``.
        journal: record what goes into each step, for replay: the learning rates, where the data and the generators are,
            and what `Run.step` is given. A dict may set ``wait`` (each step is durable when `Run.step` returns;
            LASTGOOD_JOURNAL_WAIT=1 sets it too), ``seal_after`` (seconds until events are in the store), ``folder`` (of
            a local disk, for what is not), ``logical`` (first, and behind last, of the logical ranks of this process),
            ``digests`` (False: no fingerprints of the state with each save) and ``digest_every`` (so many steps,
            between saves too; each costs a copy of the state in the call).
        preflight: what `Run.restore` does if this process computes otherwise than the one that saved (libraries,
            settings, threads, code …): ``refuse`` it, ``warn`` and go on, or ``off``; default ``LASTGOOD_PREFLIGHT``,
            else ``refuse``.
        accept: differences to go on with, each with its reason, which is recorded in the run's ledger: a key such as
            ``package.torch``, or with a dot at its end all that begin so, such as ``code.``.
        resume: how it goes on from its checkpoint: ``live``; or ``replay``: what an earlier attempt recorded behind the
            checkpoint is done again and compared, with what it read from outside, and then it is live. `Run.step`
            raises `Diverged` at the first difference; default ``LASTGOOD_RESUME``, else ``live``.
        settings: ``chunk_bytes``, ``arena_bytes_max``, ``in_flight_max``, ``commit_wait`` (seconds), ``compression``
            (``off``; ``auto``: where the store is slow; ``zstd:LEVEL``; ``delta`` or ``delta:N``: what is smaller so is
            stored as the difference from the save before, each part of the state whole once in N saves, and what
            torch's Adam, AdamW and SGD changed is predicted; keeps a second copy of the state in memory).

    Raises:
        Invalid: if an argument is wrong or an object cannot be stored.
        Unavailable, Denied, Corrupt, Incompatible: as the store and the run say.

    Example:
        >>> import lastgood as lg, tempfile
        >>> state = {"counter": {"seen": 0}}
        >>> with lg.open(tempfile.mkdtemp(), state) as run:
        ...     start = run.restore()
        ...     state["counter"]["seen"] = 7
        ...     _ = run.save(1, block=True)
        >>> start
        0
    """
    name = run if run is not None else os.environ.get("LASTGOOD_RUN", "default")
    place = os.fspath(store) if store is not None else os.environ.get("LASTGOOD_STORE")
    if not place:
        raise Invalid("no store is given; name one, or set LASTGOOD_STORE")
    _warn_of_supervisor(place, name)
    if failures_max is not None:
        settings["failures_max"] = failures_max
    return open_run(
        place,
        state,
        name,
        policy=policy,
        rng=rng,
        overlap=overlap,
        incarnation=incarnation,
        journal=journal,
        preflight=preflight,
        accept=accept,
        settings=settings,
        plan=os.environ.get("LASTGOOD_REPLAY"),
        resume=resume,
    )


def open_run(
    store: str,
    state: MutableMapping[str, Any] | None,
    name: str,
    *,
    policy: Any = None,
    rng: bool = True,
    overlap: bool = True,
    incarnation: str | None = None,
    journal: bool | Mapping[str, Any] = True,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    plan: str | None = None,
    resume: str | None = None,
    ends: bool = True,
) -> Run:
    """As `open`; with a ``plan`` it is a replay, which ends the process after its last step if it ``ends``."""
    world = _world.find_world()
    decides = as_policy(policy)
    if state is not None and not isinstance(state, MutableMapping):
        raise Invalid(f"a state is a dict of named components, given {type(state).__name__}")
    if plan is not None:
        # Whatever else the program wants of its journal, a replay has one of its own, of the same logical ranks.
        given = journal if isinstance(journal, Mapping) else {}
        journal = {name: given[name] for name in given if name == "logical"}
    recorded = _journal.settings_of(journal, store)
    opened = Run(
        _lastgood.Run(
            store,
            _world.store_options(),
            name,
            world.rank,
            world.size,
            incarnation or _world.find_incarnation(world, f"{_world.resolved(store)} {name}"),
            settings or {},
            recorded and {name: recorded[name] for name in recorded if name != "digest_every"},
            _environment.collect() if recorded is not None else {},
            plan,
            _preflight.mode_of(preflight),
            _preflight.acceptance_of(accept),
            resume_of(resume),
            settings_of(decides),
            os.environ.get("LASTGOOD_MEMORY") if plan is None else None,
        ),
        {} if state is None else state,
        world,
        decides,
        rng=rng,
        overlap=overlap,
        journal=recorded is not None,
        digest_every=recorded["digest_every"] if recorded else 0,
        replays=plan is not None,
        ends=ends,
    )
    if notice := opened._native.memory_notice:
        warnings.warn(f"lastgood: {notice}", RuntimeWarning, stacklevel=3)
    _run._open_runs.add(opened)
    return opened


def resume_of(given: str | None) -> str:
    """How a run goes on from its checkpoint: what is given, else ``LASTGOOD_RESUME``, else ``live``."""
    return given if given is not None else os.environ.get("LASTGOOD_RESUME", "live")


def _warn_of_supervisor(store: str, run: str) -> None:
    for variable, given in (("LASTGOOD_STORE", store), ("LASTGOOD_RUN", run)):
        told = os.environ.get(variable)
        if told is not None and _world.resolved(told) != _world.resolved(given):
            warnings.warn(
                f"lastgood: {variable} is {told!r} and the program opens {given!r}: whoever supervises it looks for "
                "checkpoints elsewhere",
                RuntimeWarning,
                stacklevel=3,
            )


def runs(store: str | os.PathLike[str]) -> list[str]:
    """The names of the runs in ``store``, sorted.

    Raises:
        NotFound: if the store is no repository.

    Example:
        >>> import lastgood as lg, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> lg.open(folder, {}, run="first").close()
        >>> lg.runs(folder)
        ['first']
    """
    return _lastgood.runs(os.fspath(store), _world.store_options())
