"""W2: saves of several ranks, each with its part of every tensor, until the checkpoint of all is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lastgood as lg
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from lastgood_bench import measure, ranks, states, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.tensors import Flat, nested

#: Ways that know ranks; the others save what one process has.
WAYS = ("lastgood", "dcp", "dcp async")
SAVES = 3
#: How the state is saved, and how it is restored: ranks and layout.
RESHARDS = {
    "4 to 4": ((4, "rows"), (4, "rows")),
    "4 to 2": ((4, "rows"), (2, "rows")),
    "2 to 3": ((2, "rows"), (3, "rows")),
    "4 rows to columns": ((4, "rows"), (4, "columns")),
}


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [name for name in WAYS if name in plan.ways]
    most = plan.options["ranks"]
    for rep in range(plan.reps):
        for layout in ("rows", "columns"):
            for size in (n for n in (1, 2, 4, 8) if n <= most):
                for name in base.in_turn(plan, names, rep):
                    yield base.job(plan, "W2", state, name, f"{layout}: {size} ranks", rep)
        for case in RESHARDS if most >= 4 else ():
            for name in base.in_turn(plan, [n for n in names if n != "dcp async"], rep):
                yield base.job(plan, "W2", state, name, f"restore: {case}", rep)


def run(job: Job, records: Records) -> None:
    # One thread, for ranks are forks; and since they share the cores.
    torch.set_num_threads(1)
    flat = states.build(job.state, Path(job.cache)).flat()
    work = Path(job.work)
    kind, _, case = job.case.partition(": ")
    if kind == "restore":
        (saved, loaded) = RESHARDS[case]
        ranks.run(saved[0], work / "save", lambda _: _saves(job, flat, saved[1], 1))
        measure.evict(work / "saves")
        taken = ranks.run(loaded[0], work / "load", lambda _: _restore(job, flat, loaded[1]))
        records.add(job.case, "load_s", max(taken))
        return
    size = int(case.split()[0])
    taken = ranks.run(size, work / "save", lambda _: _saves(job, flat, kind, SAVES))
    # The slowest rank's; the first save has touched all memory.
    for number in range(1, SAVES):
        records.add(job.case, "durable_s", max(rank[number][1] for rank in taken))
        records.add(job.case, "call_s", max(rank[number][0] for rank in taken))
    back = ranks.run(size, work / "load", lambda _: _restore(job, flat, kind, SAVES))
    records.add(job.case, "load_s", max(back))


def _moved(flat: Flat, number: int) -> Flat:
    """The state of a save: of each another one, as of steps."""
    floats = {n: t for n, t in flat.items() if t.is_floating_point()}
    return flat | {name: tensor + number * 1e-6 for name, tensor in floats.items()}


def _saves(job: Job, flat: Flat, layout: str, saves: int) -> list[tuple[float, float]]:
    """Of each save the seconds until the call returned, and until the checkpoint of all ranks was there."""
    folder = str(Path(job.work) / "saves")
    sharded = ranks.shard(_moved(flat, 1), layout)
    run: Any = None
    if job.way == "lastgood":
        never = lg.Policy(at=[2**62])
        run = lg.open(folder, {"state": sharded}, policy=never, rng=False, preflight="off")
    taken = []
    for number in range(1, saves + 1):
        if number > 1:
            with torch.no_grad():
                for name, tensor in _moved(flat, number).items():
                    part = ranks.shard({name: tensor}, layout)[name].to_local()
                    sharded[name].to_local().copy_(part)
        dist.barrier()
        begin = time.perf_counter()
        if run is not None:
            handle = run.save(number)
            called = time.perf_counter() - begin
            handle.durable.result()
        elif job.way == "dcp":
            dcp.save(nested(sharded), checkpoint_id=f"{folder}/{number}")
            called = time.perf_counter() - begin
        else:
            pending = dcp.async_save(nested(sharded), checkpoint_id=f"{folder}/{number}")
            called = time.perf_counter() - begin
            pending.result()
        taken.append((called, time.perf_counter() - begin))
    if run is not None:
        run.close()
    return taken


def _restore(job: Job, flat: Flat, layout: str, number: int = 1) -> float:
    """The seconds of a restore into parts that are there, after which every rank compares its own."""
    folder = str(Path(job.work) / "saves")
    sharded = ranks.shard(_moved(flat, number), layout)
    expected = tensors.digest(ranks.local(sharded))
    ranks.clear(sharded)
    run: Any = None
    if job.way == "lastgood":
        never = lg.Policy(at=[2**62])
        run = lg.open(folder, {"state": sharded}, policy=never, rng=False, preflight="off")
    dist.barrier()
    begin = time.perf_counter()
    if run is not None:
        run.restore(at=number)
    else:
        dcp.load(nested(sharded), checkpoint_id=f"{folder}/{number}")
    seconds = time.perf_counter() - begin
    tensors.compare(expected, ranks.local(sharded), job.way)
    if run is not None:
        run.close()
    return seconds


SCENARIO = Scenario(
    "W2",
    "several ranks, the slowest one's time until the checkpoint of all is there; restores on other ranks, cold",
    ("A-S", "A-M"),
    (
        Metric("call_s", "in the call", "s"),
        Metric("durable_s", "durable", "s"),
        Metric("load_s", "load", "s"),
    ),
    jobs,
    run,
    chart=("rows: 4 ranks", "durable_s"),
)
