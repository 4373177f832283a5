"""A rank that crashes leaves what it has captured with ``lastgood run``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import children

PROGRAM = children.PROGRAMS / "crashing.py"


def job(store: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    """Runs the program under supervision, and gives what it printed."""
    supervised = ["run", "--store", str(store), "--run", "job", *options, "--"]
    command = [sys.executable, "-m", "lastgood", *supervised, sys.executable, str(PROGRAM)]
    ran = subprocess.run(
        [*command, str(store), *words],
        env=children.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_state_that_outlived_its_process_is_not_read_from_the_store(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", "6", "0")
    crashed = job(tmp_path / "crashed", "6", "5")
    off = job(tmp_path / "off", "6", "5", options=("--memory", "off"))
    assert re.findall(r"from \d+, \d+ bytes read", crashed) == [
        "from 0, 0 bytes read",
        "from 4, 0 bytes read",
    ]
    assert re.search(r"from 4, [1-9]\d{5,} bytes read", off), off
    sums = [re.findall(r"sum .*", said)[-1] for said in (whole, crashed, off)]
    assert len(set(sums)) == 1, sums


def test_a_second_run_of_a_process_has_memory_of_its_own(tmp_path: Path) -> None:
    said = job(tmp_path / "store", "2", "0", "--twice")
    assert "another process has taken the memory" in said
    assert "from 0" in said
