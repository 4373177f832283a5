"""What saving costs a training loop: lastgood's overlapped saves against DCP's async_save, interleaved in one process.

``stall.py [--megabytes 400] [--saves 4] [--reps 3]``: a model of linear layers with AdamW (weights and two moments, as
A-M of BENCHMARKS has them), each step a forward and backward pass of matrix products. For each way: the time of a loop
with saves less the time of the loop without, divided by the saves (total slowdown), and the time inside of the call.
Also the cost of `run.step` that does not save, and of `Run.save` with many small tensors. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lastgood as lg
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

WIDTH = 1024


def build(megabytes: int) -> tuple[nn.Module, Any]:
    layers = max(1, megabytes * 2**20 // 12 // (WIDTH * WIDTH))
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def train(model: nn.Module, optimizer: Any, rows: int) -> None:
    model(torch.ones(rows, WIDTH)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def loop(
    steps: int, every: int, step: Callable[[], None], save: Callable[[int], None] | None
) -> tuple[float, float]:
    begin, inside = time.perf_counter(), 0.0
    for number in range(1, steps + 1):
        step()
        if save is not None and number % every == 0:
            called = time.perf_counter()
            save(number)
            inside += time.perf_counter() - called
    return time.perf_counter() - begin, inside


def compare(asked: Any) -> None:
    model, optimizer = build(asked.megabytes)
    train(model, optimizer, asked.rows)
    every, steps = asked.every, asked.every * asked.saves
    pending: list[Any] = []
    numbers = iter(range(10**9))
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        run = lg.open(f"{folder}/lastgood", {"model": model, "optimizer": optimizer})

        def by_lastgood(_: int) -> None:
            run.save(next(numbers))

        def by_dcp(_: int) -> None:
            if pending:
                pending.pop().result()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            pending.append(dcp.async_save(state, checkpoint_id=f"{folder}/dcp{next(numbers)}"))

        def step() -> None:
            train(model, optimizer, asked.rows)

        ways: dict[str, Any] = {"none": None, "lastgood": by_lastgood, "dcp": by_dcp}
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for repetition in range(asked.reps + 1):
            for way, save in ways.items():
                measured = loop(steps, every, step, save)
                # What is still under way is not to slow down the next one. The first round warms up.
                if run._copying is not None or way == "lastgood":
                    run.save(next(numbers), block=True)
                while pending:
                    pending.pop().result()
                if repetition:
                    found[way].append(measured)
        run.close()
    base = statistics.median(total for total, _ in found["none"])
    print(
        f"state {asked.megabytes} MB, {steps} steps of {base / steps * 1e3:.0f} ms, {asked.saves} saves a loop"
    )
    slowdowns = {}
    for way in ("lastgood", "dcp"):
        total = statistics.median(t for t, _ in found[way])
        inside = statistics.median(i for _, i in found[way])
        slowdowns[way] = (total - base) / asked.saves
        print(
            f"{way:10} {slowdowns[way] * 1e3:8.1f} ms a save in all, {inside / asked.saves * 1e3:8.1f} ms in the call"
        )
    print(f"ratio      {slowdowns['dcp'] / max(slowdowns['lastgood'], 1e-9):8.1f}")


def small(count: int) -> None:
    module = nn.ParameterList([nn.Parameter(torch.ones(16)) for _ in range(count)])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module:
        parameter.grad = torch.ones(16)
    optimizer.step()
    with (
        tempfile.TemporaryDirectory() as folder,
        lg.open(
            folder, {"model": module, "optimizer": optimizer}, policy=lg.Policy(at=[10**9])
        ) as run,
    ):
        times = []
        for step in range(6):
            begin = time.perf_counter()
            handle = run.save(step)
            times.append(time.perf_counter() - begin)
            handle.durable.result()
        print(f"{2 * count:6} tensors: {statistics.median(times) * 1e3:.1f} ms in Run.save")
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
    arguments.add_argument("--folder", default=None)
    asked = arguments.parse_args()
    for count in (500, 5000):
        small(count)
    compare(asked)


if __name__ == "__main__":
    main()
