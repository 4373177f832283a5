"""The referee: `ckpt-chaos`, a tool that others wrote, crashes training at every file that it writes and judges what
the resumed run ends with. Its programs run as they are, with lastgood adopted in them; its plan, its crashes and its
verdicts are its own. By default its processes are forks of one that has the imports done (`zygote`); with
LASTGOOD_SLOW=1 they are started as it starts them, and the stock trainers are judged too.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
sys.path.insert(0, str(PROGRAMS))

runner = pytest.importorskip("ckpt_chaos.runner")
import lastgood  # noqa: E402
import zygote  # noqa: E402

SLOW = os.environ.get("LASTGOOD_SLOW") == "1"
JOBS = 2


def judge(
    monkeypatch: Any, capsys: Any, work: Path, target: str, modules: list[str], *, ranks: int = 1, jobs: int = JOBS
) -> Counter[str]:
    """The referee's table for ``target``, printed, and how often it gave each verdict."""
    paths = [str(PROGRAMS), str(Path(lastgood.__file__).parent.parent)]
    monkeypatch.setenv("CKPT_CHAOS_PREPEND_PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setitem(runner.TARGETS, target, target)
    # Two at a time on two cores: threads that spin for work that is not there take it from the other.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env = runner._env
    monkeypatch.setattr(runner, "_env", lambda extra=None: {**env(extra), **threads})
    forked = None
    if modules and not SLOW:
        forked = zygote.Zygote(modules, runner._env())
        plain = runner.subprocess
        monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=forked.popen, STDOUT=plain.STDOUT))
    started = time.monotonic()
    try:
        rows = runner.run_matrix(work, jobs, ranks, target)
    finally:
        if forked is not None:
            forked.close()
    with capsys.disabled():
        print(f"\n{target}, {ranks} rank(s): {time.monotonic() - started:.0f} s")
        runner.print_table(rows)
    assert all(row.crashed or row.label.startswith("no crash") for row in rows), "a point did not crash"
    assert not any(row.drift for row in rows), "a crash came at another event than planned"
    return Counter(row.verdict for row in rows)


HF = ["ckpt_chaos.targets.hf_trainer", "lastgood.hf", "referee_targets"]


def test_hf_trainer(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    verdicts = judge(monkeypatch, capsys, tmp_path, "referee_hf_trainer", HF)
    assert verdicts == {"PASS": 19}


@pytest.mark.skipif(not SLOW, reason="minutes: LASTGOOD_SLOW=1 judges the stock trainer")
def test_stock_hf_trainer(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    verdicts = judge(monkeypatch, capsys, tmp_path, "hf_trainer", [])
    assert verdicts["PASS"] == 2 and verdicts["HARD_FAIL"] == 17
