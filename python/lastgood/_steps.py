"""The steps of trainers, which keep their state in checkpoints of their own: what is recorded of each, and what is
different in a replay.

A trainer's callback notes losses and learning rates where they are, and tells of a step once an optimizer has done it.
In a replay the trainer's files go to a folder aside, so that those of the run stay as they are, and the process ends
after the last step.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from lastgood._lastgood import Invalid, LastgoodError
from lastgood._open import open as open_run
from lastgood._run import Run
from lastgood._world import resolved


class Steps:
    """What the next step comes from, until it is done: batches have losses, and a step may have several of them."""

    def __init__(self) -> None:
        self._losses: list[Any] = []
        self._rates: list[float] = []

    def add_loss(self, loss: Any) -> None:
        """Notes the loss of a batch. A tensor of a device is not waited for."""
        if hasattr(loss, "detach"):
            self._losses.append(loss.detach())

    def add_rates(self, optimizer: Any) -> None:
        """Notes the learning rates with which an optimizer is about to step."""
        self._rates += [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]

    def done(self, run: Run, step: int, **more: Any) -> None:
        """Tells the supervisor of ``step``, and records it: ``loss``, the sum over its batches; ``lr``, of each group
        of each optimizer; the generators; and ``more``, which counts before these."""
        losses, self._losses = self._losses, []
        rates, self._rates = self._rates, []
        noted: dict[str, Any] = {}
        if losses:
            noted["loss"] = functools.reduce(lambda one, other: one + other, losses)
        if rates:
            noted["lr"] = rates
        run._note(step, {**noted, **more})

    def forget(self) -> None:
        """Forgets what belongs to no step."""
        self._losses, self._rates = [], []


def place(epoch: float, batches: Any) -> dict[str, list[float]]:
    """Where the data is after ``epoch`` passes through ``batches``: the pass, and the batches of it."""
    try:
        size = len(batches)
    except TypeError:
        return {"train": [epoch]}
    whole = int(epoch)
    return {"train": [whole, round((epoch - whole) * size)]}


def plan() -> dict[str, Any] | None:
    """What this process is to replay; None if it trains."""
    text = os.environ.get("LASTGOOD_REPLAY")
    told: dict[str, Any] | None = json.loads(text) if text is not None else None
    return told


def only_looks() -> bool:
    """True if this process looks whether it could restore, and ends."""
    return bool((plan() or {}).get("preflight"))


def look(run: Run, checkpoint: Any, needs: tuple[int, int]) -> NoReturn:
    """Records whether this rank could restore ``checkpoint``, which needs so many bytes to be read and so many of
    memory, and ends the process."""
    run._native.preflight(checkpoint, (*needs, []))
    end(run)


def is_asked(store: str, run: str) -> bool:
    """True if this process looks whether it could restore this run."""
    return only_looks() and _is_source(store, run)


def look_at(store: str, run: str) -> NoReturn:
    """As `look`, for those who read the run without opening it; each rank needs its share at least."""
    opened = open_run(store, {}, run=run, rng=False)
    checkpoint = opened._native.candidate()
    # A look is a look at one.
    assert checkpoint is not None
    share = -(-checkpoint.bytes // opened.world_size)
    look(opened, checkpoint, (share, share))


def _is_source(store: str, run: str) -> bool:
    told = plan()
    if told is None:
        return False
    source = told["source"]
    return (resolved(source["store"]), source["run"]) == (resolved(store), run)


def refuse(store: str, run: str, what: str) -> None:
    """Refuses to write to the run that is replayed.

    Raises:
        Invalid: if it is that.
    """
    if not _is_source(store, run):
        return
    raise Invalid(
        f"run {run} is written by {what}, which records its saves and not what goes into the steps between them, so "
        "that it cannot be replayed; open the run by lg.open, or by the callback of a trainer"
    )


@functools.cache
def aside() -> Path:
    """Where trainers write in this replay: one folder for all ranks of a node, which goes with the first of them."""
    told = "\n".join(os.environ.get(f"LASTGOOD_{name}", "") for name in ("REPLAY", "INCARNATION"))
    name = f"lastgood-replay-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir(), name)
    folder.mkdir(exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def read_external(run: Run | None, key: str, value: Any) -> Any:
    """As `Run.read_external`, of what is read by a trainer: ``value`` where the run read nothing. What cannot be
    recorded ends no training; the next save tells."""
    if run is None or run._recorder is None:
        return value
    with contextlib.suppress(LastgoodError):
        return run.read_external(key, value)
    return value


def is_over(run: Run) -> bool:
    """True after the last step of a replay."""
    run._recorder_flush()
    return run._replays and not run._native.goes_on()


def end(run: Run | None) -> NoReturn:
    """Ends a process that has replayed what it should."""
    if run is not None:
        run.close()
    raise SystemExit(0)
