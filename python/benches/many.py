"""What a call of `Run.save` costs by the number of tensors, when their bytes are few: names, shapes and addresses.

``many.py [--tensors 1000 10000 100000] [--saves 9]``: AdamW over small parameters, a weight and a bias a layer and five
layers a block, so that each parameter of 4 or 16 elements has two moments and a count of steps. For each way of
saving: the median of the wall time and of the processor time of the calling thread, by the tensors, and how much that
is for each tensor. The ways: ``overlapped`` (parameters and moments are copied behind the call), ``strict``
(``overlap=False``: copied in the call), and ``plain`` (the same tensors as a dict, which nothing is known of).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import lastgood as lg
import torch
from torch import nn

#: The tensors of a linear layer with a bias: two parameters, each with two moments and a count of steps.
A_LAYER = 8
WAYS = ("overlapped", "strict", "plain")


def build(tensors: int) -> dict[str, Any]:
    """A model and its optimizer of about so many tensors, after a step."""
    blocks = [
        nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
        for _ in range(max(1, tensors // (5 * A_LAYER)))
    ]
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def flat(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors in a dict."""
    tensors = dict(state["model"].state_dict())
    for i, values in enumerate(state["optimizer"].state.values()):
        tensors.update({f"{i}.{key}": value for key, value in values.items()})
    return {"tensors": tensors}


def measure(way: str, state: dict[str, Any], saves: int) -> tuple[list[float], list[float]]:
    """The wall and the processor seconds of each call but the first."""
    given = flat(state) if way == "plain" else state
    wall, processor = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        lg.open(folder, given, overlap=way == "overlapped") as run,
    ):
        for step in range(saves + 1):
            begin = time.perf_counter(), time.thread_time()
            handle = run.save(step)
            wall.append(time.perf_counter() - begin[0])
            processor.append(time.thread_time() - begin[1])
            handle.durable.result()
            if way != "plain":
                state["optimizer"].step()
    return wall[1:], processor[1:]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tensors", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments.add_argument("--saves", type=int, default=9)
    arguments.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    asked = arguments.parse_args()
    print("tensors  way             wall ms  processor ms  us a tensor")
    for tensors in asked.tensors:
        state = build(tensors)
        count = len(flat(state)["tensors"])
        for way in asked.ways:
            wall, processor = map(statistics.median, measure(way, state, asked.saves))
            each = processor / count * 1e6
            print(f"{count:7}  {way:12} {wall * 1e3:10.1f} {processor * 1e3:13.1f} {each:12.2f}")


if __name__ == "__main__":
    main()
