"""The examples for torch end with the same digest whether they are killed on the way or not.

By default every process of them is a fork that has torch imported, with a stand-in that the supervisor starts and
watches; with LASTGOOD_SLOW=1 each is an interpreter of its own.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import lastgood as lg
import pytest
from children import environment
from trainers import finish, output, start

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SLOW = os.environ.get("LASTGOOD_SLOW") == "1"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LASTGOOD = [sys.executable, "-m", "lastgood", "run"]


def digests(output: str) -> list[str]:
    return re.findall(r"digest ([0-9a-f]{64})", output)


def undisturbed(program: Path, store: Path, ranks: int = 1) -> str:
    """The digest of ranks that nothing happens to, started as torchrun does."""
    log = store.with_name("output")
    started = start(program, log, "--store", store, ranks=ranks, tier="torch")
    assert finish(started, log) == [0] * ranks, output(log)
    return digests(output(log))[0]


def killed(command: list[str], store: Path, name: str, seed: int, **more: str) -> str:
    """Runs ``command`` and kills one process of ``name`` once there is a checkpoint, at a moment drawn by ``seed``."""
    draw = random.Random(seed)
    # What torchrun starts its ranks with.
    env = environment(PYTHON_EXEC=forks.python("torch"), **more)
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 200
    victims: list[int] = []
    while time.monotonic() < deadline and process.poll() is None:
        if any(store.glob("runs/default/checkpoints/*.json")):
            time.sleep(draw.uniform(0.0, 0.3))
            victims = forks.processes(name, store)
            if victims:
                os.kill(draw.choice(victims), signal.SIGKILL)
                break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert victims, f"seed {seed}: it was over before it could be killed\n{output}"
    # It was killed, and went on from a checkpoint.
    assert re.findall(r"from step [1-9]", output), output
    return digests(output)[-1]


@pytest.mark.parametrize("seed", [1, 2, 3] if SLOW else [1])
def test_one_process(tmp_path: Path, seed: int) -> None:
    expected = undisturbed(EXAMPLES / "train_torch.py", tmp_path / "undisturbed")
    program = [forks.python("torch"), str(EXAMPLES / "train_torch.py"), "--store"]
    store = tmp_path / "killed"
    supervised = [
        *LASTGOOD,
        "--store",
        str(store),
        "--run",
        "default",
        "--",
        *program,
        str(store),
        "--pause",
        "0.01",
    ]
    assert killed(supervised, store, "train_torch.py", seed) == expected
    assert len({c.attempt for c in history(store)}) > 1


@pytest.mark.parametrize(
    "how",
    [
        "torchrun",
        pytest.param("ranks", marks=pytest.mark.slow),
        pytest.param("torchrun_alone", marks=pytest.mark.slow),
    ],
)
def test_two_ranks(tmp_path: Path, how: str) -> None:
    program = [str(EXAMPLES / "train_fsdp.py"), "--store"]
    expected = undisturbed(EXAMPLES / "train_fsdp.py", tmp_path / "undisturbed", ranks=2)
    store = tmp_path / "killed"
    under = [*LASTGOOD, "--store", str(store), "--run", "default"]
    ours = [*program, str(store), "--pause", "0.05"]
    command = {
        "torchrun": [*under, "--", forks.python("torch"), *TORCHRUN, *ours],
        "ranks": [*under, "--ranks", "2", "--", forks.python("torch"), *ours],
        "torchrun_alone": [forks.python("torch"), *TORCHRUN, "--max-restarts", "3", *ours],
    }[how]
    # Restarting them by itself, torchrun must not share its store with its ranks: they would meet at the addresses of
    # those that were killed (https://github.com/pytorch/pytorch/issues/135712).
    more = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if how == "torchrun_alone" else {}
    assert killed(command, store, "train_fsdp.py", 1, **more) == expected
    assert len({c.attempt for c in history(store)}) > 1


def history(store: Path) -> list[lg.Checkpoint]:
    with lg.open(store, {}) as run:
        return run.history()
