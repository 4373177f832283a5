"""Replays of a real training: what was undisturbed is proven equal, and each planted fault is found at its step and
named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import lastgood as lg
import pytest
from children import PROGRAMS, environment

PROGRAM = str(PROGRAMS / "replayed.py")
STEPS = 32


def train(store: Path, *plant: str, steps: int = STEPS, **more: str) -> None:
    """Runs the training once, with what is planted."""
    command = [forks.python("torch"), PROGRAM, str(store), str(steps), *plant]
    env = environment(**more)
    subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=200)


def replay(
    store: Path, *options: str, plant: tuple[str, ...] = (), code: int = 0, **more: str
) -> dict[str, Any]:
    """What ``lastgood replay`` says of it when nothing is planted, or something else."""
    program = [forks.python("torch"), PROGRAM, str(store), str(STEPS), *plant]
    tool = [sys.executable, "-m", "lastgood", "replay", "--json", "--store", str(store)]
    command = [*tool, "--run", "small", *options, "--", *program]
    env = environment(**more)
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


def first(said: dict[str, Any]) -> tuple[int, str, str]:
    found = said["divergences"][0]
    return found["step"], found["code"], found["what"]


def test_an_undisturbed_run_is_proven_equal(tmp_path: Path) -> None:
    train(tmp_path, "digest_every=3")
    said = replay(tmp_path)
    assert (said["equal"], said["level"], said["from_step"], said["to"]) == (True, "D2", 24, 32)
    assert said["states"] == [27, 30, 32] and said["checkpoint"] is not None
    whole = replay(tmp_path, "--from", "start")
    assert whole["equal"] and whole["steps"] == STEPS
    assert whole["states"] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24, 27, 30, 32]
    assert whole["digest"] == said["digest"]
    # The run itself was only read.
    with lg.open(tmp_path, {}, run="small", journal=False) as run:
        assert [checkpoint.step for checkpoint in run.history()] == [8, 16, 24, 32]


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ("flip=13", (13, "LG-ND-001", "model/0.weight")),
        ("batch=13", (13, "LG-ND-005", "loss")),
        ("lr=13", (13, "LG-ND-005", "lr")),
        ("draw=13", (13, "LG-ND-005", "rng")),
    ],
)
def test_a_fault_is_found_at_its_step(
    tmp_path: Path, planted: str, expected: tuple[int, str, str]
) -> None:
    train(tmp_path, planted, "digest_every=1")
    said = replay(tmp_path, "--from", "start", code=6)
    assert not said["equal"] and first(said) == expected
    # Before it everything was equal, and after it the checkpoints that the run went on from are not those that it
    # would have come to.
    assert said["divergences"][0]["step"] == 13
    clean = replay(tmp_path, "--from", "16", "--to", "24")
    assert clean["equal"], "what came after it was computed right"


def test_a_flipped_bit_is_located(tmp_path: Path) -> None:
    train(tmp_path, "flip=13", "digest_every=1")
    found = replay(tmp_path, "--from", "start", code=6)["divergences"][0]
    # Element [3, 5] of 64 times 32 numbers of 4 bytes; two of them are a word.
    element = 3 * 32 + 5
    assert found["word"] == element // 2
    assert abs(int(found["delta"])) == 1 << (32 * (element % 2) + 20)


def test_without_digests_the_checkpoint_tells(tmp_path: Path) -> None:
    train(tmp_path, "flip=32")
    said = replay(tmp_path, code=6)
    assert first(said) == (32, "LG-ND-001", "model/0.weight")
    assert said["divergences"][0]["word"] is not None


def test_another_environment_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    said = replay(tmp_path, MKL_CBWR="COMPATIBLE", code=0)
    assert [name["name"] for name in said["environment"]] == ["env.MKL_CBWR"]
    said = replay(tmp_path, plant=("lr=30",), code=6)
    assert first(said) == (30, "LG-ND-005", "lr")


def test_what_was_read_from_outside_is_given_again(tmp_path: Path) -> None:
    train(tmp_path, "rate=1")
    # The program would read 0.01 now; the replay gives it what the run read.
    assert replay(tmp_path)["equal"]


def test_travel_makes_the_state_of_any_step(tmp_path: Path) -> None:
    train(tmp_path, "save_every=8")
    said = replay(tmp_path, "--mode", "travel", "--to", "21")
    assert said["branch"] == "small-at-21" and said["from_step"] == 16
    state: dict[str, Any] = {}
    with lg.open(tmp_path, state, run="small-at-21", rng=False, journal=False) as run:
        assert [(c.step, c.id) for c in run.history()] == [(21, said["saved"])]
    # The checkpoint of a run that had saved there is the same.
    other = tmp_path / "other"
    train(other, "save_every=21")
    assert replay(other, "--from", "start", "--to", "21")["digest"] == said["digest"]


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    train(tmp_path, steps=8)
    program = [sys.executable, "-c", "pass"]
    tool = [sys.executable, "-m", "lastgood", "replay", "--store", str(tmp_path), "--run", "small"]
    for options, code, text in [
        (["--to", "99"], 4, "ends with step 8"),
        (["--from", "8", "--to", "8"], 2, "is not before"),
        (["--from", "7"], 4, "7"),
    ]:
        ran = subprocess.run(
            [*tool, *options, "--", *program], capture_output=True, text=True, check=False,
            env=environment(),
        )
        assert ran.returncode == code, ran.stderr
        assert text in ran.stderr
    ran = subprocess.run(tool, capture_output=True, text=True, check=False, env=environment())
    assert ran.returncode == 2 and "no command" in ran.stderr
    audit = [*tool, "--mode", "audit"]
    ran = subprocess.run(audit, capture_output=True, text=True, check=False, env=environment())
    assert ran.returncode == 0 and "journal" in ran.stdout, ran.stderr
    assert os.path.isdir(tmp_path)
