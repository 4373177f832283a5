"""What `Trainer` does by itself with a checkpoint that is not whole, and what it does with lastgood (P8)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trainers

pytest.importorskip("transformers")

SMALL = "small_hf.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any) -> Path:
    """The output folder of a run that nothing happened to."""
    out: Path = tmp_path_factory.mktemp("peers") / "undisturbed"
    assert trainers.run(SMALL, out.parent / "log", "--out", out) == [0], trainers.output(
        out.parent / "log"
    )
    return out


@pytest.fixture
def at_nine(undisturbed: Path, tmp_path: Path) -> Path:
    """The run after step 9, as a kill in the save of step 9 may leave it: `damage` decides."""
    out = tmp_path / "out"
    assert trainers.run(SMALL, tmp_path / "log", "--out", out, "--block", "--kill-at", 10) == [-9]
    return out


def both(at_nine: Path, damage: Any) -> dict[bool, tuple[int, Path, str]]:
    """Stock (True) and lastgood (False) resume from the same damage: exit code, folder, output."""
    found = {}
    damage(at_nine / "checkpoint-9")
    for stock in (True, False):
        out = at_nine.parent / f"stock-{stock}"
        shutil.copytree(at_nine, out)
        log = at_nine.parent / f"log-{stock}"
        (code,) = trainers.run(SMALL, log, "--out", out, *(["--stock"] if stock else []))
        found[stock] = code, out, trainers.output(log)
    return found


def test_a_partial_newest_folder_stops_the_stock_trainer(undisturbed: Path, at_nine: Path) -> None:
    def damage(folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()

    found = both(at_nine, damage)
    code, out, said = found[True]
    assert code == 1 and "FileNotFoundError" in said and "trainer_state.json" in said
    assert (out / "checkpoint-6" / "trainer_state.json").exists(), "and a good one was there"
    code, out, said = found[False]
    assert code == 0, said
    assert trainers.began(out) == 9 and trainers.trace(out) == trainers.trace(undisturbed)


def test_a_missing_optimizer_is_silently_a_fresh_one(undisturbed: Path, at_nine: Path) -> None:
    found = both(at_nine, lambda folder: (folder / "optimizer.pt").unlink())
    code, out, said = found[True]
    assert code == 0 and "optimizer" not in said, said
    with pytest.raises(AssertionError, match="gave another state"):
        trainers.trace(out)
    code, out, said = found[False]
    assert code == 0, said
    assert trainers.began(out) == 9 and trainers.trace(out) == trainers.trace(undisturbed)


def test_the_sentinel_of_an_incomplete_folder_is_never_read(
    undisturbed: Path, at_nine: Path
) -> None:
    def damage(folder: Path) -> None:
        (folder / "checkpoint-is-incomplete.txt").touch()
        (folder / "scheduler.pt").unlink()

    found = both(at_nine, damage)
    code, out, said = found[True]
    assert code == 0 and trainers.began(out) == 9, "the stock trainer resumes from it"
    code, out, said = found[False]
    assert code == 0 and "_lastgood-quarantine" in said
    assert trainers.trace(out) == trainers.trace(undisturbed)
