"""Starts programs as forks of processes that have their libraries imported, which all tests of a session share.

The test session has one tree of such processes (`zygote`): conftest.py starts its root, a test asks for a *tier* by
the libraries that its program needs, and what was never asked for is never imported.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import children

#: Where the sockets of this session are: set by conftest.py, for the workers too.
FOLDER = "LASTGOOD_TESTS_FORKS"

#: Each tier by its name: the one that it is forked from, and what it imports beside.
TIERS: dict[str, tuple[str, list[str]]] = {
    "torch": (
        "root",
        [
            # Optimizers and DTensor import it on their first use, which takes as long as all of torch.
            "torch._dynamo",
            "torch.distributed.checkpoint",
            "torch.distributed.checkpoint.state_dict",
            "torch.distributed.run",
            "torch.distributed.fsdp",
            "torch.distributed.tensor.parallel",
            "fsspec",
            "sklearn.datasets",
            "lastgood.torch",
        ],
    ),
    "trainers": (
        "torch",
        [
            "transformers.trainer",
            "transformers.models.bert.modeling_bert",
            "lightning.pytorch",
            "lastgood.hf",
            "lastgood.accelerate",
            "lastgood.lightning",
            "ckpt_chaos.targets.hf_trainer",
            "ckpt_chaos.targets.lightning_trainer",
            "torchdata.stateful_dataloader",
            "referee_targets",
            "ready",
        ],
    ),
    # Imports alone make no backend of JAX: that one has threads, and each program makes its own.
    "jax": (
        "root",
        ["flax.linen", "flax.training.train_state", "optax", "sklearn.datasets", "lastgood.jax"],
    ),
}


def environment(**more: str) -> dict[str, str]:
    """What programs run under, and what libraries see when they are imported."""
    return children.environment(
        children.PROGRAMS,
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
        PYTHONHASHSEED="0",
        JAX_PLATFORMS="cpu",
        **more,
    )


class Session:
    """The root of the tree, which has nothing imported, and what ends the tree."""

    def __init__(self) -> None:
        # The path of a socket may not be long.
        self.folder = tempfile.mkdtemp(prefix="forks-", dir="/tmp")
        os.environ[FOLDER] = self.folder
        cut, self.lifeline = os.pipe()
        command = [sys.executable, str(children.PROGRAMS / "zygote.py"), self.folder, str(cut)]
        self.root = subprocess.Popen(
            command,
            pass_fds=[cut],
            stdin=subprocess.DEVNULL,
            env=environment(),
            # Ctrl-C is for the tests, which end this.
            start_new_session=True,
        )
        os.close(cut)

    def close(self) -> None:
        """Ends every zygote, and what is left of their programs."""
        os.close(self.lifeline)
        self.root.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def _connect(tier: str) -> socket.socket:
    """A connection to a zygote, which is made if there is none."""
    if tier != "root":
        parent, modules = TIERS[tier]
        with _connect(parent) as asked:
            asked.sendall(json.dumps({"tier": tier, "modules": modules}).encode())
            if not asked.recv(4096):
                raise RuntimeError(f"the zygote {parent} is gone")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = time.monotonic() + 30
    while True:
        try:
            connection.connect(os.path.join(os.environ[FOLDER], tier))
            return connection
        except FileNotFoundError:
            # The root has only just been started.
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def stand_in(tier: str) -> str:
    """A command to use for the interpreter in what starts programs itself, such as a supervisor: each
    ``COMMAND FILE …`` or ``COMMAND -m MODULE …`` is then a fork, and a small process stands for it (`stand_in`)."""
    _connect(tier).close()
    path = Path(os.environ[FOLDER], f"python-{tier}")
    words = [
        sys.executable,
        "-IS",
        str(children.PROGRAMS / "stand_in.py"),
        str(path.with_name(tier)),
    ]
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        made.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        made.chmod(0o755)
        made.rename(path)
    return str(path)


def python(tier: str) -> str:
    """What starts a program under a supervisor: a stand-in of ``tier``, or with LASTGOOD_SLOW=1 the interpreter."""
    return sys.executable if os.environ.get("LASTGOOD_SLOW") == "1" else stand_in(tier)


def processes(program: str, store: Path) -> list[int]:
    """The processes that run ``program`` with this store, or stand for it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_text().split("\0")
            environ = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        # Supervisor and launcher have it further behind.
        is_stand_in = command[2:3] == [str(children.PROGRAMS / "stand_in.py")]
        places = slice(4, 6) if is_stand_in else slice(1, 3)
        its_store = str(store) in command or f"LASTGOOD_STORE={store}".encode() in environ
        if its_store and any(word.endswith(program) for word in command[places]):
            found.append(int(entry.name))
    return sorted(found)


class Fork:
    """As `subprocess.Popen` of ``python -m MODULE …`` or ``python FILE …``, as far as it is used here."""

    def __init__(
        self,
        tier: str,
        command: list[str],
        *,
        cwd: Any = None,
        env: dict[str, str],
        stdout: Any,
        stderr: Any = subprocess.STDOUT,
    ) -> None:
        assert command[0] == sys.executable, command
        output = stdout.fileno()
        errors = output if stderr == subprocess.STDOUT else stderr.fileno()
        job = {"argv": command[1:], "cwd": str(cwd or Path.cwd()), "env": env}
        self.args = command
        self.returncode: int | None = None
        self._connection = _connect(tier)
        socket.send_fds(self._connection, [json.dumps(job).encode()], [output, errors])
        self.pid: int = self._told()["pid"]

    def _told(self) -> dict[str, int]:
        answer = self._connection.recv(4096)
        if not answer:
            raise RuntimeError(f"the zygote of {self.args} is gone")
        found: dict[str, int] = json.loads(answer)
        return found

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it is over."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._told()["code"]
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, if it is over."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it is over."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, unless it is over."""
        self.send_signal(signal.SIGKILL)


def run(
    tier: str,
    command: list[str],
    log: Path,
    *,
    env: dict[str, str] | None = None,
    timeout: float = 240,
) -> tuple[int, str]:
    """Exit code and output of a program; ``log`` is where its output is meanwhile."""
    with open(log, "wb") as output:
        fork = Fork(tier, command, env=env or environment(), stdout=output)
    try:
        code = fork.wait(timeout)
    finally:
        fork.kill()
    return code, log.read_text(encoding="utf-8", errors="replace")
