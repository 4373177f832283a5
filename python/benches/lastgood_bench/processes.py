"""Jobs as processes: one after the other, each ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lastgood_bench.jobs import Job, Record

PACKAGE = Path(__file__).parent
#: A job that takes longer is ended and told as failed, in seconds.
LIMIT = 3600.0


@dataclass
class Ended:
    """How a job ended."""

    records: list[Record] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0


def environment() -> dict[str, str]:
    """That of a job: this one, without what would make it a rank of something."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("LASTGOOD_")}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        found.pop(name, None)
    found["PYTHONPATH"] = str(PACKAGE.parent)
    # Its warnings and its search for devices are of no use here.
    found |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    return found


def run(job: Job, new: bool = False) -> Ended:
    """Does a job in a process of its own, in a group that ends with it whatever happens.

    It is a fork of this one, which has the libraries and never computed: importing torch takes longer than most jobs.
    ``new``: it is a new one, for what is measured from its start.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lastgood-bench-") as name:
        told, result, log = (Path(name, part) for part in ("job", "result", "log"))
        sys.stdout.flush()
        sys.stderr.flush()
        job.spawned = time.monotonic_ns()
        job.write(told)
        # An interrupt that came while it is forked would be lost in what libraries do then.
        ends = {signal.SIGTERM, signal.SIGINT}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        process = os.fork()
        if process == 0:
            _child(told, result, log, new, blocked)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            error = _wait(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)
            shutil.rmtree(job.work, ignore_errors=True)
        ended = _read(result, log, error)
    ended.seconds = time.perf_counter() - begin
    return ended


def _child(told: Path, result: Path, log: Path, new: bool, blocked: set[Any]) -> None:
    """What the new process does; it never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        found = environment()
        if new:
            command = [sys.executable, "-m", "lastgood_bench.worker", str(told), str(result)]
            os.execve(sys.executable, command, found)
        os.environ.clear()
        os.environ.update(found)
        from lastgood_bench import worker

        worker.do(told, result)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process: int) -> str | None:
    """Waits until it ends. Gives what is wrong with how it did."""
    handle = os.pidfd_open(process)
    try:
        ready, _, _ = select.select([handle], [], [], LIMIT)
    finally:
        os.close(handle)
    if not ready:
        return f"it did not end within {LIMIT:.0f} s"
    # It is not waited for here: its number names its group until that is ended.
    ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    if ended is None or (ended.si_code == os.CLD_EXITED and ended.si_status == 0):
        return None
    kind = "ended with" if ended.si_code == os.CLD_EXITED else "was ended by signal"
    return f"its process {kind} {ended.si_status}"


def _read(result: Path, log: Path, error: str | None) -> Ended:
    if not result.exists():
        lines = log.read_text(errors="replace").strip().splitlines()
        return Ended(error=": ".join(filter(None, [error, lines[-1] if lines else ""])))
    told = json.loads(result.read_text())
    if "error" in told:
        return Ended(error=told["error"])
    # A library may fail when it is taken down, after everything was measured.
    return Ended([Record(**record) for record in told["records"]])
