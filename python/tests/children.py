"""The environment of the processes that tests start: the lastgood that is tested, and nothing of a job around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lastgood

PROGRAMS = Path(__file__).parent / "programs"

#: Where the lastgood that is tested is imported from: the wheel that was installed, or the source tree.
PACKAGES = str(Path(lastgood.__file__).parent.parent)

_OF_A_JOB = (
    "LASTGOOD_STORE",
    "LASTGOOD_RUN",
    "LASTGOOD_INCARNATION",
    "LASTGOOD_HEARTBEAT",
    "LASTGOOD_MEMORY",
    "TORCHELASTIC_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "XLA_FLAGS",
)


def environment(*paths: str | Path, **more: str) -> dict[str, str]:
    """That of this process without what a job sets, with ``more``; ``paths`` are searched for modules first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_JOB)}
    searched = [*map(str, paths), PACKAGES, os.environ.get("PYTHONPATH", "")]
    # One thread each: sums over another number of threads are other bits, and several processes share the cores.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**kept, **threads, "PYTHONPATH": os.pathsep.join(filter(None, searched)), **more}


def events(store: str | Path, run: str = "default") -> list[dict[str, Any]]:
    """The journal of a run, as ``lastgood log --journal`` has it."""
    words = ["log", "--journal", "--json", "--store", str(store), "--run", run]
    command = [sys.executable, "-m", "lastgood", *words]
    log = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert log.returncode == 0, log.stderr
    return [json.loads(line) for line in log.stdout.splitlines()]


def replay_of(store: str | Path, run: str = "default") -> str:
    """What a process that replays the run has in ``LASTGOOD_REPLAY``."""
    source, into = {"store": str(store), "run": run}, {"store": f"{store}-again", "run": run}
    steps = {"from": None, "from_step": 0, "to": 1, "digests": [], "save": False}
    return json.dumps({"version": 1, "source": source, "into": into, **steps})
