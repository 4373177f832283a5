"""Starts Python programs as forks of a process that has imported their libraries: seconds saved for each of them.

``zygote.py FOLDER LIFELINE`` is asked through the socket ``FOLDER/root``, with one connection for each program:

* a *job* is forked: a process of its own, with its own environment, folder and output, which dies as any other. Its
  pid is the answer, and its exit code another one. Who lets go of the connection before ends the program.
* a *tier* is forked: a zygote that has imported some modules more, and is asked through ``FOLDER/NAME``.

Nothing but imports happens before a fork: no thread, no tensor, no open store. A zygote ends, and its programs with it,
when nobody holds the other end of the pipe LIFELINE any more.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any


def listen(folder: str, name: str) -> socket.socket:
    """The socket of the zygote ``name``. Who connects before it has imported everything waits."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.path.join(folder, name))
    listener.listen(64)
    return listener


class Server:
    """A single thread, so that it may fork."""

    def __init__(self, folder: str, lifeline: int, listener: socket.socket) -> None:
        self.folder = folder
        self.lifeline = lifeline
        self.listener = listener
        self.tiers: set[str] = set()
        self.programs: dict[int, socket.socket] = {}
        self.asking: set[socket.socket] = set()

    def serve(self) -> None:
        """Answers until the lifeline is cut."""
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"imports started threads, which a fork would lack: {threads}"
        # What is there now is never collected: a collection in a fork would copy the pages of all objects.
        gc.freeze()
        self.woken, wake = os.pipe()
        for end in (self.woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.wake = wake
        while True:
            connections = [*self.asking, *self.programs.values()]
            ready, _, _ = select.select(
                [self.lifeline, self.woken, self.listener, *connections], [], []
            )
            if self.lifeline in ready:
                for pid in self.programs:
                    os.kill(pid, signal.SIGKILL)
                # The tiers see it themselves. Whoever waits for the root has waited for all.
                while True:
                    try:
                        os.wait()
                    except ChildProcessError:
                        return
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.reap()
            if self.listener in ready:
                self.asking.add(self.listener.accept()[0])
            for connection in ready:
                if connection in self.asking:
                    self.asking.discard(connection)
                    self.answer(connection)
                else:
                    self.forsaken(connection)

    def answer(self, connection: socket.socket) -> None:
        """Forks what is asked for."""
        asked, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        job = json.loads(asked) if asked else None
        if job is None:
            connection.close()
        elif "tier" in job:
            if job["tier"] not in self.tiers:
                self.tiers.add(job["tier"])
                listener = listen(self.folder, job["tier"])
                if os.fork() == 0:
                    self.let_go(connection)
                    for module in job["modules"]:
                        importlib.import_module(module)
                    Server(self.folder, self.lifeline, listener).serve()
                    os._exit(0)
                listener.close()
            tell(connection, {"tier": job["tier"]})
            connection.close()
        else:
            pid = os.fork()
            if pid == 0:
                self.let_go(connection)
                os.close(self.lifeline)
                become(job, descriptors)
            self.programs[pid] = connection
            tell(connection, {"pid": pid})
        for descriptor in descriptors:
            os.close(descriptor)

    def let_go(self, connection: socket.socket) -> None:
        """In a fork: what is only this process's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self.wake, self.woken):
            os.close(end)
        for held in (self.listener, connection, *self.asking, *self.programs.values()):
            held.close()

    def reap(self) -> None:
        """Tells of the programs that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.programs:
                connection = self.programs.pop(pid)
                tell(connection, {"code": os.waitstatus_to_exitcode(status)})
                connection.close()

    def forsaken(self, connection: socket.socket) -> None:
        """Nobody waits for this program any more: its test is over, or was killed."""
        for pid, held in list(self.programs.items()):
            if held is connection:
                os.kill(pid, signal.SIGKILL)
                del self.programs[pid]
                connection.close()


def tell(connection: socket.socket, answer: dict[str, Any]) -> None:
    """Who asked may be gone."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode())


def become(job: dict[str, Any], descriptors: list[int]) -> None:
    """The program, until it ends."""
    for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *descriptors]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    argv = job["argv"]
    code = 0
    gc.enable()
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
        # The end of an interpreter is part of a program: threads are waited for, runs are closed.
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # Programs have it again: nothing that is imported here is ever freed.
    gc.disable()
    Server(sys.argv[1], int(sys.argv[2]), listen(sys.argv[1], "root")).serve()
