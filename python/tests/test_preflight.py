"""Restores that would compute otherwise are refused by name, unless someone accepts the difference on the record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lastgood as lg
import numpy as np
import pytest

KEY = "env.OMP_SCHEDULE"


def saved(store: Path, state: dict[str, Any]) -> None:
    with lg.open(store, state) as run:
        run.save(5, block=True)


def test_another_setting_is_refused_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"x": {"y": 1}}
    saved(tmp_path, state)
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 5
        assert run.last_restore is not None and run.last_restore.notices == []
    monkeypatch.setenv("OMP_SCHEDULE", "static,7")
    state["x"]["y"] = 2
    with lg.open(tmp_path, state) as run:
        report = run.preflight()
        assert not report.ok and report.environment == "differs"
        [finding] = [found for found in report.findings if found.refused]
        assert (finding.key, finding.recorded, finding.found) == (KEY, None, "static,7")
        assert (finding.effect, finding.accepted) == ("numerics", None)
        for _ in range(2):
            with pytest.raises(lg.Incompatible, match=rf"{KEY} was nothing, is static,7") as caught:
                run.restore()
        assert f"--accept {KEY} --reason" in str(caught.value)
        with pytest.raises(lg.Incompatible):
            run.restore(at=5)
        assert state == {"x": {"y": 2}}
    with lg.open(tmp_path, state, preflight="off") as run:
        assert run.restore() == 5 and state == {"x": {"y": 1}}


def test_a_difference_is_accepted_on_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"x": {"y": 1}}
    saved(tmp_path, state)
    monkeypatch.setenv("OMP_SCHEDULE", "static,7")
    with lg.open(tmp_path, state, preflight="warn") as run:
        assert run.restore() == 5
        assert run.last_restore is not None
        assert KEY in run.last_restore.notices[0]
    with lg.open(tmp_path, state, accept={"env.": "another machine"}) as run:
        assert run.restore() == 5
        report = run.preflight()
        assert report.ok and "accepted: " in str(report)
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 5, "it is in the ledger"
    monkeypatch.setenv("OMP_SCHEDULE", "static,8")
    with lg.open(tmp_path, state) as run, pytest.raises(lg.Incompatible, match="static,8"):
        run.restore()
    monkeypatch.setenv(
        "LASTGOOD_ACCEPT", json.dumps({"keys": [KEY], "reason": "again", "always": True})
    )
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 5
    monkeypatch.delenv("LASTGOOD_ACCEPT")
    monkeypatch.setenv("OMP_SCHEDULE", "static,9")
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 5


def test_what_is_given_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in [{"preflight": "maybe"}, {"accept": {"code.": ""}}, {"accept": ["code."]}]:
        with pytest.raises(lg.Invalid):
            lg.open(tmp_path, {}, **bad)  # type: ignore[arg-type]
    monkeypatch.setenv("LASTGOOD_PREFLIGHT", "perhaps")
    with pytest.raises(lg.Invalid, match="perhaps"):
        lg.open(tmp_path, {})
    monkeypatch.setenv("LASTGOOD_PREFLIGHT", "off")
    monkeypatch.setenv("LASTGOOD_ACCEPT", "{")
    with pytest.raises(lg.Invalid, match="accepted"):
        lg.open(tmp_path, {})


def test_the_report_tells_of_the_data(tmp_path: Path) -> None:
    state = {"x": {"y": np.random.default_rng(1).random(300_000)}}
    saved(tmp_path, state)
    seen: list[tuple[int, int]] = []
    with lg.open(tmp_path, state) as run:
        sizes = run.preflight()
        assert sizes.ok and sizes.objects == 1 and sizes.objects_bytes > 0
        assert (sizes.objects_read, sizes.seconds_to_read) == (0, None)
        for depth in ("sample", "full"):
            report = run.preflight(data=depth, progress=lambda done, all: seen.append((done, all)))
            assert report.objects_read == report.objects_bytes
            assert report.seconds_to_read is not None and report.seconds_to_read > 0
        assert seen[-1][0] == seen[-1][1] == sizes.objects_bytes
        with pytest.raises(lg.Invalid, match="some"):
            run.preflight(data="some")
        [pack] = tmp_path.rglob("*.pack")
        stored = bytearray(pack.read_bytes())
        stored[len(stored) // 2] ^= 1
        pack.unlink()
        pack.write_bytes(stored)
        assert run.preflight().ok
        with pytest.raises(lg.Corrupt, match=r"\.pack"):
            run.preflight(data="full")
        pack.unlink()
        with pytest.raises(lg.Corrupt, match="the pack is missing"):
            run.preflight()


PROGRAM = """
import sys
import lastgood as lg
import numpy as np
state = {"x": {"y": 0, "w": np.zeros(1000)}}
if len(sys.argv) > 1:
    state["new"] = {"z": 1}
with lg.open(None, state) as run:
    step = run.restore()
    assert step < 5, "a preflight must not come here"
    for step in range(step, 5):
        state["x"]["y"] += 1
        run.step(step + 1)
    run.save(5, block=True)
"""


def test_the_program_is_asked_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    monkeypatch.setenv("LASTGOOD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LASTGOOD_RUN", "llm")
    subprocess.run([sys.executable, str(program)], check=True, timeout=120)

    def ask(*words: str, code: int) -> Any:
        command = [sys.executable, "-m", "lastgood", "preflight", "--json", "--"]
        done = subprocess.run(
            [*command, sys.executable, str(program), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    said = ask(code=0)
    [rank] = said["ranks"]
    assert (rank["environment"], rank["problems"]) == ("alike", [])
    assert rank["memory_needed"] > 0
    # Another command line is no difference; a component that was not saved does not fit.
    said = ask("more", code=5)
    assert said["ranks"][0]["problems"] == ["component 'new' is not in the checkpoint"]
    monkeypatch.setenv("OMP_SCHEDULE", "static,7")
    said = ask(code=5)
    assert [found["key"] for found in said["ranks"][0]["findings"] if not found["accepted"]] == [
        KEY
    ]
    with lg.open(tmp_path / "store", {}, run="llm") as run:
        assert run.attempt == 2, "the looks began no attempt"
