"""Replays of a real training: what was undisturbed is proven equal, and each planted fault is found at its step and
named."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import lastgood as lg
import pytest
from children import PROGRAMS, environment

PROGRAM = str(PROGRAMS / "replayed.py")
STEPS = 32


#: The interpreter of the training: a fork that has torch imported, and one thread of OpenMP, whatever it asks for.
FORK = "fork"


def job(store: Path, steps: int = STEPS, python: str = FORK) -> list[str]:
    """The command of the training."""
    return [forks.python("torch") if python is FORK else python, PROGRAM, str(store), str(steps)]


def train(store: Path, *plant: str, steps: int = STEPS, python: str = FORK, **more: str) -> None:
    """Runs the training once, with what is planted."""
    command = job(store, steps, python)
    env = environment(PLANT=" ".join(plant), **more)
    subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=200)


def replay(
    store: Path, *options: str, plant: tuple[str, ...] = (), code: int = 0, **more: str
) -> dict[str, Any]:
    """What ``lastgood replay`` says of it when nothing is planted, or something else."""
    tool = [sys.executable, "-m", "lastgood", "replay", "--json", "--store", str(store)]
    command = [*tool, "--run", "small", *options, "--", *job(store)]
    env = environment(PLANT=" ".join(plant), **more)
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


def bisect(
    store: Path, *options: str, code: int = 6, steps: int = STEPS, python: str = FORK
) -> dict[str, Any]:
    """What ``lastgood bisect`` says."""
    tool = [sys.executable, "-m", "lastgood", "bisect", "--json", "--store", str(store)]
    command = [*tool, "--run", "small", *options, "--", *job(store, steps, python)]
    ran = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
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


@pytest.mark.parametrize(
    ("planted", "step", "what", "cause"),
    [
        ("flip=19", 19, "model/0.weight", "one bit of one element was flipped"),
        ("batch=19", 19, "loss", "the data itself, or the arithmetic"),
        ("lr=19", 19, "lr", "the learning rate"),
        ("threads=2", 1, "loss", "the environment: torch.threads was 2, and is 1"),
        ("version=1", 1, "loss", "the environment: package.numpy was 9.9"),
    ],
)
def test_bisect_names_step_tensor_and_cause(
    tmp_path: Path, planted: str, step: int, what: str, cause: str
) -> None:
    # Interpreters of their own, each with several threads: as few steps as tell.
    python, steps = (sys.executable, 8) if planted.startswith("threads") else (FORK, STEPS)
    train(tmp_path, planted, "digest_every=1", "save_every=4", steps=steps, python=python)
    said = bisect(tmp_path, steps=steps, python=python)
    assert (said["step"], said["first"]["what"]) == (step, what), said
    assert said["equal_to"] == step - 1
    assert said["executions"] <= math.log2(steps)
    assert any(cause in one for one in said["causes"]), said["causes"]
    # The tensors that followed from it at the same step; of a flipped bit the one that it is in.
    assert said["tensor"]["step"] == step and said["tensor"]["what"].startswith("model/0.")
    element = said["element"]
    if planted.startswith("flip"):
        assert (element["index"], element["bits"]) == ([3, 5], 1)
        was, would = (float(element[name].split()[0]) for name in ("recorded", "replayed"))
        assert was != would
    else:
        assert element is None


def test_bisect_of_an_undisturbed_run_finds_nothing(tmp_path: Path) -> None:
    train(tmp_path, "save_every=4")
    said = bisect(tmp_path, code=0)
    assert (said["step"], said["equal_to"], said["steps"]) == (None, STEPS, STEPS)
    assert said["executions"] <= math.log2(STEPS)


def _segments(store: Path) -> list[Path]:
    return sorted((store / "runs/small/journal/1/0").glob("*.seg"))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _foreign(store: Path) -> None:
    train(store / "other")
    shutil.copy(_segments(store / "other")[0], _segments(store)[0])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda store: _segments(store)[1].unlink(), "events are missing"),
        (lambda store: _flip(_segments(store)[1], 300), "checksum"),
        (lambda store: os.truncate(_segments(store)[1], 500), "cut short"),
        (_foreign, "of another journal"),
    ],
    ids=["missing", "edited", "truncated", "foreign"],
)
def test_bisect_names_what_is_wrong_with_the_record(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    train(tmp_path)
    damage(tmp_path)
    said = bisect(tmp_path, code=3)
    assert text in said["damage"][0], said
    assert "journal/1/0/" in said["damage"][0] and said["executions"] == 0


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
    # Other kernels of MKL round differently.
    said = replay(tmp_path, code=6, MKL_CBWR="COMPATIBLE")
    assert [name["name"] for name in said["environment"]] == ["env.MKL_CBWR"]
    assert first(said)[1:] == ("LG-ND-005", "loss")
    assert replay(tmp_path)["environment"] == []


def test_an_event_before_the_first_step_is_compared_too(tmp_path: Path) -> None:
    # The replay begins with the checkpoint of step 24; where the note was, it has what came after it.
    train(tmp_path, "note=25")
    assert first(replay(tmp_path, code=6)) == (25, "LG-ND-002", "an event")


def test_what_was_read_from_outside_is_given_again(tmp_path: Path) -> None:
    train(tmp_path, "rate=1")
    # The program would read 0.01 now; the replay gives it what the run read.
    assert replay(tmp_path)["equal"]


def test_processes_of_their_own_digest_alike() -> None:
    """Neither addresses nor the seed of hashes get into the digest of the generators."""
    program = "import random; random.seed(1); from lastgood import _journal; print(_journal.rng_digest().hex())"
    command = [sys.executable, "-c", program]
    said = {
        subprocess.run(
            command,
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "random")
    }
    assert len(said) == 1


def test_travel_makes_the_state_of_any_step(tmp_path: Path) -> None:
    train(tmp_path, "digest_every=1")
    said = replay(tmp_path, "--mode", "travel", "--to", "21")
    assert (said["branch"], said["from_step"], said["level"]) == ("small-at-21", 16, "D2")
    assert said["states"] == [17, 18, 19, 20, 21]
    with lg.open(tmp_path, {}, run="small-at-21", rng=False, journal=False) as run:
        assert [(c.step, c.id) for c in run.history()] == [(21, said["saved"])]
        run.verify()
    # The run goes on as if nothing had happened.
    with lg.open(tmp_path, {}, run="small", rng=False, journal=False) as run:
        assert [c.step for c in run.history()] == [8, 16, 24, 32]


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    train(tmp_path, steps=8)
    program = [sys.executable, "-c", "pass"]
    tool = [sys.executable, "-m", "lastgood", "replay", "--store", str(tmp_path), "--run", "small"]
    for options, code, text in [
        (["--to", "99"], 4, "the journal ends with step 8"),
        (["--from", "8", "--to", "8"], 2, "is not before"),
        (["--from", "7"], 4, "7"),
    ]:
        ran = subprocess.run(
            [*tool, *options, "--", *program],
            capture_output=True,
            text=True,
            check=False,
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
