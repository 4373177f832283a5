"""W3: consecutive steps of training, saved every 1, 10 or 50 of them: the bytes that they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from lastgood_bench import measure, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario

EVERY = (1, 10, 50)
#: Which is the state's own: the bytes of elements that changed between two saves.
CHANGED = "changed bytes"
#: How often peers are measured: each save of a full format is like the one before it.
SAMPLES = 2
#: Above this state, in bytes, peers that store differences are measured once: they take minutes for a save.
LARGE = 600 << 20


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    for every in EVERY:
        for name, found in plan.ways.items():
            if found.saved_by is None and found.in_w3 and (found.differences or every == 1):
                yield base.job(plan, "W3", state, name, f"every {every}", 0)


def run(job: Job, records: Records) -> None:
    state = base.live(job)
    every = int(job.case.split()[1])
    size = tensors.size_of(state.flat())
    way = base.way(job, state)
    wanted = job.options["steps"] // every
    if not way.ours:
        wanted = min(wanted, 1 if way.differences and size > LARGE else SAMPLES)
    saves = base.fits(Path(job.work), wanted, size) if wanted else 0
    way.save(0)
    way.finish()
    first = written = base.put(way.folder)
    put: list[int] = []
    for number in range(1, saves + 1):
        before = tensors.clone(state.flat())
        for _ in range(every):
            state.forward()
            way.guard()
            state.update()
        expected = tensors.digest(state.flat()) if number == saves else {}
        begin = time.perf_counter()
        way.save(number)
        way.finish()
        if not way.syncs:
            measure.sync(way.folder)
        seconds = time.perf_counter() - begin
        now = base.put(way.folder)
        put.append(now - written)
        for case in _cases(job, way.differences):
            records.add(case, "durable_s", seconds)
            records.add(case, "put_bytes", put[-1])
            records.add(case, "of_raw", put[-1] / size)
        if way.ours and job.way == "lastgood":
            changed = tensors.changed_bytes(before, state.flat())
            records.add(job.case, "put_bytes", changed, way=CHANGED)
            records.add(job.case, "of_raw", changed / size, way=CHANGED)
        way.forget(number - 1)
        written = base.put(way.folder)
    if put:
        for case in _cases(job, way.differences):
            records.add(case, "saves", len(put))
            total = first + sum(put)
            records.add(case, "cumulative", total / (size * (len(put) + 1)))
        base.check(job, way, saves, state, expected)
    way.close()


def _cases(job: Job, differences: bool) -> list[str]:
    """A full format takes the same however many steps lie between two saves."""
    if differences:
        return [job.case]
    return [f"every {every}" for every in EVERY if every <= job.options["steps"]]


SCENARIO = Scenario(
    "W3",
    "consecutive steps, saved every 1, 10 or 50",
    ("A-S", "A-M", "LORA", "FRZ", "EMB", "MOE", "RL"),
    (
        Metric("put_bytes", "bytes put", "B"),
        Metric("of_raw", "of raw", ""),
        Metric("of_changed", "of changed", ""),
        Metric("cumulative", "with the first, of raw", ""),
        Metric("durable_s", "durable", "s"),
        Metric("saves", "saves", ""),
    ),
    jobs,
    run,
    chart=("every 1", "of_raw"),
)
