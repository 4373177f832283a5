"""Starts Python programs as forks of a process that has imported their libraries: seconds saved for each of them.

Used as a module, it is a `Popen` whose programs are such forks; run as a program, it is the process that is forked. A
fork is a process of its own, with its own environment, folder and output, and dies as any other. Nothing but imports
happens before the fork: no thread, no tensor, no open store.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class Zygote:
    """The process that is forked, with ``modules`` imported under ``env``."""

    def __init__(self, modules: list[str], env: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno()), *modules]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
        theirs.close()
        self._lines = ours.makefile("rw", encoding="utf-8")
        self._lock = threading.Lock()
        self._started: dict[int, Fork] = {}
        self._answer: Any = None
        self._answered = threading.Semaphore(0)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def popen(
        self, command: list[str], *, cwd: Any, env: dict[str, str], stdout: Any, stderr: Any
    ) -> Fork:
        """As `subprocess.Popen` of ``python -m MODULE …`` or ``python FILE …``."""
        assert stderr == subprocess.STDOUT and command[0] == sys.executable, command
        job = {"argv": command[1:], "cwd": str(cwd), "env": env, "log": stdout.name}
        with self._lock:
            self._lines.write(json.dumps(job) + "\n")
            self._lines.flush()
            self._answered.acquire()
            return self._answer

    def _read(self) -> None:
        for line in self._lines:
            told = json.loads(line)
            if told["code"] is None:
                self._answer = self._started[told["pid"]] = Fork(told["pid"])
                self._answered.release()
            else:
                self._started.pop(told["pid"]).end(told["code"])

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()


class Fork:
    """What `Zygote.popen` gives: the part of `subprocess.Popen` that is used here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = threading.Event()

    def end(self, code: int) -> None:
        self.returncode = code
        self._over.set()

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int | None:
        self._over.wait()
        return self.returncode


def _serve(connection: socket.socket) -> None:
    """One line a job; a line when it has started, and one when it is over. A single thread, so that it may fork."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    jobs = connection.makefile("rb", buffering=0)
    pending = b""
    import select

    while True:
        ready, _, _ = select.select([connection, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(connection)
        if connection in ready:
            pending += connection.recv(1 << 16)
            if not pending:
                return
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                pid = os.fork()
                if pid == 0:
                    jobs.close()
                    connection.close()
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _become(json.loads(line))
                _tell(connection, pid, None)


def _reap(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(connection, pid, os.waitstatus_to_exitcode(status))


def _tell(connection: socket.socket, pid: int, code: int | None) -> None:
    connection.sendall(json.dumps({"pid": pid, "code": code}).encode() + b"\n")


def _become(job: dict[str, Any]) -> None:
    """The program, until it ends."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    argv = job["argv"]
    code = 0
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path[0] = str(Path(argv[0]).parent)
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        # What `atexit` has is part of a program: runs are closed there.
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    descriptor = int(sys.argv[1])
    for module in sys.argv[2:]:
        importlib.import_module(module)
    _serve(socket.socket(fileno=descriptor))
