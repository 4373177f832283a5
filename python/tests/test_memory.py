"""A rank that crashes leaves what it has captured with ``lastgood run``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import children
import pytest

PROGRAM = children.PROGRAMS / "crashing.py"


def job(store: Path, *words: str, options: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Runs the program under supervision; gives what its attempts said of their restores, and all that was printed."""
    supervised = ["run", "--store", str(store), "--run", "job", *options, "--"]
    command = [sys.executable, "-m", "lastgood", *supervised, sys.executable, str(PROGRAM)]
    ran = subprocess.run(
        [*command, *words],
        env=children.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return re.findall(r"from \d+, \d+ bytes read", ran.stdout), ran.stdout + ran.stderr


def digest(said: str) -> str:
    return re.findall(r"digest (\w+)", said)[-1]


@pytest.mark.parametrize("kind", ["plain", "torch"])
def test_a_state_that_outlived_its_process_is_not_read_from_the_store(
    tmp_path: Path, kind: str
) -> None:
    _, whole = job(tmp_path / "whole", "6", "0", kind)
    restores, crashed = job(tmp_path / "crashed", "6", "5", kind)
    assert restores == ["from 0, 0 bytes read", "from 4, 0 bytes read"], crashed
    restores, off = job(tmp_path / "off", "6", "5", kind, options=("--memory", "off"))
    assert re.fullmatch(r"from 4, [1-9]\d{5,} bytes read", restores[1]), off
    assert digest(whole) == digest(crashed) == digest(off)


def test_damaged_memory_is_noticed_before_a_step_is_told_and_the_store_is_read(
    tmp_path: Path,
) -> None:
    _, whole = job(tmp_path / "whole", "6", "0", "torch")
    restores, said = job(tmp_path / "store", "6", "5", "torch", "damage")
    assert len(restores) == 3, said
    assert restores[1].startswith("from 4")
    assert re.fullmatch(r"from 4, [1-9]\d{5,} bytes read", restores[2]), said
    assert "is not what was captured there" in said
    assert digest(said) == digest(whole)


def test_a_second_run_of_a_process_has_memory_of_its_own(tmp_path: Path) -> None:
    restores, said = job(tmp_path / "store", "2", "0", "twice")
    assert "another process has taken the memory" in said
    assert restores == ["from 0, 0 bytes read"]
