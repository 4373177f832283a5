"""Several ranks save without a pause, and one of them dies by SIGKILL at any moment: what is restored after that is one
step, the same on every rank, to the bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import children
import lastgood as lg
import pytest

RANKS = 3
ATTEMPTS = 40 if os.environ.get("LASTGOOD_SLOW") else 6


class Torn(AssertionError):
    """The ranks went on from different steps, or from bytes that are not those of their step."""


def attempt(how: str, store: Path, number: int, draw: random.Random) -> int:
    """Starts all ranks, kills one at a moment that ``draw`` chooses and then the others, and gives the step at which
    they began."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(children.PROGRAMS / "saving_ranks.py"), how, str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=children.environment(
                RANK=str(rank), WORLD_SIZE=str(RANKS), LASTGOOD_INCARNATION=f"attempt-{number}"
            ),
        )
        for rank in range(RANKS)
    ]
    try:
        lines = [rank.stdout.readline() for rank in ranks if rank.stdout is not None]
        whole = all(line.startswith("at ") for line in lines)
        if whole:
            time.sleep(draw.uniform(0.0, 0.6))
            ranks[draw.randrange(RANKS)].kill()
            time.sleep(draw.choice([0.0, 0.05, 0.3]))
    finally:
        for rank in ranks:
            rank.kill()
        said = [rank.communicate()[1] for rank in ranks]
    if not whole:
        raise Torn("\n".join(said))
    began = {int(line.split()[1]) for line in lines}
    if len(began) != 1:
        raise Torn(f"the ranks began at the steps {sorted(began)}")
    return began.pop()


def attack(how: str, store: Path, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [attempt(how, store, number, draw) for number in range(ATTEMPTS)]


def test_every_rank_goes_on_from_the_same_whole_step(tmp_path: Path) -> None:
    began = attack("lastgood", tmp_path, 5)
    assert began == sorted(began) and began[-1] > 0, began
    with lg.open(tmp_path, {}, rng=False) as run:
        steps = [checkpoint.step for checkpoint in run.history()]
        assert steps == sorted(set(steps)) and steps[-1] >= began[-1]
        run.verify()


def test_the_attack_tears_ranks_that_save_by_themselves(tmp_path: Path) -> None:
    with pytest.raises(Torn):
        attack("alone", tmp_path, 5)
