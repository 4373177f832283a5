"""One rank that saves without a pause: `saving_ranks.py HOW STORE`, ended by whoever started it.

Prints `at STEP` for what it was restored to, checks that it is the state of that step, and goes on. HOW is `lastgood`,
or `alone`: each rank keeps its state in files of its own, as many training programs do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lastgood as lg
import numpy as np

ELEMENTS = 60_000


def own(rank: int, step: int) -> np.ndarray:
    """What this rank alone holds at ``step``: float64."""
    return np.random.default_rng([rank, step]).random(ELEMENTS)


def shared(step: int) -> np.ndarray:
    """What all ranks hold at ``step``: float32."""
    return np.full(ELEMENTS, step, dtype=np.float32)


def check(rank: int, step: int, state: dict[str, np.ndarray]) -> None:
    if step:
        assert state["own"].tobytes() == own(rank, step).tobytes(), f"rank {rank}: own at {step}"
        assert state["shared"].tobytes() == shared(step).tobytes(), f"rank {rank}: shared at {step}"
    print("at", step, flush=True)


def with_lastgood(store: str, rank: int) -> None:
    mine = {"x": own(rank, 0)}
    ours = {"x": shared(0)}
    state = {"own": mine, "shared": lg.Durable(ours, ranks="same")}
    run = lg.open(store, state, rng=False)
    step = run.restore()
    check(rank, step, {"own": mine["x"], "shared": ours["x"]})
    before = None
    while True:
        step += 1
        mine["x"][:] = own(rank, step)
        ours["x"][:] = shared(step)
        handle = run.save(step)
        # One is on its way while the next is computed.
        if before is not None:
            before.durable.result(60)
        before = handle


def alone(store: str, rank: int) -> None:
    folder = Path(store) / f"rank{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    step = max((int(path.stem) for path in folder.glob("*.npz")), default=0)
    if step:
        with np.load(folder / f"{step}.npz") as found:
            check(rank, step, dict(found))
    else:
        check(rank, 0, {})
    while True:
        step += 1
        np.savez(folder / f"{step}.npz", own=own(rank, step), shared=shared(step))


if __name__ == "__main__":
    {"lastgood": with_lastgood, "alone": alone}[sys.argv[1]](sys.argv[2], int(os.environ["RANK"]))
