"""Runs the scenarios of programs/dcp_worlds.py, several in one process, since importing torch takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from children import environment

PROGRAM = Path(__file__).parent / "programs" / "dcp_worlds.py"


def worlds(folder: Path, *scenarios: str) -> tuple[set[str], str]:
    """The scenarios that ended well, and everything that was printed."""
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *scenarios],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        timeout=600,
        check=False,
    )
    ended = {line.split()[1] for line in run.stdout.splitlines() if line.startswith("ok ")}
    return ended, run.stdout
