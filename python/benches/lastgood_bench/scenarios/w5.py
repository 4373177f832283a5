"""W5: restores of a part: one tensor, shares of the bytes, a range of rows."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

from lastgood_bench import measure, states, stats, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.scenarios import base, w4
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.tensors import Flat, Layout
from lastgood_bench.ways import Way

SHARES = (1, 10, 25, 50, 100)
#: So many-th of a tensor's rows are read by the range.
RANGE = 16


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [name for name, found in plan.ways.items() if found.picks]
    for name in w4.savers(plan, names):
        made = base.job(plan, "W5", state, name, "save", 0)
        made.kept = w4.kept(plan, state, name)
        yield made
    for rep in range(plan.reps):
        for name in base.in_turn(plan, names, rep):
            made = base.job(plan, "W5", state, name, "cold", rep)
            made.kept = w4.kept(plan, state, plan.ways[name].saved_by or name)
            yield made


def run(job: Job, records: Records) -> None:
    assert job.kept is not None
    expected = Path(job.kept) / w4.EXPECTED
    if job.case == "save":
        if not expected.exists():
            w4.save(job, records)
        return
    told = json.loads(expected.read_text())
    layout, digests = told["layout"], told["digests"]
    way = base.way(job, None, Path(job.kept) / "saves")
    # What a process does once, such as loading libraries, is not a part's.
    way.pick(1, [min(layout, key=lambda name: _bytes(layout, name))], layout)
    largest = max(layout, key=lambda name: _bytes(layout, name))
    found, *_ = _pick(way, [largest], layout, digests, records, "one tensor")
    # What maps a file keeps it in the page cache.
    whole = tensors.clone(found)
    del found
    sizes, taken = [], []
    for share in SHARES:
        names = _chosen(layout, share)
        size, seconds = _pick(way, names, layout, digests, records, f"{share} %")[1:]
        sizes.append(size / 1e9)
        taken.append(seconds)
    if len(set(sizes)) > 1:
        fixed, each = stats.line(sizes, taken)
        records.add("fit", "fixed_s", max(fixed, 0.0))
        records.add("fit", "each_gb_s", each)
    if way.slices:
        _rows(way, largest, whole, layout, records)


def _bytes(layout: Layout, name: str) -> int:
    return tensors.size_of(tensors.allocate({name: layout[name]}))


def _chosen(layout: Layout, share: int) -> list[str]:
    """Tensors in a seeded order until they are so many percent of the bytes."""
    names = sorted(layout)
    random.Random(states.SEED).shuffle(names)
    if share == 100:
        return names
    whole = sum(_bytes(layout, name) for name in names)
    found, size = [], 0
    for name in names:
        if size + _bytes(layout, name) <= whole * share / 100:
            found.append(name)
            size += _bytes(layout, name)
    return found or names[:1]


def _pick(
    way: Way,
    names: list[str],
    layout: Layout,
    digests: dict[str, str],
    records: Records,
    case: str,
) -> tuple[Flat, int, float]:
    measure.evict(way.folder)
    read, begin = measure.read_bytes(), time.perf_counter()
    found = way.pick(1, names, layout)
    tensors.touch(found)
    seconds = time.perf_counter() - begin
    size = tensors.size_of(found)
    records.add(case, "load_s", seconds)
    records.add(case, "read_amp", (measure.read_bytes() - read) / size)
    tensors.compare({name: digests[name] for name in names}, found, way.name)
    return found, size, seconds


def _rows(way: Way, name: str, whole: Flat, layout: Layout, records: Records) -> None:
    rows = layout[name][0][0]
    # A whole share of the tensor, near the range's part of it.
    each = next(n for n in range(max(1, rows // RANGE), rows + 1) if rows % n == 0)
    begin_row = (rows // each // 2) * each
    # What a process does once, such as the group that DCP asks for, is not a part's.
    way.rows(1, name, begin_row, begin_row + each, layout)
    measure.evict(way.folder)
    read, begin = measure.read_bytes(), time.perf_counter()
    found = way.rows(1, name, begin_row, begin_row + each, layout)
    tensors.touch(found)
    seconds = time.perf_counter() - begin
    records.add("rows", "load_s", seconds)
    records.add("rows", "read_amp", (measure.read_bytes() - read) / tensors.size_of(found))
    wanted = whole[name][begin_row : begin_row + each]
    tensors.compare(tensors.digest({name: wanted}), found, way.name)


SCENARIO = Scenario(
    "W5",
    "restores of a part, of files that are not in the page cache",
    ("A-S", "A-M", "SRV"),
    (
        Metric("load_s", "load", "s"),
        Metric("read_amp", "read_amp", ""),
        Metric("fixed_s", "fixed", "s"),
        Metric("each_gb_s", "for each GB", "s"),
    ),
    jobs,
    run,
    chart=("10 %", "load_s"),
)
