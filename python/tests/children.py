"""The environment of the processes that tests start: the lastgood that is tested, and nothing of a job around it."""

from __future__ import annotations

import os
from pathlib import Path

import lastgood

PROGRAMS = Path(__file__).parent / "programs"

#: Where the lastgood that is tested is imported from: the wheel that was installed, or the source tree.
PACKAGES = str(Path(lastgood.__file__).parent.parent)

_OF_A_JOB = (
    "LASTGOOD_STORE",
    "LASTGOOD_RUN",
    "LASTGOOD_INCARNATION",
    "LASTGOOD_HEARTBEAT",
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
