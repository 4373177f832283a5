"""A run from Python: saved, restored, refused, damaged, interrupted."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import lastgood as lg
import numpy as np
import pytest
from lastgood import _lastgood


class Counter:
    """A Stateful object that can be told to refuse."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.array = np.arange(4, dtype=np.float32)
        self.refuses: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "array": self.array.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["value"] == self.refuses:
            self.value = -1
            raise RuntimeError("I would rather not")
        self.value = state["value"]
        self.array = state["array"]


def packs(store: Path) -> list[Path]:
    return sorted(store.rglob("*.pack"))


def flip(path: Path, at: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_the_state_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    state: dict[str, Any] = {
        "numbers": {"epoch": 3, "best": float("inf"), "history": [0.1, 0.2]},
        "array": np.arange(12, dtype=np.int16).reshape(3, 4),
        "counter": Counter(5),
        "scalar": 7,
        "rng.numpy": rng,
        "rng.python": random.Random(4),
    }
    held = state["numbers"], state["array"]
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 0
        run.save(10, block=True)
        expected = [rng.random(), state["rng.python"].random(), random.random(), np.random.rand()]
        state["numbers"].update(epoch=4, extra=1, history=[])
        state["array"][:] = 0
        state["counter"].value = 99
        state["scalar"] = 8
        assert run.restore(at="latest") == 10
    assert state["numbers"] == {"epoch": 3, "best": float("inf"), "history": [0.1, 0.2]}
    assert state["array"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert state["counter"].value == 5 and state["scalar"] == 7
    # What others hold is the same object.
    assert state["numbers"] is held[0] and state["array"] is held[1]
    drawn = [rng.random(), state["rng.python"].random(), random.random(), np.random.rand()]
    assert drawn == expected


def test_a_second_process_goes_on(tmp_path: Path) -> None:
    state = {"n": {"seen": 0}}
    for expected in [0, 2, 4]:
        run = lg.open(tmp_path, state, policy=lg.Policy(steps=2))
        state["n"]["seen"] = -1
        assert run.restore() == expected
        for step in range(expected, expected + 3):
            state["n"]["seen"] = step + 1
            run.step(step + 1, loss=0.5)
        run.close()
    with lg.open(tmp_path, state) as run:
        assert [c.step for c in run.history()] == [2, 4, 6]
        assert all(c.standing == "committed" and len(c.id) == 64 for c in run.history())
        assert run.attempt == 4


def test_a_restore_is_whole_or_nothing(tmp_path: Path) -> None:
    """Three kinds of objects, the last of which refuses: everything is as it was, generators too."""

    def make(value: int) -> dict[str, Any]:
        return {
            "a": Counter(value),
            "b": {"x": np.full(3, value)},
            "c": Counter(value),
            "d": Counter(value),
        }

    with lg.open(tmp_path, make(1)) as run:
        run.save(1, block=True)
    state = make(2)
    state["d"].refuses = 1
    with lg.open(tmp_path, state) as run:
        before = random.getstate(), state["a"].array
        with pytest.raises(
            lg.Incompatible, match="everything is as it was: RuntimeError: I would rather not"
        ):
            run.restore()
        assert [state[n].value for n in "acd"] == [2, 2, 2]
        assert state["b"]["x"].tolist() == [2, 2, 2]
        assert random.getstate() == before[0]
        state["c"].refuses = 2
        state["d"].refuses = 1
        with pytest.raises(lg.Incompatible, match="NOT taken back: RuntimeError"):
            run.restore()
        assert state["a"].value == 2
        state["c"].refuses = state["d"].refuses = None
        assert run.restore() == 1
        assert [state[n].value for n in "acd"] == [1, 1, 1]


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    with lg.open(
        tmp_path, {"a": {"w": np.zeros((2, 3)), "v": np.zeros(2)}, "gone": {"x": 1}}
    ) as run:
        run.save(1, block=True)
    state = {
        "a": {"w": np.ones((3, 2)), "v": np.ones(2, np.float32), "new": np.ones(1)},
        "fresh": {"x": 1},
    }
    with lg.open(tmp_path, state) as run:
        report = run.preflight()
        with pytest.raises(lg.LastgoodError) as caught:
            run.restore()
    text = str(caught.value)
    for words in [
        "component 'fresh' is not in the checkpoint",
        "component 'gone' is only in the checkpoint",
        "a/w has shape [3, 2], in the checkpoint [2, 3]",
        "a/v is F32, in the checkpoint F64",
        "a/new is not in the checkpoint",
        "nothing was changed",
    ]:
        assert words in text, text
    assert isinstance(caught.value, lg.NotFound)
    assert not report.ok and len(report.problems) == 5 and "a/new" in str(report)
    assert state["a"]["w"].tolist() == np.ones((3, 2)).tolist()


def test_only_some_components(tmp_path: Path) -> None:
    state = {"a": {"x": 1}, "b": {"x": 2}}
    with lg.open(tmp_path, state) as run:
        run.save(1, block=True)
        state["a"]["x"] = state["b"]["x"] = 9
        assert run.restore(at=1, only=["a"]) == 1
        assert state == {"a": {"x": 1}, "b": {"x": 9}}
        assert run.restore() == 1 and state["b"]["x"] == 2, (
            "the newest, not what the attempt began with"
        )
        with pytest.raises(lg.NotFound, match="'zzz'"):
            run.restore(only=["zzz"])
        with pytest.raises(lg.NotFound):
            run.restore(at=77)
        with pytest.raises(lg.Invalid):
            run.restore(at="the one before")


@pytest.mark.parametrize("victim", ["*.pack", "*.idx", "checkpoints/*.json"])
def test_damage_goes_back_and_is_told(tmp_path: Path, victim: str) -> None:
    state = {"a": {"x": np.arange(50_000, dtype=np.float64)}}
    with lg.open(tmp_path, state) as run:
        run.save(1, block=True)
        before = set(tmp_path.rglob(victim))
        state["a"]["x"] += 0.5
        run.save(2, block=True)
    (damaged,) = set(tmp_path.rglob(victim)) - before
    flip(damaged, damaged.stat().st_size // 2)
    state["a"]["x"][:] = -1
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 1
        assert state["a"]["x"].tolist() == np.arange(50_000).tolist()
        assert run.last_restore is not None and "skipped checkpoint" in run.last_restore.notices[0]
        assert [c.standing for c in run.history()] == ["committed", "bad"]
    flip(damaged, damaged.stat().st_size // 2)
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 1, "what was bad stays bad until somebody says otherwise"
        run.mark(2, "good", "the cable was loose")
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 2


def test_nothing_left_is_no_fresh_start(tmp_path: Path) -> None:
    with lg.open(tmp_path, {"a": {"x": np.arange(1000)}}) as run:
        run.save(1, block=True)
    flip(packs(tmp_path)[0])
    with (
        lg.open(tmp_path, {"a": {"x": np.zeros(1000, int)}}) as run,
        pytest.raises(lg.Corrupt, match="no checkpoint"),
    ):
        run.restore()


def test_verify_and_mark(tmp_path: Path) -> None:
    with lg.open(tmp_path, {"a": {"x": np.arange(1000)}}) as run:
        handle = run.save(1)
        identity = handle.durable.result(60)
        assert handle.verified.result(60) == identity
        assert run.history()[0].standing == "committed", (
            "a mark would outrank what is saved after it"
        )
        seen: list[tuple[int, int]] = []
        assert run.verify("latest", progress=lambda done, all: seen.append((done, all))) > 8000
        assert seen and seen[-1][0] == seen[-1][1]
        flip(packs(tmp_path)[0])
        with pytest.raises(lg.Corrupt) as caught:
            run.verify(1)
        assert ".pack" in str(caught.value)
        assert run.history()[0].standing == "bad"


def test_handles(tmp_path: Path) -> None:
    called = threading.Event()
    with lg.open(tmp_path, {"a": {"x": 1}}) as run:
        handle = run.save(3)
        handle.durable.add_done_callback(lambda stage: called.set())
        assert handle.captured.result() is True
        assert handle.durable.result(timeout=60) == run.history()[0].id
        assert handle.durable.done() and handle.durable.exception() is None
        assert handle.status == "committed" and handle.step == 3
        assert called.wait(60)
        assert "step 3: done" in repr(handle.durable)


def test_a_newer_attempt_fences(tmp_path: Path) -> None:
    old = lg.open(tmp_path, {"a": {"x": 1}})
    old.save(1, block=True)
    with lg.open(tmp_path, {"a": {"x": 1}}) as new:
        new.save(2, block=True)
    with pytest.raises(lg.Fenced):
        old.save(3, block=True)
    with pytest.warns(lg.SaveWarning), pytest.raises(lg.Fenced):
        old.save(4)
    old.close()
    old.close()
    with pytest.raises(lg.Closed):
        old.save(5)


def test_what_cannot_be_stored_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": {"x": 1}}
    with lg.open(tmp_path, state) as run:
        state["a"]["f"] = lambda: 1
        with pytest.raises(lg.Invalid, match=r"a\['f'\].*without pickle"):
            run.save(1)
        del state["a"]["f"]
        run.save(1, block=True)
        state["a"]["x"] = object()
        with pytest.raises(lg.Invalid):
            run.step(100)
        state["a"]["x"] = 2
    assert [c.step for c in lg.open(tmp_path, {}, rng=False).history()] == [1]


def test_failed_saves_warn_and_are_raised_at_the_end(tmp_path: Path) -> None:
    state = {"a": {"x": np.arange(100)}}
    run = lg.open(tmp_path, state)
    run.save(1, block=True)
    block = tmp_path / "runs" / "default" / "packs"
    block.rename(tmp_path / "aside")
    block.write_text("in the way")
    state["a"]["x"] += 1
    handle = run.save(2)
    assert isinstance(handle.durable.exception(60), lg.LastgoodError)
    assert handle.status == "failed"
    with pytest.warns(lg.SaveWarning, match="save of step 2"):
        last = run.save(3)
    with pytest.raises(lg.LastgoodError):
        last.durable.result(60)
    with pytest.raises(lg.LastgoodError, match="step 3"):
        run.close()
    block.unlink()
    (tmp_path / "aside").rename(block)
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 1


def test_arguments_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LASTGOOD_STORE", raising=False)
    with pytest.raises(lg.Invalid, match="LASTGOOD_STORE"):
        lg.open()
    with pytest.raises(lg.Invalid, match="chunk_bytes"):
        lg.open(tmp_path, {}, chunk_bytes=1)
    with pytest.raises(lg.Invalid, match=r"no setting .bogus"):
        lg.open(tmp_path, {}, bogus=1)
    with pytest.raises(lg.Invalid, match="compression"):
        lg.open(tmp_path, {}, compression="gzip")
    with pytest.raises(lg.Invalid, match="'rng'"):
        lg.open(tmp_path, {"rng": {"x": 1}})
    with pytest.raises(lg.Invalid, match="name is a string"):
        lg.open(tmp_path, {1: {"x": 1}})  # type: ignore[dict-item]
    with pytest.raises(lg.Invalid, match="policy"):
        lg.open(tmp_path, {}, policy="often")
    with pytest.raises(lg.Invalid, match="dict of named components, given list"):
        lg.open(tmp_path, [{"x": 1}])  # type: ignore[arg-type]
    with lg.open(tmp_path, {"x": {"y": 1}}) as run:
        for step in (-1, 1.5, "1", 1 << 63):
            with pytest.raises(lg.Invalid, match="a step is a whole number of at least 0, given"):
                run.save(step)  # type: ignore[arg-type]
        run.save(np.int64(2), block=True)
    with pytest.raises(lg.Invalid):
        lg.Policy()
    with pytest.raises(lg.Invalid):
        lg.Policy(steps=0)
    for rank, size in [("1", None), ("2", "2"), ("x", "2")]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size) if size else monkeypatch.delenv(
            "WORLD_SIZE", raising=False
        )
        with pytest.raises(lg.Invalid, match="RANK"):
            lg.open(tmp_path, {})
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(lg.Invalid, match="init_process_group"):
        lg.open(tmp_path, {})


def test_classes_of_durability(tmp_path: Path) -> None:
    calls: list[str] = []
    state = {
        "kept": lg.Durable({"x": 1}, owner="trainer team"),
        "cache": lg.Derived({"y": 1}, owner="data", rebuild=lambda: calls.append("rebuilt")),
        "trace": lg.Volatile({"z": 1}, owner="profiler", reset=lambda: calls.append("reset")),
    }
    with lg.open(tmp_path, state) as run:
        run.save(1, block=True)
        assert calls == []
        state["kept"].obj["x"] = state["cache"].obj["y"] = 5
        run.restore(at=1)
        assert calls == ["rebuilt", "reset"]
        assert state["kept"].obj == {"x": 1} and state["cache"].obj == {"y": 5}
        components = {
            name: (owner, kind) for name, owner, kind in run._native.find("1").components()
        }
    assert components["kept"] == ("trainer team", "durable")
    assert components["cache"] == ("data", "derived")
    assert components["trace"] == ("profiler", "volatile")


def test_policies(tmp_path: Path) -> None:
    with lg.open(tmp_path, {"a": {"x": 1}}, policy=lg.Policy(steps=10, at=[3])) as run:
        saved = [step for step in range(1, 31) if run.step(step) is not None]
    assert saved == [3, 10, 20, 30]
    policy = lg.Policy(seconds=0.2)
    with lg.open(tmp_path / "timed", {"a": {"x": 1}}, policy=policy) as run:
        assert run.step(1) is None
        time.sleep(0.25)
        assert run.step(2) is not None
        assert run.step(3) is None


def test_the_interpreter_goes_on_while_a_call_waits(tmp_path: Path) -> None:
    """Another thread counts while a save of 200 MB is copied and written."""
    state = {"a": {"x": np.ones(25_000_000)}}
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    with lg.open(tmp_path, state) as run:
        thread = threading.Thread(target=tick)
        thread.start()
        start = time.monotonic()
        run.save(1, block=True)
        run.verify(1)
        waited = time.monotonic() - start
        done.set()
        thread.join()
    assert ticks > 5 and ticks > waited / 0.1, (ticks, waited)


PROGRAM = """
import sys, lastgood as lg
state = {"a": {"x": 1}}
run = lg.open(sys.argv[1], state)
"""


def spawn(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_a_wait(tmp_path: Path) -> None:
    """A rank whose peer never comes waits for the commit; Ctrl-C is a KeyboardInterrupt at once."""
    env = dict(os.environ, RANK="0", WORLD_SIZE="2", LASTGOOD_INCARNATION="x")
    code = PROGRAM + (
        "handle = run.save(1)\nprint('waiting', flush=True)\n"
        "try: handle.durable.result()\n"
        "except KeyboardInterrupt: print('interrupted', flush=True); import os; os._exit(7)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert child.stdout is not None and child.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert out == "interrupted\n" and child.returncode == 7


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_ctrl_c_at_the_end_gives_up_a_save(tmp_path: Path, pause: float) -> None:
    """At its end a process waits for the other ranks, says so, and need not be waited for."""
    env = dict(os.environ, RANK="0", WORLD_SIZE="2", LASTGOOD_INCARNATION="x")
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + "run.save(7)", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert child.stderr is not None
    said = child.stderr.readline()
    assert "waiting for the save of step 7" in said and "Ctrl-C" in said, said
    time.sleep(pause)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert "the save of step 7 is given up" in said and "Traceback" not in said, said


def test_an_end_without_close_loses_nothing(tmp_path: Path) -> None:
    child = spawn("run.save(1)\nsys.exit(3)", str(tmp_path))
    assert child.wait(60) == 3
    child = spawn("run.save(2)\nraise ValueError('x')", str(tmp_path))
    assert child.wait(60) == 1
    with lg.open(tmp_path, {}, rng=False) as run:
        assert [c.step for c in run.history()] == [1, 2]


def test_an_end_tells_a_failure(tmp_path: Path) -> None:
    code = (
        "import pathlib; run.save(1, block=True); p = pathlib.Path(sys.argv[1]) / 'runs/default/packs'\n"
        "p.rename(p.with_name('aside')); p.write_text('x'); state['a']['x'] = 'y' * 1000; run.save(2)"
    )
    child = spawn(code, str(tmp_path))
    _, err = child.communicate(timeout=60)
    assert "lastgood:" in err and "step 2" in err


@pytest.mark.parametrize("is_damaged", [False, True])
def test_damage_of_the_journal_of_a_killed_process_warns(tmp_path: Path, is_damaged: bool) -> None:
    """A torn end is what a kill may leave, and nobody is warned of it."""
    code = "for step in range(1, 6): run.step(step)\nimport time; time.sleep(1); os.kill(os.getpid(), 9)"
    assert spawn("import os\n" + code, str(tmp_path)).wait(60) == -signal.SIGKILL
    (left,) = tmp_path.glob(".journal/default/*.open")
    if is_damaged:
        flip(left, left.stat().st_size - 200)
    else:
        os.truncate(left, left.stat().st_size - 30)
    with lg.open(tmp_path, {}, rng=False) as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deadline = time.monotonic() + 30
        for step in itertools.count(1):
            run.save(step, block=True)
            if (not left.exists() and len(caught) >= is_damaged) or time.monotonic() > deadline:
                break
    said = [str(one.message) for one in caught if one.category is lg.SaveWarning]
    assert [("the journal of attempt 1" in one, ".aside" in one) for one in said] == [
        (True, True)
    ] * is_damaged
    assert left.with_suffix(".aside").exists() == is_damaged


def test_a_killed_process_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """Killed by -9 at twelve moments while it saves without a pause; what is there restores and verifies."""
    code = (
        "import numpy as np, itertools\nstate['a']['x'] = np.zeros(300_000)\nstart = run.restore()\n"
        "assert (state['a']['x'] == start).all()\nprint('at', start, flush=True)\n"
        "for step in itertools.count(start + 1):\n    state['a']['x'][:] = step\n    run.save(step)\n"
    )
    reached = []
    for i in range(6):
        child = spawn(code, str(tmp_path))
        assert child.stdout is not None
        reached.append(int(child.stdout.readline().split()[1]))
        time.sleep(0.05 + 0.037 * i)
        child.kill()
        child.wait()
    assert reached == sorted(reached) and reached[-1] > 0
    state = {"a": {"x": np.zeros(300_000)}}
    with lg.open(tmp_path, state) as run:
        step = run.restore()
        assert step >= reached[-1] and (state["a"]["x"] == step).all()
        run.verify()


def test_two_ranks_commit_together(tmp_path: Path) -> None:
    """Two ranks in one process: what each holds for itself, what both hold, and another number of ranks after."""

    def opened(rank: int, size: int, name: str, state: dict[str, Any]) -> lg.Run:
        from lastgood._policy import as_policy
        from lastgood._run import Run
        from lastgood._state import World

        native = _lastgood.Run(str(tmp_path), {}, "r", rank, size, name, {"commit_wait": 2.0})
        return Run(native, state, World(rank, size), as_policy(None), rng=False, overlap=True)

    def states(size: int, value: int) -> list[dict[str, Any]]:
        return [
            {
                "own": {"rank": rank, "x": np.full(3, rank + value)},
                "same": lg.Durable({"y": np.full(2, value)}, ranks="same"),
            }
            for rank in range(size)
        ]

    first = states(2, 10)
    runs = [opened(rank, 2, "one", first[rank]) for rank in range(2)]
    handles = [run.save(1) for run in runs]
    assert len({handle.durable.result(60) for handle in handles}) == 1
    with pytest.raises(lg.Invalid, match="must name the checkpoint"):
        runs[0].restore()
    [run.close() for run in runs]
    again = states(2, 0)
    runs = [opened(rank, 2, "two", again[rank]) for rank in range(2)]
    assert [run.restore() for run in runs] == [1, 1]
    assert [state["own"]["x"].tolist() for state in again] == [[10] * 3, [11] * 3]
    assert [state["same"].obj["y"].tolist() for state in again] == [[10] * 2] * 2
    lonely = runs[0].save(2)
    with pytest.raises(TimeoutError):
        lonely.durable.result(0.2)
    assert isinstance(lonely.durable.exception(60), lg.LastgoodError), (
        "one rank alone is no checkpoint"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for run in runs:
            try:
                run.close()
            except lg.LastgoodError as error:
                assert "step 2" in str(error)
    alone = opened(0, 1, "three", states(1, 0)[0])
    with pytest.raises(lg.LastgoodError, match="'own' differs between the 2 ranks"):
        alone.restore()
    assert alone.restore(only=["same"]) == 1
    alone.close()


def test_a_closed_run_lets_go_of_its_state_at_once(tmp_path: Path) -> None:
    """Not only when the collector comes: a model is large, and a loader that it finds waits for its workers."""

    class Part:
        def state_dict(self) -> dict[str, int]:
            return {"x": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            pass

    part = Part()
    alive = weakref.ref(part)
    gc.disable()
    try:
        with lg.open(tmp_path, {"part": part}) as run:
            handle = run.save(1)
            handle.verified.result(60)
        del run, handle, part
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("journal", "bound"), [(False, 10e-6), (True, 600e-6)])
def test_run_step_is_cheap(tmp_path: Path, journal: bool, bound: float) -> None:
    """Well below a microsecond when it neither saves nor records, and below 50 when it records; ten times that is the
    bound on a shared machine."""
    policy = lg.Policy(steps=10**9)
    with lg.open(tmp_path, {"a": {"x": 1}}, policy=policy, journal=journal) as run:
        best = min(_seconds(run) for _ in range(20))
    assert best < bound, best


def _seconds(run: lg.Run) -> float:
    start = time.perf_counter()
    for step in range(1, 101):
        run.step(step, loss=0.5)
    return (time.perf_counter() - start) / 100


def test_supervised_elsewhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTGOOD_STORE", str(tmp_path / "a"))
    with pytest.warns(RuntimeWarning, match="LASTGOOD_STORE"):
        lg.open(tmp_path / "b", {}).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lg.open(f"file://{tmp_path}/a", {}).close()


def test_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "heart"
    file.write_bytes(bytes(8))
    monkeypatch.setenv("LASTGOOD_HEARTBEAT", str(file))
    with lg.open(tmp_path / "s", {"a": {"x": 1}}) as run:
        run.step(41)
        assert int.from_bytes(file.read_bytes(), "little") == 42
    monkeypatch.setenv("LASTGOOD_HEARTBEAT", str(tmp_path / "no" / "file"))
    with pytest.raises(lg.Invalid, match="LASTGOOD_HEARTBEAT"):
        lg.open(tmp_path / "s", {})


def test_a_forked_child_ends(tmp_path: Path) -> None:
    """It has none of the threads: it must neither hang at its end nor pretend to save."""
    code = (
        "import os\nrun.save(1)\nchild = os.fork()\n"
        "if child == 0:\n"
        "    try: run.save(2)\n"
        "    except lg.Closed as error: print(error, flush=True)\n"
        "    sys.exit(5)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    child = spawn(code, str(tmp_path))
    out, err = child.communicate(timeout=60)
    assert "another process" in out and "\n5\n" in out, (out, err)
    assert child.returncode == 0
