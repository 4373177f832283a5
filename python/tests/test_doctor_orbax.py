"""`lastgood doctor` on Orbax's checkpoints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import forks
import pytest
from doctor_reports import PROGRAMS, Report


@pytest.fixture(scope="module")
def orbax_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("orbax")
    program = [sys.executable, str(PROGRAMS / "doctor_orbax.py"), str(root)]
    code, output = forks.run("jax", program, tmp_path_factory.mktemp("output") / "orbax")
    assert code == 0, output
    return root


def largest(path: Path) -> Path:
    return max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("layout", ["tree", "files", "zarr3"])
def test_checkpoints_of_orbax(orbax_root: Path, tmp_path: Path, layout: str) -> None:
    shutil.copytree(orbax_root / layout, tmp_path / layout)
    root = tmp_path / layout
    report = Report(root)
    assert {name: report.verdict(name) for name in report.checkpoints} == {
        "1": "trusted", "2": "trusted", "3": "trusted",
    }, report.ran.stdout  # fmt: skip
    assert report.stock == ("3", "it resumes")
    (root / "3").rename(root / "3.orbax-checkpoint-tmp")
    data = largest(root / "2")
    # The end of a tree's file holds nodes that nothing names any more.
    data.write_bytes(data.read_bytes()[:-1000])
    report = Report(root)
    assert report.kinds("3.orbax-checkpoint-tmp") == {"uncommitted"}
    assert report.verdict("2") == "broken"
    assert report.last == "1"
    assert report.stock[0] == "2"


def test_missing_files_of_orbax(orbax_root: Path, tmp_path: Path) -> None:
    for name in ("tree", "files"):
        shutil.copytree(orbax_root / name / "3", tmp_path / name / "3")
    largest(tmp_path / "tree" / "3").unlink()
    report = Report(tmp_path / "tree")
    assert "truncated" in report.kinds("3")
    largest(tmp_path / "files" / "3").unlink()
    report = Report(tmp_path / "files")
    assert report.kinds("3") == {"missing-chunk"}
    shutil.copytree(orbax_root / "tree" / "3", tmp_path / "table" / "3")
    manifest = tmp_path / "table" / "3" / "default" / "manifest.ocdbt"
    data = bytearray(manifest.read_bytes())
    for at in range(len(data)):
        data[at] ^= 1
        manifest.write_bytes(data)
        data[at] ^= 1
        if at % 16 == 0:
            assert Report(tmp_path / "table").verdict("3") == "broken", at
    # Without the table, and without anything.
    manifest.unlink()
    assert Report(tmp_path / "table").verdict("3") == "broken"
    shutil.rmtree(manifest.parent)
    manifest.parent.mkdir()
    assert Report(tmp_path / "table").kinds("3") == {"missing"}
