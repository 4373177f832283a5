"""A manager of orbax's kind that may save is refused where it computes otherwise; one that only reads is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import forks
import jax.numpy as jnp
import lastgood as lg
import orbax.checkpoint as ocp
import pytest
from lastgood import _preflight

KEY = "env.OMP_SCHEDULE"
TOLD = f"{KEY} was nothing, is static,7"


def test_who_may_save_is_refused_and_who_reads_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lg.orbax.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    _preflight._told.clear()
    monkeypatch.setenv("OMP_SCHEDULE", "static,7")

    def restore(step: int | None = None, read_only: bool = False, **asked: Any) -> Any:
        options = ocp.CheckpointManagerOptions(read_only=read_only)
        with lg.orbax.CheckpointManager(tmp_path, options=options, **asked) as manager:
            return manager.restore(step)["w"].tolist()

    for step in (None, 1):
        with pytest.raises(lg.Incompatible, match=TOLD) as caught:
            restore(step)
        assert f"--accept {KEY} --reason" in str(caught.value)
    with pytest.warns(RuntimeWarning, match=f"was saved by a process.*{TOLD}"):
        assert restore(read_only=True) == [1, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert restore(1, read_only=True) == [1, 1, 1], "each difference is told once"
        assert restore(preflight="off") == [1, 1, 1]
    with pytest.warns(RuntimeWarning, match=f"goes on although {TOLD}"):
        assert restore(preflight="warn") == [1, 1, 1]
    assert restore(accept={KEY: "another queue"}) == [1, 1, 1]
    assert restore() == [1, 1, 1], "it is in the ledger"
    with pytest.raises(lg.Invalid, match="perhaps"):
        restore(preflight="perhaps")


def test_what_it_goes_back_to_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lg.orbax.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    monkeypatch.setenv("OMP_SCHEDULE", "static,7")
    with lg.orbax.CheckpointManager(tmp_path) as manager:
        manager.save(2, args=ocp.args.StandardSave({"w": jnp.arange(3000.0)}))
    for pack in sorted(tmp_path.rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns)[1:]:
        pack.unlink()
    with lg.orbax.CheckpointManager(tmp_path) as manager:
        assert manager.all_steps() == [1, 2]
        with pytest.raises(lg.Incompatible, match=rf"(?s)of step 1 was.*{TOLD}"):
            manager.restore(None)


PROGRAM = """
import sys
import jax.numpy as jnp
import lastgood as lg
import orbax.checkpoint as ocp
manager = lg.orbax.CheckpointManager(sys.argv[1])
if manager.latest_step() is not None:
    manager.restore(manager.latest_step())
    raise AssertionError("a preflight must not come here")
manager.save(1, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
manager.close()
"""


def test_a_job_of_orbax_is_asked_by_the_command(tmp_path: Path) -> None:
    program, store = tmp_path / "train.py", tmp_path / "store"
    program.write_text(PROGRAM)
    job = [str(program), str(store)]
    code, said = forks.run("jax", [sys.executable, *job], tmp_path / "log")
    assert code == 0, said
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    words = ["--json", "--store", str(store), "--run", "default", "--", forks.python("jax"), *job]

    def ask(code: int, **more: str) -> Any:
        command = [sys.executable, "-m", "lastgood", "preflight", *words]
        env = forks.environment(**more)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)["ranks"]

    (rank,) = ask(0)
    assert rank["memory_needed"] > 0 and not rank["problems"]
    (rank,) = ask(5, OMP_SCHEDULE="static,7")
    assert any(found["key"] == KEY for found in rank["findings"]), rank
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
