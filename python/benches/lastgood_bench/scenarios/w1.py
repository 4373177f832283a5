"""W1: the first save, and steady saves: what they cost training, and how long they take to be durable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from lastgood_bench import measure, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.live import State
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.ways import Way

#: Steps of a window; the save is behind the first, so that the others pay for what goes on behind the call.
STEPS = 2
#: Saves while nothing trains.
ALONE = 2


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [n for n, w in plan.ways.items() if w.saved_by is None and w.in_w1]
    for name in names:
        yield base.job(plan, "W1", state, name, "memory", 0)
    for rep in range(plan.reps):
        for name in base.in_turn(plan, names, rep):
            yield base.job(plan, "W1", state, name, "time", rep)


def run(job: Job, records: Records) -> None:
    if job.case == "memory":
        _memory(job, records)
    else:
        _time(job, records)


def _memory(job: Job, records: Records) -> None:
    state = base.live(job)
    # What libraries take is not what a save takes.
    way = base.way(job, state)
    before = measure.anonymous()
    with measure.Peak() as one:
        way.open()
        _saved(way, 1)
    first = base.put(way.folder)
    # What a step takes, such as gradients, is not a save's either.
    state.step()
    expected = tensors.digest(state.flat())
    with measure.Peak() as two:
        _saved(way, 2)
    written = base.put(way.folder)
    records.add("memory", "rss_extra_bytes", max(0, max(one.peak, two.peak) - before))
    records.add("memory", "put_bytes", written - first)
    records.add("memory", "first_put_bytes", first)
    base.check(job, way, 2, state, expected)


def _saved(way: Way, number: int) -> tuple[float, float, float]:
    """Saves and waits: the seconds until the call returned, until it was done, and until it was durable."""
    begin = time.perf_counter()
    way.save(number)
    called = time.perf_counter() - begin
    way.finish()
    done = durable = time.perf_counter() - begin
    if not way.syncs:
        measure.sync(way.folder)
        durable = time.perf_counter() - begin
    return called, done, durable


def _time(job: Job, records: Records) -> None:
    state = base.live(job)
    size = tensors.size_of(state.flat())
    wanted = 1 + ALONE + job.options["saves"]
    saves = base.fits(Path(job.work), wanted, size)
    measure.sync(Path(job.work))
    way = base.way(job, state)
    way.open()
    for number in range(1, min(saves, 1 + ALONE) + 1):
        state.step()
        case = "first" if number == 1 else "steady"
        for metric, seconds in zip(
            ("call_s", "done_s", "durable_s"), _saved(way, number), strict=True
        ):
            records.add(case, metric, seconds)
        way.forget(number - 1)
    for number in range(2 + ALONE, saves + 1):
        measure.sync(way.folder)
        without = _window(state, None, number)
        saving = _window(state, way, number)
        records.add("training", "slowdown_s", saving["total_s"] - without["total_s"])
        for metric in ("call_s", "guard_s", "drain_s"):
            records.add("training", metric, saving[metric])
        records.add("training", "processor_s", saving["processor_s"] - without["processor_s"])
        records.add("training", "step_s", without["total_s"] / STEPS)
        way.forget(number - 1)
    # Less than asked for where the disk has no room for more.
    records.add("training", "saves", saves - 1 - ALONE)
    way.close()


def _window(state: State, way: Way | None, number: int) -> dict[str, float]:
    """Steps, with a save behind the first one; what is not done at their end is waited for."""
    processor, begin = time.process_time(), time.perf_counter()
    call = guard = 0.0
    for i in range(STEPS):
        state.forward()
        if way is not None and i > 0:
            waits = time.perf_counter()
            way.guard()
            guard += time.perf_counter() - waits
        state.update()
        if way is not None and i == 0:
            called = time.perf_counter()
            way.save(number)
            call = time.perf_counter() - called
    total = time.perf_counter() - begin
    if way is not None:
        way.finish()
    return {
        "total_s": total,
        "call_s": call,
        "guard_s": guard,
        "drain_s": time.perf_counter() - begin - total,
        "processor_s": time.process_time() - processor,
    }


def _disk(limits: dict[str, float], size: float) -> float:
    return size / max(limits.get("write_direct", 0), limits["write_buffered"])


def _copy(limits: dict[str, float], size: float) -> float:
    return size / limits["memcpy_warm"]


SCENARIO = Scenario(
    "W1",
    "the first save and steady saves, alone and in training",
    ("A-S", "A-M"),
    (
        Metric("call_s", "in the call", "s", _copy),
        Metric("done_s", "done as it is", "s"),
        Metric("durable_s", "durable", "s", _disk),
        Metric("slowdown_s", "stall", "s", _copy),
        Metric("guard_s", "guard", "s"),
        Metric("drain_s", "drain", "s"),
        Metric("processor_s", "processors", "s"),
        Metric("step_s", "a step without", "s"),
        Metric("saves", "saves", ""),
        Metric("rss_extra_bytes", "rss_extra", "B", lambda limits, size: size),
        Metric("put_bytes", "bytes put", "B", lambda limits, size: size),
        Metric("first_put_bytes", "of the first", "B"),
    ),
    jobs,
    run,
    chart=("training", "slowdown_s"),
)
