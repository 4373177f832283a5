"""Examples that are killed five times on the way to their end, and then proven: run again from the start beside what
the attempts recorded, and certified."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from children import environment

EXAMPLES = Path(__file__).parents[2] / "examples"
TOOL = [sys.executable, "-m", "lastgood"]
KILLS = 5
SEEDS = [1, 2, 3] if os.environ.get("LASTGOOD_SLOW") == "1" else [1]


def job(example: str, store: Path, steps: int, save_every: int) -> list[str]:
    words = ["--steps", str(steps), "--save-every", str(save_every)]
    return [forks.python("torch"), str(EXAMPLES / example), "--store", str(store), *words]


def tool(*words: str, code: int = 0) -> str:
    """What ``lastgood WORDS`` prints."""
    done = subprocess.run(
        [*TOOL, *words], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def killed(store: Path, ranks: int, command: list[str], seed: int) -> None:
    """Runs ``command`` on ``ranks`` under the supervisor to its end; one rank is killed `KILLS` times, once in an
    attempt, after it has saved another checkpoint and at a moment that ``seed`` draws."""
    draw = random.Random(seed)
    words = ["run", "--store", str(store), "--run", "default", "--ranks", str(ranks), "--"]
    log = store.with_name("output")
    with log.open("w") as output:
        supervised = subprocess.Popen(
            [*TOOL, *words, *command, "--pause", "0.01"],
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    kills, known, deadline = 0, 0, time.monotonic() + 200
    while kills < KILLS and supervised.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
        saved = len(list(store.glob("runs/default/checkpoints/*.json")))
        if saved > known and attempts(log) > kills:
            time.sleep(draw.uniform(0.0, 0.1))
            victims = forks.processes(Path(command[1]).name, store)
            if victims:
                os.kill(draw.choice(victims), signal.SIGKILL)
                known = saved
                kills += 1
    code = supervised.wait(200)
    assert code == 0, log.read_text()
    assert kills == KILLS, f"seed {seed}: it was over after {kills} kills\n{log.read_text()}"
    assert attempts(log) > KILLS, log.read_text()


def attempts(log: Path) -> int:
    """How often the job was started."""
    return log.read_text().count("lastgood: attempt ")


def proven(store: Path, command: list[str], ranks: int) -> dict[str, Any]:
    """The certificate of all steps, run again on ``ranks``; its signature is verified, and a change of it found."""
    key, certificate = store.with_name("key.pem"), store.with_name(f"{ranks}.json")
    if not key.exists():
        tool("key", "new", "--to", str(key))
    words = ["--store", str(store), "--run", "default", "--from", "start", "--ranks", str(ranks)]
    words += ["--certificate", str(certificate), "--key", str(key)]
    said: dict[str, Any] = json.loads(tool("prove", "--json", *words, "--", *command))
    public = f"{key}.pub"
    assert "proven" in tool("certificate", "verify", str(certificate), "--key", public)
    text = certificate.read_text()
    certificate.write_text(text.replace('"proven"', '"Proven"', 1))
    assert certificate.read_text() != text
    tool("certificate", "verify", str(certificate), "--key", public, code=3)
    return said


@pytest.mark.parametrize("seed", SEEDS)
def test_one_process(tmp_path: Path, seed: int) -> None:
    store = tmp_path / "store"
    command = job("train_torch.py", store, steps=120, save_every=5)
    killed(store, 1, command, seed)
    said = proven(store, command, 1)
    assert (said["verdict"], said["achieved"], said["divergences"]) == ("proven", "D2", [])
    assert (said["steps"], said["from_step"], said["to"]) == (120, 0, 120)


@pytest.mark.parametrize("seed", SEEDS)
def test_ordered_sums_on_fewer_processes(tmp_path: Path, seed: int) -> None:
    store = tmp_path / "store"
    command = job("train_ddp_ordered.py", store, steps=60, save_every=4)
    killed(store, 4, command, seed)
    for ranks, level in [(4, "D2"), (2, "D3"), (1, "D3")]:
        said = proven(store, command, ranks)
        assert (said["verdict"], said["achieved"]) == ("proven", level), said
        # Each logical rank has a record of each step, on as many processes as it may be.
        assert (said["steps"], said["ranks"], said["divergences"]) == (240, [4, ranks], [])
