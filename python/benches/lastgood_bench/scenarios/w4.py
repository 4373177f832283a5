"""W4: restores of a whole state: into a fresh process and in place, of files in the page cache and of others."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from lastgood_bench import measure, states, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.live import State
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.ways import WAYS

#: Written beside what a way saved.
EXPECTED = "expected.json"


def kept(plan: Plan, state: str, way: str) -> str:
    """Where what a way saved of a state stays for the jobs that load it."""
    return str(plan.work / "kept" / state / re.sub(r"[^A-Za-z0-9.]+", "-", way))


def savers(plan: Plan, wanted: list[str]) -> list[str]:
    """The ways that save what the wanted ones load."""
    return sorted({plan.ways[name].saved_by or name for name in wanted})


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [n for n, w in plan.ways.items() if not w.ours or n in ("lastgood", "lastgood zstd:1")]
    names = [n for n in names if plan.ways[n].in_w4 and not _only_saves(plan, n)]
    for name in savers(plan, names):
        made = base.job(plan, "W4", state, name, "save", 0)
        made.kept = kept(plan, state, name)
        yield made
    for rep in range(plan.reps):
        for case in ("cold", "hot"):
            for name in base.in_turn(plan, names, rep):
                made = base.job(plan, "W4", state, name, case, rep)
                made.kept = kept(plan, state, plan.ways[name].saved_by or name)
                yield made


def _only_saves(plan: Plan, name: str) -> bool:
    """A way that only saves otherwise than another one, and loads as it does."""
    return plan.ways[name].behind and not plan.ways[name].ours


def save(job: Job, records: Records) -> None:
    """Saves a state for others to load, with the digests of what must come back."""
    assert job.kept is not None
    state = base.live(job)
    way = base.way(job, state, Path(job.kept) / "saves")
    flat = state.flat()
    free, size = shutil.disk_usage(job.kept).free, tensors.size_of(flat)
    if free < 1.5 * size:
        raise OSError(
            f"the disk has {free / 1e9:.1f} GB left, and {1.5 * size / 1e9:.1f} are needed"
        )
    told = {"digests": tensors.digest(flat), "layout": tensors.layout_of(flat)}
    way.save(1)
    way.finish()
    (Path(job.kept) / EXPECTED).write_text(json.dumps(told))
    way.close()
    measure.sync(way.folder)


def prepare(job: Job) -> None:
    """Puts what is to be loaded into the page cache, or takes it out."""
    if job.kept is not None and job.case in ("cold", "hot"):
        (measure.evict if job.case == "cold" else measure.warm)(Path(job.kept) / "saves")


def run(job: Job, records: Records) -> None:
    if job.case == "save":
        save(job, records)
        return
    assert job.kept is not None
    told = json.loads((Path(job.kept) / EXPECTED).read_text())
    layout, folder = told["layout"], Path(job.kept) / "saves"
    if WAYS[job.way].ours:
        state: State | None = states.skeleton(job.state)
    else:
        state = None
    way = base.way(job, state, folder)
    read, begin = measure.read_bytes(), time.perf_counter()
    flat = way.load(1, layout)
    tensors.touch(flat)
    ended = time.perf_counter()
    size = tensors.size_of(flat)
    records.add(f"fresh {job.case}", "load_s", ended - begin)
    if job.case == "cold":
        ready = (time.monotonic_ns() - job.spawned) / 1e9
        records.add("fresh cold", "ready_s", ready)
        records.add("fresh cold", "read_amp", (measure.read_bytes() - read) / size)
    tensors.compare(told["digests"], flat, job.way)
    # What is filled in place is a live state: of lastgood its own, of others memory of the same form.
    out = flat if state is not None else tensors.allocate(layout)
    del flat
    tensors.clear(out)
    prepare(job)
    begin = time.perf_counter()
    way.load_into(1, out)
    records.add(f"in place {job.case}", "load_s", time.perf_counter() - begin)
    tensors.compare(told["digests"], out if state is None else state.flat(), job.way)
    way.close()


def _disk(limits: dict[str, float], size: float) -> float:
    return size / limits["read_cold"]


SCENARIO = Scenario(
    "W4",
    "restores of a whole state, fresh and in place, cold and hot",
    ("A-S", "A-M"),
    (
        Metric("load_s", "load", "s"),
        Metric("ready_s", "ready since the start of the process", "s"),
        Metric("read_amp", "read_amp", ""),
    ),
    jobs,
    run,
    prepare,
    new=lambda job: job.case == "cold",
    chart=("in place cold", "load_s"),
)
