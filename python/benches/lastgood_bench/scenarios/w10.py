"""W10: a dump and a backup of it, as people keep many checkpoints, beside saves that know what changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lastgood_bench import measure, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario

WAYS = ("lastgood", "lastgood zstd:1", "safetensors", "safetensors + restic", "safetensors + borg")


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [name for name in WAYS if name in plan.ways]
    for rep in range(plan.reps):
        for name in base.in_turn(plan, names, rep):
            yield base.job(plan, "W10", state, name, "save", rep)


def run(job: Job, records: Records) -> None:
    """A first save, and a second one a step later."""
    state = base.live(job)
    way = base.way(job, state)
    expected: dict[str, str] = {}
    for number, case in ((1, "first"), (2, "second")):
        before = _stored(job, way)
        expected = tensors.digest(state.flat())
        begin = time.perf_counter()
        way.save(number)
        way.finish()
        if not way.syncs:
            measure.sync(way.folder)
        records.add(case, "durable_s", time.perf_counter() - begin)
        records.add(case, "put_bytes", _stored(job, way) - before)
        if number == 1:
            way.guard()
            state.step()
    records.add("second", "load_s", base.check(job, way, 2, state, expected))


def _stored(job: Job, way: base.Way) -> int:
    """The bytes that are kept: of a backup, its repository and not the dump."""
    repository = way.folder / "repository"
    return measure.bytes_in(repository if "+" in job.way else way.folder)


SCENARIO = Scenario(
    "W10",
    "a dump and a backup of it, hot",
    ("A-S", "LORA", "FRZ"),
    (
        Metric("durable_s", "durable", "s"),
        Metric("put_bytes", "bytes put", "B"),
        Metric("load_s", "load", "s"),
    ),
    jobs,
    run,
    chart=("second", "put_bytes"),
)
