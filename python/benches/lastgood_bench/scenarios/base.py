"""What every scenario has."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lastgood_bench import measure, states, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.live import State
from lastgood_bench.ways import WAYS, Way


@dataclass(frozen=True)
class Metric:
    """A column: its name in records and for people, its unit, and the limit that it is compared with."""

    name: str
    title: str
    unit: str
    #: Gives the least that is possible, from the limits of the machine and the bytes of the state.
    limit: Callable[[dict[str, float], float], float] | None = None


@dataclass
class Plan:
    """What a run was asked for."""

    ways: dict[str, type[Way]]
    reps: int
    work: Path
    cache: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A way to measure: ``jobs`` in the order in which they are done, and ``run`` for one of them."""

    id: str
    about: str
    states: tuple[str, ...]
    metrics: tuple[Metric, ...]
    jobs: Callable[[Plan, str], Iterator[Job]]
    run: Callable[[Job, Records], None]
    #: Called before a job's process starts.
    prepare: Callable[[Job], None] = lambda job: None
    #: Whether a job's process is a new one, and no fork.
    new: Callable[[Job], bool] = lambda job: False
    #: Why it cannot be measured on this machine, or None.
    absent: Callable[[], str | None] = lambda: None
    #: The case and the metric that its chart shows.
    chart: tuple[str, str] = ("", "")


def job(plan: Plan, scenario: str, state: str, way: str, case: str, rep: int) -> Job:
    """A job with a work folder of its own."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{scenario} {state} {way} {case} {rep}")
    work = str(plan.work / name)
    return Job(scenario, state, way, case, rep, work, str(plan.cache), dict(plan.options))


def in_turn(plan: Plan, names: list[str], rep: int) -> list[str]:
    """The ways in the order of a repetition: each comes first, second … in turn."""
    begin = rep % max(len(names), 1)
    return names[begin:] + names[:begin]


def live(job: Job) -> State:
    """The job's state, a step after it was made: what `rng` and memory are after a training has begun."""
    state = states.build(job.state, Path(job.cache))
    state.step()
    return state


def way(job: Job, state: State | None, folder: Path | None = None) -> Way:
    """The job's way."""
    return WAYS[job.way](folder or Path(job.work) / "saves", state)


def fits(folder: Path, saves: int, size: int) -> int:
    """So many of ``saves`` as the disk has room for, with a fifth of it left."""
    free = shutil.disk_usage(folder).free
    return max(1, min(saves, int(free * 0.8 / max(size, 1)) - 1))


def check(job: Job, way: Way, number: int, state: State, expected: dict[str, str]) -> float:
    """Loads a save into fresh memory, and gives the seconds of that; raises if a byte of it, or of the live state, is
    not as ``expected``, which is the digest from before the save."""
    flat = state.flat()
    tensors.compare(expected, flat, f"the memory that was given to {way.name}, which")
    layout = tensors.layout_of(flat)
    way.close()
    empty = states.skeleton(job.state)
    other = WAYS[way.saved_by or way.name](way.folder, empty)
    try:
        begin = time.perf_counter()
        loaded = other.load(number, layout)
        tensors.touch(loaded)
        seconds = time.perf_counter() - begin
        tensors.compare(expected, loaded, way.name)
        return seconds
    finally:
        other.close()


def put(folder: Path) -> int:
    """The bytes that a way has in its folder."""
    return measure.bytes_in(folder)
