"""A training that is killed inside an epoch goes on as if it had not been; lacking any item, it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))

import exact  # noqa: E402


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", str(PROGRAMS / "exact.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def steps_of(output: str) -> dict[int, str]:
    return {int(line.split()[0]): line.split()[1] for line in output.splitlines() if line}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, str]]:
    """A store with the checkpoint of a process that was killed 5 steps after it, and what its steps were."""
    store = tmp_path_factory.mktemp("exact") / "store"
    process = started(str(store), str(exact.STEPS))
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if len(lines) >= exact.SAVED_AT + 5 and any(store.glob("runs/*/checkpoints/*.json")):
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    return str(store), steps_of("".join(lines))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    ended = started(str(tmp_path_factory.mktemp("exact") / "store"), str(exact.STEPS))
    return steps_of(ended.communicate(timeout=300)[0])


def test_every_step_after_a_kill_is_the_same(
    killed: tuple[str, dict[int, str]], undisturbed: dict[int, str]
) -> None:
    store, before = killed
    assert all(undisturbed[step] == digest for step, digest in before.items())
    process = started(store, str(exact.STEPS), "resumed")
    resumed = steps_of(process.communicate(timeout=300)[0])
    # Inside the second epoch, across its end, to the end of the third.
    assert min(resumed) == exact.SAVED_AT + 1 and max(resumed) == exact.STEPS
    assert resumed == {step: undisturbed[step] for step in resumed}


@pytest.mark.parametrize("item", exact.ITEMS)
def test_no_item_can_be_left_out(
    killed: tuple[str, dict[int, str]], undisturbed: dict[int, str], item: str
) -> None:
    store, _ = killed
    found = exact.train(
        store,
        exact.STEPS if os.environ.get("LASTGOOD_SLOW") else exact.SAVED_AT + 3,
        item,
        save=False,
    )
    differ = [step for step, digest in found.items() if digest != undisturbed[step]]
    assert differ and differ[0] <= exact.SAVED_AT + 2, f"{item} makes no difference"
