"""Replays within a program: `lg.replay` with a function that does one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lastgood as lg
import numpy as np
import pytest

STEPS = 12


class Job:
    """A small training: noisy gradient descent, with generators that are part of what is replayed."""

    def __init__(self, rate: float = 0.1, flip_at: int | None = None) -> None:
        self.state: dict[str, Any] = {"model": {"w": np.ones(64)}, "sum": {"seen": 0.0}}
        self.rate = rate
        self.flip_at = flip_at

    def step(self, step: int) -> dict[str, Any]:
        weights = self.state["model"]["w"]
        noise = np.random.standard_normal(weights.shape)
        weights -= self.rate * (weights * 0.01 + noise)
        if step == self.flip_at:
            weights.view(np.uint64)[7] ^= np.uint64(1 << 50)
        self.state["sum"]["seen"] += float(weights[0])
        return {"loss": float((weights**2).sum()), "rate": self.rate}


def train(store: Path, job: Job, policy: Any = 3, **settings: Any) -> None:
    with lg.open(store, job.state, policy=lg.Policy(steps=policy), **settings) as run:
        for step in range(run.restore() + 1, STEPS + 1):
            run.step(step, **job.step(step))


def test_the_same_steps_are_equal_from_any_checkpoint(tmp_path: Path) -> None:
    job = Job()
    train(tmp_path, job)
    end = job.state["model"]["w"].copy()
    for start, first in [(None, 9), (3, 3), ("start", 0)]:
        again = Job()
        replayed = lg.replay(tmp_path, again.state, again.step, start=start)
        assert replayed.equal and not replayed.diverged, replayed.divergences
        assert (replayed.level, replayed.from_step, replayed.to) == ("D2", first, STEPS)
        assert replayed.steps == STEPS - first and STEPS in replayed.states
        assert again.state["model"]["w"].tobytes() == end.tobytes()
    with lg.open(tmp_path, Job().state) as run:
        assert run.attempt == 2, "replays begin no attempt of the run"
        assert [c.step for c in run.history()] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("job", "what", "first"),
    [(Job(rate=0.2), "loss", 10), (Job(flip_at=11), "loss", 11)],
    ids=["rate", "flip"],
)
def test_what_is_done_otherwise_is_named(tmp_path: Path, job: Job, what: str, first: int) -> None:
    train(tmp_path, Job())
    replayed = lg.replay(tmp_path, job.state, job.step)
    assert replayed.diverged and not replayed.equal and replayed.level is None
    assert replayed.divergences[0].step == first
    assert what in {found.what for found in replayed.divergences if found.step == first}
    assert "model/w" in {found.what for found in replayed.divergences}


def test_travel_saves_the_state_of_any_step(tmp_path: Path) -> None:
    train(tmp_path, Job(), journal={"digest_every": 1})
    job = Job()
    replayed = lg.replay(tmp_path, job.state, job.step, mode="travel", to=8)
    assert replayed.equal and (replayed.from_step, replayed.to) == (6, 8)
    assert replayed.branch == "default-at-8" and replayed.checkpoint is not None
    other = Job()
    with lg.open(tmp_path, other.state, run="default-at-8") as run:
        assert run.restore() == 8 and run.last_restore is not None
        assert run.last_restore.checkpoint == replayed.checkpoint
    assert other.state["model"]["w"].tobytes() == job.state["model"]["w"].tobytes()
    with pytest.raises(lg.Conflict, match="default-at-8"):
        lg.replay(tmp_path, Job().state, job.step, mode="travel", to=8)


def test_a_shadow_looks_at_each_window_once(tmp_path: Path) -> None:
    train(tmp_path, Job(flip_at=8))
    seen: dict[str, lg.Replayed] = {}
    for _ in range(4):
        job = Job()
        found = lg.replay(tmp_path, job.state, job.step, mode="shadow", seen=seen)
        assert found.window is not None and found.window not in seen
        seen[found.window] = found
    assert {(w.from_step, w.diverged) for w in seen.values()} == {
        (0, False), (3, False), (6, True), (9, False),
    }  # fmt: skip
    with pytest.raises(lg.NotFound, match="no window"):
        lg.replay(tmp_path, Job().state, Job().step, mode="shadow", seen=seen)


def test_an_audit_runs_nothing(tmp_path: Path) -> None:
    train(tmp_path, Job())
    audited = lg.replay(tmp_path, mode="audit")
    assert audited.ok and audited.events > STEPS and audited.cuts == 4
    segment = sorted(tmp_path.rglob("*.seg"))[-1]
    stored = bytearray(segment.read_bytes())
    stored[len(stored) // 2] ^= 4
    segment.unlink()
    segment.write_bytes(stored)
    audited = lg.replay(tmp_path, mode="audit")
    assert not audited.ok and segment.name in audited.findings[0]


def test_what_cannot_be_replayed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    train(tmp_path, job)
    call: Callable[..., Any] = lg.replay
    for given in [
        {"mode": "guess"},
        {"mode": "reexecute"},
        {"state": job.state, "step_fn": job.step, "mode": "shadow", "to": 6},
        {"state": job.state, "step_fn": job.step, "branch": "x"},
    ]:
        with pytest.raises(lg.Invalid):
            call(tmp_path, **given)
    with pytest.raises(lg.NotFound, match="of step 7"):
        lg.replay(tmp_path, job.state, job.step, start=7)
    with pytest.raises(lg.NotFound, match="the journal"):
        lg.replay(tmp_path, job.state, job.step, to=40)
    with pytest.raises(lg.NotFound):
        lg.replay(tmp_path / "nowhere", job.state, job.step)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(lg.Invalid, match="lastgood replay -- COMMAND"):
        lg.replay(tmp_path, job.state, job.step)
