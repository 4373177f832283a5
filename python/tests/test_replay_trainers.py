"""Trainings of Hugging Face, Lightning and Accelerate record their steps: they are replayed to the same bits, and a
learning rate that was changed by hand is found at its step and named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import forks
import pytest

TOOL = [sys.executable, "-m", "lastgood"]


@dataclass(frozen=True)
class Training:
    """A program with its arguments, the steps that it does, and the checkpoints that it saves."""

    program: str
    arguments: tuple[str, ...]
    steps: int
    saves: tuple[int, ...]
    ranks: int = 1


#: What is not committed when it is killed would be taken over by the next attempt, without its steps.
HF = Training("small_hf.py", ("--block",), 12, (3, 6, 9, 12))
#: Logs, evaluations and saves fall on the same steps, and on others.
HF_LOGS = Training(
    "small_hf.py", ("--block", "--accumulate", "2", "--log", "2", "--keep", "1"), 12, (3, 6, 9, 12)
)
LIGHTNING = Training("small_lightning.py", ("one",), 16, (3, 6, 9, 12, 15))
LIGHTNING_TWO = Training("small_lightning.py", ("one", "--accumulate", "2"), 8, (3, 6))
ACCELERATE = Training("small_accelerate.py", (), 12, (3, 6, 9, 12))
SEVERAL = [
    Training("small_hf.py", ("--block",), 12, (3, 6, 9, 12), 2),
    Training("small_lightning.py", ("ddp",), 16, (3, 6, 9, 12, 15), 2),
    Training("small_accelerate.py", (), 12, (3, 6, 9, 12), 2),
]
NEEDS = {"hf": "transformers", "lightning": "lightning", "accelerate": "accelerate"}


def name(training: Training) -> str:
    return training.program.removeprefix("small_").removesuffix(".py")


def command(training: Training, out: Path) -> list[str]:
    program = str(children.PROGRAMS / training.program)
    return [forks.python("trainers"), program, *training.arguments, "--out", str(out)]


def place(out: Path) -> list[str]:
    out.mkdir(exist_ok=True)
    store = out / "store" if (out / "store").exists() else out / "_lastgood"
    return ["--store", str(store), "--run", "default"]


def tool(*words: str, code: int = 0, **more: str) -> str:
    """What ``lastgood WORDS`` prints."""
    env = forks.environment(**more)
    done = subprocess.run([*TOOL, *words], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def train(training: Training, out: Path, *more: str, plant: str = "") -> None:
    """Runs it under the supervisor: in a job of one rank a trainer takes other ways than in none."""
    pytest.importorskip(NEEDS[name(training)])
    store = out / ("store" if training.program == LIGHTNING.program else "_lastgood")
    store.mkdir(parents=True)
    ranks = ["--ranks", str(training.ranks)]
    tool("run", *place(out), *ranks, "--", *command(training, out), *more, PLANT=plant)


def replay(training: Training, out: Path, *options: str, code: int = 0) -> dict[str, Any]:
    words = ["replay", "--json", *place(out), *options, "--", *command(training, out)]
    said: dict[str, Any] = json.loads(tool(*words, code=code).splitlines()[-1])
    return said


def files_of(out: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that the run has written, but for what the program traces."""
    found = [path for path in sorted(out.rglob("*")) if path.is_file()]
    kept = [path for path in found if not re.match(r"(trace|start)\.", path.name)]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}


@pytest.mark.parametrize("training", [HF, HF_LOGS, LIGHTNING, LIGHTNING_TWO, ACCELERATE], ids=name)
def test_killed_on_the_way_it_is_replayed_to_the_bit(tmp_path: Path, training: Training) -> None:
    out = tmp_path / "out"
    train(training, out, "--kill-at", "8")
    check_steps(out, training)
    before = files_of(out)
    last = training.saves[-1]
    said = replay(training, out)
    assert said["equal"] and said["level"] == "D2", said
    assert (said["from_step"], said["to"]) == (training.saves[-2], last)
    # Each step once, however many batches it has; and the bytes of the last checkpoint.
    assert said["steps"] == last - training.saves[-2] and said["checkpoint"] is not None
    whole = replay(training, out, "--from", "start")
    assert whole["equal"] and whole["steps"] == last, whole
    assert files_of(out) == before, "a replay changes nothing of the run"


@pytest.mark.parametrize(
    "training",
    [ACCELERATE, *(pytest.param(one, marks=pytest.mark.slow) for one in (HF, LIGHTNING))],
    ids=name,
)
def test_killed_it_goes_on_by_a_replay(tmp_path: Path, training: Training) -> None:
    """What is recorded behind the folder that it goes on from is done again to the bit, or it ends."""
    pytest.importorskip(NEEDS[name(training)])
    out = tmp_path / "out"
    (out / ("store" if training.program == LIGHTNING.program else "_lastgood")).mkdir(parents=True)
    job = ["--", *command(training, out)]
    tool("run", *place(out), "--restarts", "0", *job, "--kill-at", "8", code=1)
    resume = ["replay", "--json", *place(out), "--mode", "resume", *job]
    said = json.loads(tool(*resume, code=6, PLANT="lr=7").splitlines()[-1])
    first = said["divergences"][0]
    assert (first["step"], first["what"]) == (7, "lr"), said
    said = json.loads(tool(*resume).splitlines()[-1])
    assert said["equal"] and said["recorded_by"] == 1, said
    assert said["from_step"] == 6 and said["to"] == 8, said
    check_steps(out, training)


@pytest.mark.slow
def test_of_parts_that_dcp_writes_only_its_random_name_differs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    training = Training("small_lightning.py", ("fsdp2",), 16, (3, 6, 9, 12, 15), 2)
    train(training, out)
    before = files_of(out)
    said = replay(training, out, code=6)
    assert {one["what"] for one in said["divergences"]} == {"folder/.metadata", "folder/tree@rank0"}
    assert said["steps"] == 6 and files_of(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("training", SEVERAL, ids=name)
def test_several_ranks_are_replayed_to_the_bit(tmp_path: Path, training: Training) -> None:
    out = tmp_path / "out"
    train(training, out)
    # What one rank stores for all is of a world of one.
    said = replay(training, out, "--ranks", str(training.ranks))
    last, before = training.saves[-1], training.saves[-2]
    assert said["equal"] and said["checkpoint"] is not None, said
    # Of Lightning with DDP rank 0 alone stores, and records.
    alone = training.arguments == ("ddp",)
    assert said["steps"] == (last - before) * (1 if alone else training.ranks), said


def check_steps(out: Path, training: Training) -> None:
    """Every step says its loss, and the learning rates that it was done with."""
    lines = tool("log", *place(out), "--journal", "--json").splitlines()
    steps = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, training.steps + 1))
    assert all(isinstance(event["event"]["loss"], float) for event in steps), steps
    assert len({event["event"]["loss"] for event in steps}) == training.steps
    # Before the schedule has changed it.
    assert set(steps[0]["event"]["lr"]) == {0.01}


@pytest.mark.parametrize("training", [HF, LIGHTNING, ACCELERATE], ids=name)
def test_bisect_names_a_changed_learning_rate(tmp_path: Path, training: Training) -> None:
    out = tmp_path / "out"
    train(training, out, plant="lr=8")
    words = ["bisect", "--json", *place(out), "--", *command(training, out)]
    said = json.loads(tool(*words, code=6).splitlines()[-1])
    assert (said["step"], said["first"]["what"], said["equal_to"]) == (8, "lr", 6), said
    assert any("the learning rate" in cause for cause in said["causes"]), said
