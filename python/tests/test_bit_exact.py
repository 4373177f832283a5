"""A training that is killed inside an epoch goes on as if it had not been; lacking any item, it does not."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

import forks
from children import PROGRAMS

sys.path.insert(0, str(PROGRAMS))

import exact


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / "exact.py"), *arguments]


def steps_of(output: str) -> dict[int, str]:
    return {int(line.split()[0]): line.split()[1] for line in output.splitlines() if line}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, str]]:
    """A store with the checkpoint of a process that was killed 5 steps after it, and what its steps were."""
    store = tmp_path_factory.mktemp("exact") / "store"
    log = store.parent / "output"
    with open(log, "wb") as output:
        arguments = command(str(store), str(exact.STEPS), "slowly")
        process = forks.Fork("torch", arguments, env=forks.environment(), stdout=output)
    while process.poll() is None:
        steps = log.read_text().count("\n")
        if steps >= exact.SAVED_AT + 5 and any(store.glob("runs/*/checkpoints/*.json")):
            process.kill()
            break
        time.sleep(0.005)
    assert process.wait(60) == -9, f"it ended before it could be killed\n{log.read_text()}"
    whole_lines = log.read_text().rpartition("\n")[0]
    return str(store), steps_of(whole_lines)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    folder = tmp_path_factory.mktemp("exact")
    code, output = forks.run(
        "torch", command(str(folder / "store"), str(exact.STEPS)), folder / "output"
    )
    assert code == 0, output
    return steps_of(output)


def test_every_step_after_a_kill_is_the_same(
    killed: tuple[str, dict[int, str]], undisturbed: dict[int, str]
) -> None:
    store, before = killed
    assert all(undisturbed[step] == digest for step, digest in before.items())
    log = Path(store).parent / "resumed"
    code, output = forks.run("torch", command(store, str(exact.STEPS), "resumed"), log)
    assert code == 0, output
    resumed = steps_of(output)
    # Inside the second epoch, across its end, to the end of the third.
    assert min(resumed) == exact.SAVED_AT + 1 and max(resumed) == exact.STEPS
    assert resumed == {step: undisturbed[step] for step in resumed}


@pytest.mark.parametrize("item", exact.ITEMS)
def test_no_item_can_be_left_out(
    killed: tuple[str, dict[int, str]],
    undisturbed: dict[int, str],
    item: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, _ = killed
    # The process that saved had other variables than this one; none of them is what is looked for.
    monkeypatch.setenv("LASTGOOD_PREFLIGHT", "off")
    found = exact.train(
        store,
        exact.STEPS if os.environ.get("LASTGOOD_SLOW") else exact.SAVED_AT + 3,
        item,
        save=False,
    )
    differ = [step for step, digest in found.items() if digest != undisturbed[step]]
    assert differ and differ[0] <= exact.SAVED_AT + 2, f"{item} makes no difference"
