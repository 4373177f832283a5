"""What saving costs a training loop: lastgood's overlapped saves against DCP's async_save, interleaved in one process.

``stall.py [--megabytes 400] [--saves 3] [--every 10] [--reps 3]``: a model of linear layers with AdamW (weights and two
moments, as A-M of BENCHMARKS has them), each step a forward and backward pass of matrix products. Each way has loops of
its own in turn with the others', on the same state, into a new folder of one disk, after a save that warms up; each
saves after the first of every so many steps, so that the steps behind it pay for what goes on behind the call. A loop
ends with its last step; what is then not durable yet is waited for, and told as ``drain``. Both sync their files.

For each way: the time of a loop less that of the loops without saves beside it, divided by the saves (the total
slowdown); the time inside of the call; the processor time of all threads above that of the loop without, drain
included. ``dcp-cached`` is DCP with memory for its copies that it keeps between saves. Medians, and every loop on
request (``--all``), since a busy machine shows in their spread.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lastgood as lg
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

WIDTH = 1024
WAYS = ("lastgood", "dcp", "dcp-cached")


def build(megabytes: int) -> tuple[nn.Module, Any]:
    layers = max(1, megabytes * 2**20 // 12 // (WIDTH * WIDTH))
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


class Nothing:
    """No saves: what the others are compared with."""

    def save(self, step: int) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Lastgood:
    def __init__(self, folder: str, model: nn.Module, optimizer: Any) -> None:
        self.run = lg.open(folder, {"model": model, "optimizer": optimizer})
        self.last: Any = None

    def save(self, step: int) -> None:
        self.last = self.run.save(step)

    def drain(self) -> None:
        self.last.durable.result()

    def close(self) -> None:
        self.run.close()


class Dcp:
    def __init__(self, folder: str, model: nn.Module, optimizer: Any, cached: bool) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        # Pinned memory is of no use without a device.
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self.stager = DefaultStager(options) if cached else None
        self.pending: Any = None

    def save(self, step: int) -> None:
        # One save in flight, as with lastgood.
        self.drain()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        saved = dcp.async_save(
            state, checkpoint_id=f"{self.folder}/{step}", async_stager=self.stager
        )
        self.pending = getattr(saved, "upload_completion", saved)

    def drain(self) -> None:
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        self.drain()


@dataclass
class Loop:
    """The seconds of a loop, of its calls, of waiting at its end, and of all processors."""

    total: float
    inside: float
    drain: float
    processor: float


def loop(steps: int, every: int, step: Callable[[], None], way: Any) -> Loop:
    processor, begin, inside = time.process_time(), time.perf_counter(), 0.0
    for number in range(1, steps + 1):
        step()
        if number % every == 1:
            called = time.perf_counter()
            way.save(number)
            inside += time.perf_counter() - called
    total = time.perf_counter() - begin
    way.drain()
    drain = time.perf_counter() - begin - total
    return Loop(total, inside, drain, time.process_time() - processor)


def compare(asked: Any) -> None:
    model, optimizer = build(asked.megabytes)

    def step() -> None:
        model(torch.ones(asked.rows, WIDTH)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = asked.every * asked.saves
    ways: list[str] = ["none", *asked.ways]
    found: dict[str, list[Loop]] = {name: [] for name in ways}
    step()
    for repetition in range(asked.reps):
        # Each way comes first, second, … in turn.
        for name in ways[repetition % len(ways) :] + ways[: repetition % len(ways)]:
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                way = make(name, folder, model, optimizer)
                step()
                way.save(0)
                way.drain()
                os.sync()
                found[name].append(loop(steps, asked.every, step, way))
                way.close()
                shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            if asked.all:
                print(f"  {name:10} {found[name][-1]} load {os.getloadavg()[0]:.1f}", flush=True)
    show(asked, found, steps)


def make(name: str, folder: str, model: nn.Module, optimizer: Any) -> Any:
    if name == "none":
        return Nothing()
    if name == "lastgood":
        return Lastgood(folder, model, optimizer)
    return Dcp(folder, model, optimizer, cached=name == "dcp-cached")


def show(asked: Any, found: dict[str, list[Loop]], steps: int) -> None:
    base = statistics.median(one.total for one in found["none"])
    cores = len(os.sched_getaffinity(0))
    print(
        f"state {asked.megabytes} MB, {steps} steps of {base / steps * 1e3:.0f} ms, {asked.saves} saves a loop, "
        f"{asked.reps} loops; {torch.get_num_threads()} threads of torch on {cores} cores"
    )
    print(
        "way         slowdown ms  in the call ms  drain ms  processor ms   (a save; drain: a loop)"
    )
    slowdowns = {}
    for name in asked.ways:
        # Loops of one repetition ran beside each other, so that a busy machine slows both.
        pairs = list(zip(found[name], found["none"], strict=True))
        slowdown, processor = (
            statistics.median(getattr(a, field) - getattr(b, field) for a, b in pairs) / asked.saves
            for field in ("total", "processor")
        )
        inside = statistics.median(one.inside for one in found[name]) / asked.saves
        drain = statistics.median(one.drain for one in found[name])
        slowdowns[name] = slowdown
        print(
            f"{name:10} {slowdown * 1e3:12.0f} {inside * 1e3:15.1f} {drain * 1e3:9.0f} {processor * 1e3:13.0f}"
        )
    for name in asked.ways[1:]:
        ratio = slowdowns[name] / max(slowdowns[asked.ways[0]], 1e-9)
        print(f"{name} / {asked.ways[0]}: {ratio:.1f}")


def idle() -> None:
    """A step that does not save."""
    with (
        tempfile.TemporaryDirectory() as folder,
        lg.open(folder, {"x": {"y": 1}}, policy=lg.Policy(at=[10**9])) as run,
    ):
        begin = time.perf_counter()
        for step in range(10_000):
            run.step(step, loss=0.5)
        print(f"run.step without a save: {(time.perf_counter() - begin) / 10_000 * 1e6:.2f} us")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--megabytes", type=int, default=400)
    arguments.add_argument("--saves", type=int, default=3)
    arguments.add_argument("--every", type=int, default=10)
    arguments.add_argument("--rows", type=int, default=128)
    arguments.add_argument("--reps", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=None)
    arguments.add_argument("--folder", default=None)
    arguments.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    arguments.add_argument("--all", action="store_true")
    asked = arguments.parse_args()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    idle()
    compare(asked)


if __name__ == "__main__":
    main()
