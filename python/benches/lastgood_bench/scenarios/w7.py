"""W7: growth: with the history of a run, the tensors of a state, and the shards of a save."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lastgood as lg
import torch
from torch import nn

from lastgood_bench import measure, stats, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.live import State
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.ways import WAYS

#: A state of which every save changes a part: 4 MiB, and one of its 64 tensors.
PARTS, PART = 64, 16384
#: Saves that a point of the history is the median of.
AROUND = 5
#: Tensors of an optimizer for each layer: two parameters, each with two moments and a count of steps.
A_LAYER = 8
#: Ways whose cost by tensors is measured.
BY_TENSORS = ("lastgood", "lastgood strict", "torch.save", "safetensors", "dcp")


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    yield base.job(plan, "W7", state, "lastgood", "history", 0)
    for rep in range(plan.reps):
        for name in base.in_turn(plan, [n for n in BY_TENSORS if n in plan.ways], rep):
            yield base.job(plan, "W7", state, name, "tensors", rep)
        for name in ("lastgood", "lastgood strict"):
            if name in plan.ways:
                yield base.job(plan, "W7", state, name, "optimizer", rep)
        yield base.job(plan, "W7", state, "lastgood", "shards", rep)


def run(job: Job, records: Records) -> None:
    measured: dict[str, Callable[[Job, Records], None]] = {
        "history": _history,
        "tensors": _tensors,
        "optimizer": _optimizer,
        "shards": _shards,
    }
    measured[job.case](job, records)


def _powers(most: int, least: int = 10) -> list[int]:
    """The powers of 10 from ``least`` to ``most``."""
    return [10**k for k in range(1, 8) if least <= 10**k <= most]


def _fit(records: Records, case: str, metric: str, x: list[int], y: list[float]) -> None:
    if len(x) > 1:
        records.add(f"{case}: exponent", metric, stats.exponent(x, y))


def _history(job: Job, records: Records) -> None:
    parts = {f"part{i:02}": torch.full((PART,), float(i)) for i in range(PARTS)}
    folder = Path(job.work) / "saves"
    run = lg.open(str(folder), {"parts": parts})
    points = _powers(job.options["history"])
    found: dict[str, list[float]] = {}
    saved, size, recent = 0, 0, [0.0]
    for point in points:
        while saved < point:
            saved += 1
            parts[f"part{saved % PARTS:02}"].add_(1.0)
            if saved > point - AROUND:
                size = measure.bytes_in(folder)
            begin = time.perf_counter()
            run.save(saved, block=True)
            recent = [*recent, time.perf_counter() - begin][-AROUND:]
        costs = {"durable_s": statistics.median(recent)}
        costs["put_bytes"] = measure.bytes_in(folder) - size
        run.close()
        begin = time.perf_counter()
        run = lg.open(str(folder), {"parts": parts})
        costs["open_s"] = time.perf_counter() - begin
        begin = time.perf_counter()
        listed = len(run.history())
        costs["list_s"] = time.perf_counter() - begin
        if listed != saved:
            raise tensors.Differs(f"{listed} checkpoints are listed of {saved}")
        expected = tensors.digest(parts)
        tensors.clear(parts)
        begin = time.perf_counter()
        run.restore()
        costs["load_s"] = time.perf_counter() - begin
        tensors.compare(expected, parts, job.way)
        for metric, value in costs.items():
            records.add(f"history: {point} checkpoints", metric, value)
            found.setdefault(metric, []).append(value)
    run.close()
    for metric, values in found.items():
        _fit(records, "history", metric, points, values)


def _tensors(job: Job, records: Records) -> None:
    """Tensors of 64 bytes in a dict."""
    points = _powers(job.options["tensors"], 100)
    found: dict[str, list[float]] = {}
    for point in points:
        parts = {f"t{i:07}": part for i, part in enumerate(torch.rand(point * 16).split(16))}
        state = State("", {"tensors": parts}, lambda: None, lambda: None)
        way = WAYS[job.way](Path(job.work) / str(point), state)
        costs = _saves(way, lambda: None)
        costs["put_each_bytes"] = (measure.bytes_in(way.folder) - 64 * point) / point
        flat = {name: tensor.clone() for name, tensor in state.flat().items()}
        expected, layout = tensors.digest(flat), tensors.layout_of(flat)
        tensors.clear(parts)
        begin = time.perf_counter()
        loaded = way.load(2, layout)
        tensors.touch(loaded)
        costs["load_s"] = time.perf_counter() - begin
        tensors.compare(expected, loaded, job.way)
        way.close()
        _note(records, f"tensors: {point}", costs, found)
    for metric, values in found.items():
        if min(values) > 0:
            _fit(records, "tensors", metric, points, values)


def _saves(way: Any, update: Callable[[], None]) -> dict[str, float]:
    """Two saves; what the second one costs."""
    found: dict[str, float] = {}
    way.open()
    for number in (1, 2):
        way.forget(number - 1)
        begin, processor = time.perf_counter(), time.thread_time()
        way.save(number)
        found["call_s"] = time.perf_counter() - begin
        found["call_processor_s"] = time.thread_time() - processor
        way.guard()
        way.finish()
        if not way.syncs:
            measure.sync(way.folder)
        found["durable_s"] = time.perf_counter() - begin
        update()
    return found


def _note(
    records: Records, case: str, costs: dict[str, float], found: dict[str, list[float]]
) -> None:
    for metric, value in costs.items():
        records.add(case, metric, value)
        found.setdefault(metric, []).append(value)


def _optimizer(job: Job, records: Records) -> None:
    """Parameters of 4 and 16 elements with AdamW's moments: what `lastgood` copies behind the call."""
    points = _powers(min(job.options["tensors"], 100_000), 1000)
    found: dict[str, list[float]] = {}
    for point in points:
        blocks = [
            nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
            for _ in range(point // (5 * A_LAYER))
        ]
        model = nn.Sequential(*blocks)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        state = State("", {"model": model, "optimizer": optimizer}, lambda: None, optimizer.step)
        way = WAYS[job.way](Path(job.work) / str(point), state)
        _note(records, f"optimizer: {point} tensors", _saves(way, optimizer.step), found)
        way.close()
    for metric, values in found.items():
        _fit(records, "optimizer", metric, points, values)


#: A rank of a save of many shards: no framework, since 64 of them share a few cores.
RANK = """
import sys, time
import numpy as np
import lastgood as lg
folder, saves, elements = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
state = {"part": {"values": np.zeros(elements, np.float32)}}
run = lg.open(folder, state, journal=False, rng=False, preflight="off")
for step in range(1, saves + 1):
    print("ready", flush=True)
    sys.stdin.readline()
    state["part"]["values"] += 1
    begin = time.perf_counter()
    run.save(step, block=True)
    print(time.perf_counter() - begin, flush=True)
run.close()
"""


def _shards(job: Job, records: Records) -> None:
    """4 MiB over so many ranks: the slowest one's save, until it is committed."""
    points = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= job.options["shards"]]
    slowest = []
    for point in points:
        folder = Path(job.work) / str(point)
        slowest.append(_of_ranks(folder, point))
        records.add(f"shards: {point}", "durable_s", slowest[-1])
    _fit(records, "shards", "durable_s", points, slowest)


