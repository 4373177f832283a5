"""When a run saves: by itself, on demand, and before it is ended. Several ranks save the same steps."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import children
import lastgood as lg
import numpy as np
import pytest
from lastgood import _notice

PROGRAM = children.PROGRAMS / "paced_ranks.py"


def command(store: Path, *words: str) -> list[dict[str, Any]]:
    """What a command prints about run ``default``."""
    whole = [sys.executable, "-m", "lastgood", *words, "--json", "--store", str(store)]
    whole += ["--run", "default"]
    ran = subprocess.run(
        whole, env=children.environment(), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def entries(store: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in command(store, "log") if entry["kind"] == kind]


@contextlib.contextmanager
def job(
    folder: Path, ranks: int, steps: int = 100_000, **policy: Any
) -> Iterator[list[subprocess.Popen[str]]]:
    """Ranks that go on until they are told to end."""
    pace = folder / "pace"
    pace.write_bytes(bytes(8 * ranks))
    words = [str(folder / "store"), json.dumps(policy), str(steps), str(pace)]
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=children.environment(
                RANK=str(rank), WORLD_SIZE=str(ranks), LASTGOOD_INCARNATION=str(steps)
            ),
        )
        for rank in range(ranks)
    ]
    try:
        yield started
    finally:
        for rank in started:
            rank.kill()
            rank.communicate()


def wait_for_checkpoint(store: Path, count: int = 1) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        with contextlib.suppress(AssertionError):
            if len(entries(store, "checkpoint.committed")) >= count:
                return
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


def ends(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, list[str], str]]:
    """Exit codes, lines and errors of all ranks."""
    told = [rank.communicate(timeout=60) for rank in ranks]
    return [
        (rank.returncode, out.split("\n")[:-1], err)
        for rank, (out, err) in zip(ranks, told, strict=True)
    ]


def test_on_demand_all_ranks_save_the_same_step(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with job(tmp_path, 3, at=[10]) as ranks:
        wait_for_checkpoint(store)
        asked = [command(store, "save", "--reason", "test")[0]["step"] for _ in range(2)]
        (tmp_path / "pace.stop").touch()
        told = ends(ranks)
    assert [code for code, *_ in told] == [0, 0, 0], told
    assert asked[0] < asked[1]
    for _, lines, _ in told:
        assert [line for line in lines if line.startswith("save")] == [
            f"save {step}" for step in [10, *asked]
        ]
    saved = [entry["step"] for entry in entries(store, "checkpoint.committed")]
    assert saved == [10, *asked]
    requests = entries(store, "save.requested")
    assert [request["step"] for request in requests] == [None, asked[0], None, asked[1]]


def test_one_rank_that_is_told_to_end_ends_all_after_the_same_step(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with job(tmp_path, 3, at=[10], grace=20) as ranks:
        wait_for_checkpoint(store)
        ranks[1].terminate()
        told = ends(ranks)
    assert [code for code, *_ in told] == [lg.Policy.PREEMPTED] * 3, told
    last = {lines[-1] for _, lines, _ in told}
    assert len(last) == 1, told
    step = int(last.pop().removeprefix("end "))
    assert all(f"the state after step {step} is saved" in err for *_, err in told), told
    assert [entry["step"] for entry in entries(store, "checkpoint.committed")] == [10, step]
    [end] = entries(store, "attempt.ended")
    assert end["how"] == "preemption" and end["reason"] == f"after step {step}, which is saved"
    # The next attempt goes on from it.
    with job(tmp_path, 3, steps=step + 3, at=[10, step + 1]) as ranks:
        told = ends(ranks)
    assert all(lines == [f"save {step + 1}", f"end {step + 3}"] for _, lines, _ in told), told


@pytest.fixture
def sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("sigterm")
def test_a_rank_alone_saves_the_next_step_or_says_that_there_is_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"x": {"w": np.zeros(4_000_000)}}
    for name, grace, saved in [("a", 20, [1, 2]), ("b", 1e-4, [1])]:
        store = tmp_path / name
        with (
            pytest.raises(SystemExit) as ended,
            lg.open(store, state, policy=lg.Policy(at=[1], grace=grace)) as run,
        ):
            handle = run.step(1)
            assert handle is not None
            handle.durable.result(60)
            # Measured where a step ends.
            run._native.wants(1)
            os.kill(os.getpid(), signal.SIGTERM)
            run.step(2)
        assert ended.value.code == lg.Policy.PREEMPTED == 75
        says = "is saved" if saved == [1, 2] else "is not saved: there was no time for it"
        assert f"the state after step 2 {says}" in capsys.readouterr().err
        with lg.open(store, {}) as run:
            assert [c.step for c in run.history()] == saved
        how = entries(store, "attempt.ended")
        assert [end["how"] for end in how] == ["preemption"]


@pytest.mark.usefixtures("sigterm")
def test_what_heard_sigterm_before_hears_it_too(tmp_path: Path) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(SystemExit), lg.open(tmp_path, {"x": {"y": 1}}, policy=grace()) as run:
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            run.step(1)
        with lg.open(tmp_path, {"x": {"y": 1}}, policy=grace()):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def grace() -> lg.Policy:
    return lg.Policy(steps=100, grace=20)


@pytest.mark.usefixtures("sigterm")
def test_a_forked_child_ends_by_sigterm_as_ever(tmp_path: Path) -> None:
    """Workers of a DataLoader are ended so."""
    with lg.open(tmp_path, {"x": {"y": 1}}, policy=grace()):
        # At once, while the child is being made: Python forgets signals that come then.
        for _ in range(30):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
            child.start()
            child.terminate()
            child.join(20)
            assert child.exitcode == -signal.SIGTERM
        assert _notice._before is not None


@pytest.mark.usefixtures("sigterm")
def test_a_run_that_another_thread_closes_hears_no_more(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run = lg.open(tmp_path, {"x": {"y": 1}}, policy=grace())
        thread = threading.Thread(target=run.close)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_the_main_thread_hears_signals(tmp_path: Path) -> None:
    def work() -> None:
        with pytest.warns(RuntimeWarning, match="main thread"):
            lg.open(tmp_path, {}, policy=grace()).close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_auto_and_seconds_of_several_ranks(tmp_path: Path) -> None:
    for name, policy in [("auto", {"auto": True, "max_loss_steps": 100}), ("s", {"seconds": 0.5})]:
        folder = tmp_path / name
        folder.mkdir()
        with job(folder, 3, steps=500, **policy) as ranks:
            told = ends(ranks)
        assert [code for code, *_ in told] == [0, 0, 0], told
        saves = {tuple(line for line in lines if line.startswith("save")) for _, lines, _ in told}
        assert len(saves) == 1, saves
        steps = [int(save.removeprefix("save ")) for save in saves.pop()]
        [found] = command(folder / "store", "policy", "explain")
        assert 1 < found["every"] <= 100
        chosen = entries(folder / "store", "policy.chosen")
        for step in steps:
            held = [one for one in chosen if one["from_step"] <= step]
            assert not held or (step - held[-1]["from_step"]) % held[-1]["every"] == 0, (
                steps,
                chosen,
            )
        assert steps[-1] >= chosen[0]["from_step"]
        if name == "s":
            assert all(5 <= one["every"] <= 55 for one in chosen), chosen
        else:
            assert found["explanation"]["inputs"]["saves"] > 0
            assert [end["how"] for end in entries(folder / "store", "attempt.ended")] == ["closed"]


def test_a_run_explains_what_it_chooses(tmp_path: Path) -> None:
    policy = lg.Policy(auto=True, max_loss=100, bandwidth=1e9)
    state = {"x": {"w": np.zeros(100_000)}}
    with lg.open(tmp_path, state, policy=policy) as run:
        assert run.explain_policy() is None
        for step in range(1, 200):
            state["x"]["w"][:] = step
            run.step(step)
            time.sleep(0.002)
        found = run.explain_policy()
    assert found is not None
    assert found.every >= 1 and found.interval < 100
    assert found.data["policy"] == "auto, at most 100 s lost, at most 1000000000 bytes a second"
    assert str(found) == found.text and "would change it" in found.text
    [chosen] = command(tmp_path, "policy", "explain")
    assert chosen["explanation"]["inputs"].keys() == found.data["inputs"].keys()
    # A failure of the program counts.
    with pytest.raises(ZeroDivisionError), lg.open(tmp_path, state, policy=policy):
        raise ZeroDivisionError
    assert [end["how"] for end in entries(tmp_path, "attempt.ended")] == ["closed", "process"]
    [chosen] = command(tmp_path, "policy", "explain")
    seen = {rate["class"]: rate["seen"] for rate in chosen["failures"]}
    assert seen["process"] == 1 and seen["preemption"] == 0


def test_milestones(tmp_path: Path) -> None:
    for policy, saved in [
        (lg.Policy(milestones=3), [3, 6, 9]),
        (lg.Policy(milestones=[2, 7], at=[5]), [2, 5, 7]),
        (lg.Policy(4, milestones=np.array([3]), demand=False), [3, 4, 8]),
    ]:
        store = tmp_path / repr(policy)
        with lg.open(store, {"x": {"y": 1}}, policy=policy) as run:
            for step in range(1, 10):
                run.step(step)
        with lg.open(store, {}) as run:
            assert [c.step for c in run.history()] == saved


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "without a condition"),
        ({"grace": 5}, "without a condition"),
        ({"steps": 0}, "above 0"),
        ({"steps": -1}, "numbers of steps"),
        ({"steps": "often"}, "numbers of steps"),
        ({"seconds": 0}, "above 0"),
        ({"seconds": -1.0}, "no duration"),
        ({"milestones": 0}, "above 0"),
        ({"milestones": [-5]}, "numbers of steps"),
        ({"auto": True, "max_loss": 0}, "above 0"),
        ({"auto": True, "max_loss_steps": 0}, "above 0"),
        ({"auto": True, "bandwidth": -1}, "above 0"),
        ({"auto": True, "grace": float("nan")}, "no duration"),
        ({"steps": 5, "max_loss": 10}, "auto"),
        ({"steps": 5, "bandwidth": 10}, "auto"),
    ],
)
def test_policies_that_cannot_be_followed(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(lg.Invalid, match=says):
        lg.Policy(**arguments)
