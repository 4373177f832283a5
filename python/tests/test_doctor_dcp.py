"""`lastgood doctor` and `lastgood import` on PyTorch's distributed checkpoints."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
import torch.distributed.checkpoint as dcp
from doctor_reports import (
    PROGRAMS,
    Report,
    assert_same_bytes,
    flip,
    imported,
    run,
    same_age,
    write_torch_file,
)


@pytest.fixture(scope="module")
def dcp_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps saved by four ranks of real process groups, and step 3 over step 2, cut off."""
    root = tmp_path_factory.mktemp("dcp")
    program = [sys.executable, str(PROGRAMS / "doctor_dcp.py"), str(root)]
    code, output = forks.run("torch", program, tmp_path_factory.mktemp("output") / "dcp")
    assert code == 0, output
    return root


def dcp_copy(dcp_root: Path, name: str, tmp_path: Path) -> Path:
    shutil.copytree(dcp_root / name, tmp_path / name)
    same_age(tmp_path / name)
    return tmp_path / name


def dcp_load(path: Path) -> torch.Tensor:
    target = {"rows": torch.zeros(8, 4), "columns": torch.zeros(4, 8), "plain": torch.zeros(5)}
    dcp.load(target, checkpoint_id=path, no_dist=True)
    return target["rows"]


def test_what_four_ranks_saved_is_trusted(dcp_root: Path) -> None:
    report = Report(dcp_root)
    assert report.verdict("step-1") == "trusted", report.checkpoints["step-1"]
    assert report.checkpoints["step-1"]["step"] == 1
    assert report.last == "step-1"
    assert report.verdict("step-2") == "suspect"


def test_a_torn_mix_of_two_saves_is_doubted_by_its_times(dcp_root: Path) -> None:
    # P4: stock DCP loads rows of two steps.
    rows = dcp_load(dcp_root / "step-2")
    assert sorted(rows[:, 0].tolist()) == [2.0] * 4 + [3.0] * 4
    report = Report(dcp_root)
    assert report.kinds("step-2") == {"torn"}


def test_a_flip_in_a_distcp_file_is_found(dcp_root: Path, tmp_path: Path) -> None:
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    needle = torch.full((2, 4), 1.0).numpy().tobytes()
    flip(next(f for f in path.glob("*.distcp") if needle in f.read_bytes()), needle, 1)
    same_age(path)
    # P1: stock DCP loads it, and it is wrong.
    assert not torch.equal(dcp_load(path), torch.full((8, 4), 1.0))
    report = Report(path)
    assert (report.verdict("step-1"), report.kinds("step-1")) == ("broken", {"checksum"})


def test_a_table_that_lacks_a_chunk_is_broken(dcp_root: Path, tmp_path: Path) -> None:
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    table = pickle.loads((path / ".metadata").read_bytes())
    lost = table.state_dict_metadata["rows"].chunks.pop()
    (path / ".metadata").write_bytes(pickle.dumps(table))
    same_age(path)
    # P5: stock DCP loads it and leaves the gap as it was in memory.
    assert dcp_load(path)[lost.offsets[0]].tolist() == [0.0] * 4
    report = Report(path)
    assert "coverage" in report.kinds("step-1")
    assert report.verdict("step-1") == "broken"


def test_chunks_that_were_never_stored_are_found(dcp_root: Path, tmp_path: Path) -> None:
    # P3: what a full disk in a writing thread leaves: a table of all, places of some.
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    table = pickle.loads((path / ".metadata").read_bytes())
    table.storage_data = {k: v for k, v in table.storage_data.items() if k.fqn != "rows"}
    (path / ".metadata").write_bytes(pickle.dumps(table))
    same_age(path)
    report = Report(path)
    assert report.verdict("step-1") == "broken"
    assert "missing-chunk" in report.kinds("step-1")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda f: f.unlink(), "missing-shard"),
        (lambda f: f.write_bytes(b""), "empty"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "truncated"),
        (lambda f: f.write_bytes(f.read_bytes() + b"x"), "torn"),
        (lambda f: (f.parent / ".metadata").unlink(), "uncommitted"),
    ],
)
def test_damage_to_a_shard_of_dcp(
    dcp_root: Path, tmp_path: Path, damage: Callable[[Path], Any], kind: str
) -> None:
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    damage(path / "__2_0.distcp")
    same_age(path)
    report = Report(path)
    assert kind in report.kinds("step-1")
    assert report.verdict("step-1") != "trusted"


def test_an_import_of_dcp_has_every_byte_of_all_ranks(dcp_root: Path, tmp_path: Path) -> None:
    said, tensors = imported(dcp_root / "step-1", tmp_path)
    target = {"rows": torch.zeros(8, 4), "columns": torch.zeros(4, 8), "plain": torch.zeros(5)}
    dcp.load(target, checkpoint_id=dcp_root / "step-1", no_dist=True)
    assert target["columns"].unique().numel() == 32
    assert_same_bytes(target, tensors)  # type: ignore[arg-type]
    assert bytes(said["values"]["step"]) == b"1"
    assert said["left_out"] == ["object (an object of collections.deque)"]


def test_nothing_damaged_is_imported(dcp_root: Path, tmp_path: Path) -> None:
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    (path / "__2_0.distcp").unlink()
    flipped = tmp_path / "model.pt"
    write_torch_file(flipped)
    flip(flipped, torch.load(flipped)["model"]["0.weight"].numpy().tobytes())
    store = tmp_path / "store"
    for damaged in (path, flipped):
        ran = run("import", damaged, "--store", store, "--run", "r", "--step", "1")
        assert ran.returncode == 3, ran.stderr
        assert "lastgood doctor" in ran.stderr
    assert not store.exists()
