"""Runs that go on by a replay: what is recorded behind the checkpoint is done again, compared, and then it is live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import lastgood as lg
import numpy as np
import pytest
from children import PROGRAMS, environment
from lastgood import _folders, _resume
from lastgood._peers import Peers
from lastgood._state import World

STEPS = 12
#: The job is lost after this step, behind its checkpoint of step 9.
LOST = 11


class Job:
    """Noisy gradient descent, which draws from a generator that nobody seeds."""

    def __init__(self, rate: float = 0.1) -> None:
        self.state: dict[str, Any] = {"model": {"w": np.ones(64)}}
        self.rate = rate

    def step(self, step: int, scale: float = 1.0) -> dict[str, Any]:
        weights = self.state["model"]["w"]
        weights -= self.rate * (weights * 0.01 + scale * np.random.standard_normal(weights.shape))
        return {"loss": float((weights**2).sum())}

    def bytes(self) -> bytes:
        weights: bytes = self.state["model"]["w"].tobytes()
        return weights


def begin(store: Path, job: Job, every: int = 3, **settings: Any) -> lg.Run:
    journal = {"wait": True, "digest_every": 1}
    return lg.open(store, job.state, policy=lg.Policy(steps=every), journal=journal, **settings)


def lose(store: Path, job: Job, every: int = 3, reads: bool = True) -> dict[int, bytes]:
    """Trains, and is lost without a word; gives the weights after each step."""
    run = begin(store, job, every)
    weights = {}
    for step in range(run.restore() + 1, LOST + 1):
        scale = run.read_external("scale", 1.0) if reads else 1.0
        handle = run.step(step, **job.step(step, scale))
        if handle is not None:
            handle.durable.result()
        weights[step] = job.bytes()
    run._native.abandon()
    return weights


def test_it_comes_to_the_end_of_the_record_and_saves_it(tmp_path: Path) -> None:
    weights = lose(tmp_path, Job())
    job = Job()
    replayed = lg.replay(tmp_path, job.state, job.step, mode="resume")
    # The function of this one reads nothing from outside.
    assert [found.code for found in replayed.divergences] == ["LG-ND-003"]
    assert replayed.checkpoint is None and replayed.level is None and not replayed.equal
    weights = lose(tmp_path / "another", job := Job(), reads=False)
    again = Job()
    replayed = lg.replay(tmp_path / "another", again.state, again.step, mode="resume")
    assert (replayed.from_step, replayed.to, replayed.steps) == (9, LOST, LOST - 9)
    assert again.bytes() == weights[LOST] == job.bytes()
    with lg.open(tmp_path / "another", Job().state) as run:
        assert [c.step for c in run.history()] == [3, 6, 9, LOST]
        assert run.history()[-1].id == replayed.checkpoint


@pytest.mark.parametrize("flipped", [False, True])
def test_states_are_compared_at_the_end(tmp_path: Path, flipped: bool) -> None:
    job = Job()
    with begin(tmp_path, job) as run:
        for step in range(1, LOST + 1):
            run.step(step, **job.step(step))
    again = Job()

    def step_fn(step: int) -> dict[str, Any]:
        said = again.step(step)
        if flipped and step == LOST:
            again.state["model"]["w"].view(np.uint64)[3] ^= np.uint64(1 << 50)
        return said

    replayed = lg.replay(tmp_path, again.state, step_fn, mode="resume")
    assert (replayed.states, replayed.equal) == ([LOST], not flipped)
    assert replayed.level == (None if flipped else "D2")
    found = [(one.code, one.step, one.what) for one in replayed.divergences]
    assert found == ([("LG-ND-001", LOST, "model/w")] if flipped else [])
    with lg.open(tmp_path, Job().state) as run:
        # It is there: whoever is told of the difference decides what becomes of it.
        assert run.history()[-1].id == replayed.checkpoint


def test_behind_the_record_it_is_live(tmp_path: Path) -> None:
    lose(tmp_path, Job(), reads=False)
    job = Job()
    replayed = lg.replay(tmp_path, job.state, job.step, mode="resume", to=STEPS + 2)
    assert (replayed.to, replayed.steps, replayed.diverged) == (STEPS + 2, LOST - 9, False)
    for wrong in ({"start": 3}, {"branch": "b"}, {"to": 3}):
        with pytest.raises(lg.Invalid):
            lg.replay(tmp_path, Job().state, job.step, mode="resume", **wrong)
    # Nothing is recorded behind the checkpoint that it has saved.
    again = lg.replay(tmp_path, Job().state, job.step, mode="resume")
    assert (again.from_step, again.to, again.steps, again.checkpoint) == (14, 14, 0, None)
    assert not again.equal and not again.diverged


@pytest.mark.parametrize("every", [3, 100], ids=["from a checkpoint", "from nothing"])
def test_a_training_gives_what_was_read_and_drawn_once(tmp_path: Path, every: int) -> None:
    weights = lose(tmp_path, Job(), every)
    np.random.seed(7)
    job = Job()
    told = []
    with begin(tmp_path, job, every, resume="replay") as run:
        start = run.restore()
        assert start == (9 if every == 3 else 0)
        for step in range(start + 1, STEPS + 1):
            scale = run.read_external("scale", 2.0)
            told.append((step, scale))
            run.step(step, **job.step(step, scale))
            assert step > LOST or job.bytes() == weights[step]
        notices = [] if run.last_restore is None else run.last_restore.notices
    assert told == [(step, 1.0 if step <= LOST else 2.0) for step in range(start + 1, STEPS + 1)]
    if every == 3:
        assert notices == [
            "attempt 1 recorded steps 10 to 11 after it: they are done again and compared"
        ]


def test_what_differs_ends_the_training_and_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(tmp_path, Job())
    monkeypatch.setenv("LASTGOOD_RESUME", "replay")
    job = Job(rate=0.2)
    run = begin(tmp_path, job)
    step = run.restore() + 1
    metrics = job.step(step, run.read_external("scale", 1.0))
    with pytest.raises(
        lg.Diverged, match=r"LG-ND-005: step 10, rank 0: loss: recorded .*lastgood run"
    ):
        run.step(step, **metrics)
    with pytest.warns(lg.SaveWarning, match="LG-ND-005"), pytest.raises(lg.Diverged):
        run.save(step)
    with pytest.raises(lg.Diverged):
        run.close()
    monkeypatch.setenv("LASTGOOD_RESUME", "other")
    with pytest.raises(lg.Invalid, match="no way to resume"):
        begin(tmp_path, Job())
    with begin(tmp_path, Job(), resume="live") as live:
        assert live.restore() == 9
        assert [c.step for c in live.history()] == [3, 6, 9]


def test_a_folder_that_is_taken_over_is_live_whether_it_can_be_saved_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(tmp_path, Job())

    def fail(*_: Any) -> None:
        raise lg.Unavailable("the store is away")

    monkeypatch.setattr(_folders, "ingest", fail)
    with begin(tmp_path, job := Job(), resume="replay") as run:
        run.restore()
        assert run._native.todo() == (1, 9, LOST)
        found = _resume.Resume(run, tmp_path, "a test", dict, lambda *_: None)
        with pytest.warns(lg.SaveWarning, match="checkpoint-11"):
            found._adopt(tmp_path / "checkpoint-11", 11, Peers(World()))
        assert run._native.todo() is None
        run.step(12, **job.step(12))


def tool(*words: str, code: int = 0, **more: str) -> list[dict[str, Any]]:
    """What ``lastgood WORDS`` says, line by line."""
    command = [sys.executable, "-m", "lastgood", words[0], "--json", *words[1:]]
    ran = subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == code, (ran.stdout + ran.stderr)[-4000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_killed_job_goes_on_by_command(tmp_path: Path) -> None:
    place = ["--store", str(tmp_path), "--run", "small"]
    job = ["--", forks.python("torch"), str(PROGRAMS / "replayed.py"), str(tmp_path), "16"]
    plant = "save_every=4 digest_every=1"
    tool("run", *place, "--restarts", "0", *job, code=1, PLANT=f"{plant} kill=11")
    said = tool("replay", *place, "--mode", "resume", *job, code=6, PLANT=f"{plant} lr=10")[-1]
    first = said["divergences"][0]
    assert (said["equal"], first["code"], first["step"], first["what"]) == (
        False, "LG-ND-005", 10, "lr",
    )  # fmt: skip
    # What is outside has changed meanwhile; until the end of the record it counts as it was.
    said = tool("replay", *place, "--mode", "resume", *job, PLANT=f"{plant} rate=1")[-1]
    assert said["equal"] and said["recorded_by"] == 1 and said["from_step"] == 8, said
    lines = tool("log", *place, "--journal", "--kind", "external.read")
    rates = [(line["attempt"], line["event"]["value"]) for line in lines]
    recorded = said["to"] - 8
    assert [rate for attempt, rate in rates if attempt == 3][:recorded] == [0.01] * recorded
    assert rates[-1] == (3, 0.02)
