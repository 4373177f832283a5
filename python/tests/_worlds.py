"""Runs the scenarios of programs/dcp_worlds.py, several in one process, since importing torch takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import forks
from children import PROGRAMS


def worlds(folder: Path, *scenarios: str) -> tuple[set[str], str]:
    """The scenarios that ended well, and everything that was printed."""
    command = [sys.executable, str(PROGRAMS / "dcp_worlds.py"), str(folder), *scenarios]
    _, output = forks.run("torch", command, folder / "output")
    ended = {line.split()[1] for line in output.splitlines() if line.startswith("ok ")}
    return ended, output
