"""examples/train_jax.py ends in the same bits whether or not it is killed on the way.

By default it is a fork that has jax imported, with a stand-in that the supervisor starts and watches; with
LASTGOOD_SLOW=1 an interpreter of its own.
"""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import forks

ROOT = pathlib.Path(__file__).parents[2]
SLOW = os.environ.get("LASTGOOD_SLOW") == "1"
STEPS = 200
PROGRAM = [str(ROOT / "examples/train_jax.py"), "--steps", str(STEPS), "--every", "2"]
#: Far longer than it takes: only a hang reaches it.
PATIENCE = 200


def environment(compiled: pathlib.Path) -> dict[str, str]:
    """What XLA compiled is kept for the next process, which is most of a start; not if there is time."""
    if SLOW:
        return forks.environment()
    return forks.environment(
        JAX_COMPILATION_CACHE_DIR=str(compiled),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )


def digest(output: str) -> str:
    found = re.search(r"^(?:\[rank 0\] )?digest ([0-9a-f]{32})$", output, re.MULTILINE)
    assert found, output
    return found[1]


def killed(store: pathlib.Path, checkpoints: int, env: dict[str, str]) -> str:
    """Runs the program under `lastgood run`, kills it once it has so many checkpoints, and gives its output."""
    command = [
        sys.executable,
        "-m",
        "lastgood",
        "run",
        "--store",
        str(store),
        "--run",
        "digits",
        "--",
        forks.python("jax"),
        *PROGRAM,
    ]
    supervisor = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    try:
        folder = store / "runs/digits/checkpoints"
        end = time.monotonic() + PATIENCE
        while not folder.exists() or len(list(folder.iterdir())) < checkpoints:
            assert time.monotonic() < end and supervisor.poll() is None, supervisor.communicate()[0]
            time.sleep(0.002)
        (running,) = forks.processes("train_jax.py", store)
        os.kill(running, signal.SIGKILL)
        output: str = supervisor.communicate(timeout=PATIENCE)[0]
    finally:
        supervisor.kill()
        supervisor.wait()
    assert supervisor.returncode == 0, output
    return output


def test_the_example_ends_in_the_same_bits_after_a_kill(tmp_path: pathlib.Path) -> None:
    env = environment(tmp_path / "compiled")
    program = [sys.executable, *PROGRAM, "--store", str(tmp_path / "a")]
    code, undisturbed = forks.run("jax", program, tmp_path / "output", env=env)
    assert code == 0, undisturbed
    output = killed(tmp_path / "b", 8, env)
    begins = [int(step) for step in re.findall(r"attempt \d+ begins at step (\d+)", output)]
    assert len(begins) == 2 and begins[0] == 0 and 0 < begins[1] < STEPS, output
    assert digest(output) == digest(undisturbed)
