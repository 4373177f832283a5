"""A measurement in a process of its own: what it is told, and what it tells."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """One measurement of one way on one state. ``case``: which part of the scenario; ``rep``: which repetition."""

    scenario: str
    state: str
    way: str
    case: str
    rep: int
    work: str
    cache: str
    options: dict[str, Any] = field(default_factory=dict)
    #: The monotonic nanoseconds at which its process was started.
    spawned: int = 0
    #: A folder that outlives the job, for what later ones need.
    kept: str | None = None

    def write(self, file: Path) -> None:
        """Writes it for `read`."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Job:
        """What `write` wrote."""
        return cls(**json.loads(file.read_text()))

    def label(self) -> str:
        """What it is, for people."""
        return f"{self.scenario} {self.state} {self.way}: {self.case}, repetition {self.rep + 1}"


@dataclass
class Record:
    """One number: ``metric`` says what, and by its end in which unit (``_s``, ``_bytes``)."""

    scenario: str
    state: str
    way: str
    case: str
    metric: str
    rep: int
    value: float


class Records:
    """What a job found so far."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.found: list[Record] = []

    def add(self, case: str, metric: str, value: float, way: str | None = None) -> None:
        """Notes one number."""
        job = self.job
        self.found.append(
            Record(job.scenario, job.state, way or job.way, case, metric, job.rep, float(value))
        )
