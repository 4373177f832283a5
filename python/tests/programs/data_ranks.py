"""One rank that takes samples and saves at every step: `data_ranks.py STORE LOG`.

Writes a line `STEP EPOCH SAMPLE…` for every step into LOG, before it saves the step. The samples
are 26 numbers, in global batches of 8, over 3 epochs."""

from __future__ import annotations

import sys
from pathlib import Path

import lastgood as lg


def main(store: str, log: str) -> None:
    """Takes what is left of the epochs."""
    batches = lg.data.loader(
        lg.data.Sampler(26, seed=11, batch_size=8, drop_last=False, allow_empty=True)
    )
    state = {"loader": batches, "progress": {"epochs_ended": 0}}
    progress = state["progress"]
    with lg.open(store, state, rng=False) as run, Path(log).open("a", encoding="ascii") as lines:
        step = run.restore()
        for _ in range(batches.epoch, 3):
            for batch in batches:
                step += 1
                samples = " ".join(str(int(sample)) for sample in batch)
                lines.write(f"{step} {batches.epoch} {samples}\n")
                lines.flush()
                run.save(step, block=True)
            progress["epochs_ended"] += 1
        lines.write(f"end {progress['epochs_ended']}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
