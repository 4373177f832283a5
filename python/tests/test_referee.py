"""The referee: `ckpt-chaos`, a tool that others wrote, crashes training at every file that it writes and judges what
the resumed run ends with. Its programs run as they are, with lastgood adopted in them; its plan, its crashes and its
verdicts are its own. By default its processes are forks of one that has the imports done (`zygote`); with
LASTGOOD_SLOW=1 they are started as it starts them, and the stock trainers are judged too.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import children
import forks
import pytest
import trainers
from lastgood import _lastgood

runner = pytest.importorskip("ckpt_chaos.runner")

SLOW = os.environ.get("LASTGOOD_SLOW") == "1"
JOBS = 2
#: The programs save at step 5, and die in the save of step 10.
FIRST, SECOND = 5, 10


def newest_in_store(out: Path, _: Any) -> int:
    """The newest step that is committed in the store, for programs that have no folders of checkpoints."""
    history = _lastgood.Reader(str(out / "_lastgood"), {}, "default").history()
    return max((row["step"] for row in history), default=0)


def judge(
    monkeypatch: Any,
    record_property: Any,
    work: Path,
    target: str,
    *,
    ranks: int = 1,
    stock: bool = False,
) -> list[Any]:
    """The referee's table for ``target``, which is printed at the end of the tests."""
    name = target if stock else f"referee_{target}"
    paths = [str(trainers.PROGRAMS), children.PACKAGES]
    monkeypatch.setenv("CKPT_CHAOS_PREPEND_PYTHONPATH", os.pathsep.join(paths))
    if not stock:
        monkeypatch.setitem(runner.TARGETS, name, name)
    # Two at a time on two cores: threads that spin for work that is not there take it from the other.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env = runner._env
    monkeypatch.setattr(runner, "_env", lambda extra=None: {**env(extra), **threads})
    # The length of this file is that of the path in it, and the referee's folders have names of several lengths.
    profile = runner._profile
    sizes = lambda folder: {k: v for k, v in profile(folder).items() if k != "training_args.bin"}  # noqa: E731
    monkeypatch.setattr(runner, "_profile", sizes)
    if not stock and target in ("lightning_trainer", "loop_ddp"):
        monkeypatch.setitem(runner.NEWEST, name, newest_in_store)
    if not SLOW:
        popen = functools.partial(forks.Fork, "trainers")
        plain = runner.subprocess
        monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=popen, STDOUT=plain.STDOUT))
    started = time.monotonic()
    rows: list[Any] = runner.run_matrix(work, JOBS, ranks, name)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print(f"{name}, {ranks} rank(s): {time.monotonic() - started:.0f} s")
        runner.print_table(rows)
    record_property("table", text.getvalue())
    return rows


def check(rows: list[Any], points: int, resumes: set[int], *, ordered: bool = True) -> None:
    """Every point crashed where it was planned and passed; none was resumed from an older step than it could be. With
    ``ordered`` False what Python writes and what the store gets come in an order that is not always the same."""
    assert Counter(row.verdict for row in rows) == {"PASS": points}
    for row in rows[1:]:
        assert row.crashed and not (ordered and row.drift), row
        assert row.outcome.resumed_from_step in resumes, row
    assert rows[0].outcome.resumed_from_step == SECOND


@pytest.mark.slow
def test_hf_trainer(monkeypatch: Any, record_property: Any, tmp_path: Path) -> None:
    check(judge(monkeypatch, record_property, tmp_path, "hf_trainer"), 19, {FIRST})


def test_accelerate_loop(monkeypatch: Any, record_property: Any, tmp_path: Path) -> None:
    rows = judge(monkeypatch, record_property, tmp_path, "accelerate_loop")
    check(rows, len(rows), {FIRST})
    assert len(rows) > 5


@pytest.mark.slow
def test_lightning_trainer(monkeypatch: Any, record_property: Any, tmp_path: Path) -> None:
    rows = judge(monkeypatch, record_property, tmp_path, "lightning_trainer")
    check(rows, len(rows), {FIRST, SECOND}, ordered=False)
    assert len(rows) > 5


@pytest.mark.parametrize("ranks", [1, 2])
def test_loop_ddp(monkeypatch: Any, record_property: Any, tmp_path: Path, ranks: int) -> None:
    rows = judge(monkeypatch, record_property, tmp_path, "loop_ddp", ranks=ranks)
    check(rows, len(rows), {FIRST, SECOND}, ordered=False)
    assert len(rows) > 4 * ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "ranks", "verdicts"),
    [
        ("hf_trainer", 1, {"PASS": 2, "HARD_FAIL": 17}),
        ("accelerate_loop", 1, {"PASS": 4, "HARD_FAIL": 5}),
        ("lightning_trainer", 1, {"PASS": 3, "LOST_WORK": 2}),
        ("loop_ddp", 1, {"PASS": 2, "HARD_FAIL": 7}),
        ("loop_ddp", 2, {"PASS": 1, "HARD_FAIL": 11}),
    ],
)
def test_stock(
    monkeypatch: Any,
    record_property: Any,
    tmp_path: Path,
    target: str,
    ranks: int,
    verdicts: dict[str, int],
) -> None:
    rows = judge(monkeypatch, record_property, tmp_path, target, ranks=ranks, stock=True)
    assert Counter(row.verdict for row in rows) == verdicts
