"""Starts the training programs of these tests: one process has the libraries imported, and each program is a fork."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from children import PROGRAMS
from forks import Fork, environment


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a rank of one machine has in its environment."""
    of_job = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, **of_job}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(n) for name, n in numbers.items()}}


def start(
    program: str | Path,
    log: Path,
    *arguments: object,
    ranks: int = 1,
    tier: str = "trainers",
    more: Mapping[int, Mapping[str, str]] | None = None,
) -> list[Fork]:
    """Starts ``programs/PROGRAM``, as torchrun would if there are several ranks; the output goes to ``log``.RANK.
    ``more`` is what ranks have in their environment beside the others."""
    port = free_port()
    started = []
    for rank in range(ranks):
        env = environment(**(more or {}).get(rank, {}))
        if ranks > 1:
            env |= {**of_rank(rank, ranks, port), "TORCHELASTIC_RUN_ID": "tests"}
        command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
        with open(f"{log}.{rank}", "w") as out:
            started.append(Fork(tier, command, cwd=log.parent, env=env, stdout=out))
    return started


def finish(started: list[Fork], log: Path, seconds: float = 300) -> list[int]:
    """Waits for every rank, and gives their exit codes. When one is dead the others get 3 s, as under torchrun."""
    until = time.monotonic() + seconds
    while any(fork.poll() is None for fork in started):
        if any(fork.poll() not in (None, 0) for fork in started):
            until = min(until, time.monotonic() + 3)
        if time.monotonic() > until:
            for fork in started:
                fork.kill()
        time.sleep(0.02)
    return [fork.wait() for fork in started]


def run(program: str, log: Path, *arguments: object, ranks: int = 1, **how: Any) -> list[int]:
    """Starts a program and waits for it."""
    return finish(start(program, log, *arguments, ranks=ranks, **how), log)


def output(log: Path, rank: int = 0) -> str:
    """What a rank printed."""
    return Path(f"{log}.{rank}").read_text(encoding="utf-8", errors="replace")


def trace(out: Path, rank: int = 0) -> dict[int, str]:
    """The digest after each step; what was done twice must have given the same."""
    found: dict[int, str] = {}
    for line in (out / f"trace.{rank}").read_text().splitlines():
        step, digest = line.split()
        assert found.setdefault(int(step), digest) == digest, (
            f"step {step} gave another state the second time"
        )
    return found


def began(out: Path, rank: int = 0) -> int:
    """The step that the last process began at."""
    return int((out / f"start.{rank}").read_text())