def _of_ranks(folder: Path, size: int, saves: int = 3) -> float:
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", RANK, str(folder), str(saves), str((1 << 20) // size)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(size), "LASTGOOD_INCARNATION": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        taken = []
        for _ in range(saves):
            for rank in ranks:
                _line(rank)
            for rank in ranks:
                assert rank.stdin is not None
                rank.stdin.write("\n")
                rank.stdin.flush()
            taken.append(max(float(_line(rank)) for rank in ranks))
        for rank in ranks:
            if rank.wait() != 0:
                raise RuntimeError(f"a rank of {size} ended with {rank.returncode}")
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return statistics.median(taken)


def _line(rank: subprocess.Popen[str]) -> str:
    assert rank.stdout is not None
    line = rank.stdout.readline()
    if not line:
        raise RuntimeError("a rank ended before its save; its message is above")
    return line


SCENARIO = Scenario(
    "W7",
    "growth with the history, the tensors and the shards",
    ("-",),
    (
        Metric("call_s", "in the call", "s"),
        Metric("call_processor_s", "its processor", "s"),
        Metric("durable_s", "durable", "s"),
        Metric("put_bytes", "bytes put", "B"),
        Metric("put_each_bytes", "bytes a tensor above its own", "B"),
        Metric("open_s", "open", "s"),
        Metric("list_s", "list", "s"),
        Metric("load_s", "load", "s"),
    ),
    jobs,
    run,
    chart=("tensors: 10000", "call_s"),
)
