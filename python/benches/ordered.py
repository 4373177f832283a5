"""What a sum in the order of the ranks costs beside a plain all-reduce.

``ordered.py [--processes 2] [--elements 1000000 25000000] [--rounds 9]``: float32 over gloo, each process one logical
rank and then two. The ways take turns in each round, and every process waits for the others before each: medians of
what rank 0 measured, and how many times as long as ``all_reduce`` it takes. That is called in place, and so is
``ordered``; ``ordered, new`` makes a tensor for the sum. The two logical ranks of a process are added before
``all_reduce``, as an accumulation of gradients does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import lastgood as lg
import torch
import torch.distributed as dist
import torch.multiprocessing as processes_of_torch


def ways(elements: int) -> dict[str, Callable[[], object]]:
    """What is measured, by its name."""
    # Sums of nothing stay small, however often they are added.
    parts = [torch.zeros(elements) for _ in range(2)]

    def all_reduce_of_2() -> None:
        parts[0].add_(parts[1])
        dist.all_reduce(parts[0])

    ordered = lg.torch.ordered_all_reduce
    return {
        "all_reduce": lambda: dist.all_reduce(parts[0]),
        "ordered": lambda: ordered(parts[0], out=parts[0]),
        "ordered, new": lambda: ordered(parts[0]),
        "all_reduce of 2": all_reduce_of_2,
        "ordered of 2": lambda: ordered(parts, out=parts[0]),
    }


def measure(rank: int, folder: str, processes: int, sizes: list[int], rounds: int) -> None:
    """One process."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    where = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=processes)
    for elements in sizes:
        taken: dict[str, list[float]] = {}
        measured = ways(elements)
        for _ in range(rounds + 1):
            for name, way in measured.items():
                dist.barrier()
                begin = time.perf_counter()
                way()
                taken.setdefault(name, []).append(time.perf_counter() - begin)
        for name, seconds in taken.items() if rank == 0 else ():
            median = statistics.median(seconds[1:])
            base = "all_reduce of 2" if name.endswith("of 2") else "all_reduce"
            beside = statistics.median(taken[base][1:])
            print(
                f"{elements:10}  {name:16} {median * 1e3:9.2f} {median / beside:7.2f}", flush=True
            )
    dist.destroy_process_group()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--elements", type=int, nargs="+", default=[1_000_000, 25_000_000])
    arguments.add_argument("--rounds", type=int, default=9)
    asked = arguments.parse_args()
    print("  elements  way               ms      times", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        given = (folder, asked.processes, asked.elements, asked.rounds)
        processes_of_torch.spawn(measure, given, asked.processes)


if __name__ == "__main__":
    main()
