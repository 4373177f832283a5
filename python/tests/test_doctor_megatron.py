"""`lastgood doctor` on what Megatron wrote from two ranks (programs/doctor_megatron.py), whole and damaged."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from doctor_reports import Report, flip, flip_record, same_age, unpack

TRACKER = "latest_checkpointed_iteration.txt"
NEWEST = "iter_0000200"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("doctor_megatron", tmp_path_factory.mktemp("megatron"))


@pytest.fixture
def run(written: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of a layout."""
    shutil.copytree(written / request.param, tmp_path / "run")
    return tmp_path / "run"


# `core` is what megatron-core 0.16 has for torch_dist, `torch_dist` what 0.20 has, with integrity.json.
every = pytest.mark.parametrize("run", ["core", "torch_dist", "torch_dcp", "torch"], indirect=True)
core = pytest.mark.parametrize("run", ["core"], indirect=True)
newer = pytest.mark.parametrize("run", ["torch_dist"], indirect=True)
legacy = pytest.mark.parametrize("run", ["torch"], indirect=True)


def findings(report: Report) -> list[str]:
    [folder] = report.folders
    return [x["kind"] for x in folder["findings"]]


@every
def test_whole_ones_are_trusted(run: Path) -> None:
    report = Report(run)
    assert report.ran.returncode == 0, report.ran.stdout
    assert {x["step"] for x in report.checkpoints.values()} == {100, 200}
    assert report.stock == (NEWEST, "it resumes")


@every
def test_damage_to_any_file_is_found(run: Path, tmp_path: Path) -> None:
    whole = run / NEWEST
    cases = {}
    for file in sorted(x.relative_to(whole) for x in whole.rglob("*") if x.is_file()):
        data = (whole / file).read_bytes()
        changed = {
            "empty": b"",
            "cut": data[: len(data) // 2],
            "foreign": b"no space left on device",
        }
        for damage in ("gone", *changed):
            # It is there with --verify-integrity alone.
            if (file.name, damage) == ("integrity.json", "gone"):
                continue
            folder = tmp_path / "cases" / f"case{len(cases)}" / NEWEST
            shutil.copytree(whole, folder)
            if damage == "gone":
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(changed[damage])
            same_age(folder)
            cases[folder.parent.name] = (file, damage)
    report = Report(tmp_path / "cases")
    broken = {Path(x["folder"]).name for x in report.checkpoints_of() if x["verdict"] == "broken"}
    assert broken == cases.keys(), {cases[case] for case in cases.keys() - broken}


@pytest.mark.parametrize("run", ["core", "torch"], indirect=True)
def test_flips_are_found(run: Path) -> None:
    newest = run / NEWEST
    if run.joinpath(NEWEST, "common.pt").exists():
        flip_record(newest / "common.pt", "data.pkl")
        needle = torch.full((2, 4), 201.0).numpy().tobytes()
        flip(next(x for x in newest.glob("*.distcp") if needle in x.read_bytes()), needle, 2)
        same_age(newest)
        objects = {"common.pt", "weight in __1_0.distcp"}
    else:
        flip_record(newest / "mp_rank_00" / "model_optim_rng.pt", "data.pkl")
        flip_record(newest / "mp_rank_01" / "distrib_optim.pt", "data/0")
        objects = {"mp_rank_00/model_optim_rng.pt", "mp_rank_01/distrib_optim.pt"}
    report = Report(run)
    told = report.checkpoints[NEWEST]["findings"]
    assert {x["object"].split(":")[0] for x in told if x["kind"] == "checksum"} == objects
    assert (report.verdict(NEWEST), report.last) == ("broken", "iter_0000100")


@every
@pytest.mark.parametrize(
    ("text", "found", "outcome"),
    [
        ("200", [], "it resumes"),
        ("100", ["stale-tracker"], "it resumes"),
        ("300", ["stale-tracker"], "it fails"),
        ("", ["stale-tracker"], "it stops"),
        ("x", ["stale-tracker"], "it stops"),
        (None, ["missing-tracker"], "random weights"),
    ],
)
def test_what_the_tracker_says(run: Path, text: str | None, found: list[str], outcome: str) -> None:
    tracker = run / TRACKER
    tracker.unlink() if text is None else tracker.write_text(text)
    report = Report(run)
    assert (findings(report), report.last) == (found, NEWEST)
    assert outcome in report.stock[1]


@every
def test_the_tracker_names_one_that_is_broken(run: Path) -> None:
    largest = max((x for x in (run / NEWEST).rglob("*.*t*")), key=lambda x: x.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    report = Report(run)
    assert findings(report) == ["stale-tracker"]
    assert (report.last, report.stock[0]) == ("iter_0000100", NEWEST)
    assert "iter_0000100 is never tried" in report.stock[1]


@core
def test_a_save_that_was_cut_off(run: Path) -> None:
    """`common.pt` comes first, then data, then the table, and `metadata.json` last."""
    newest = run / NEWEST
    (run / TRACKER).write_text("100")
    (newest / "metadata.json").unlink()
    report = Report(run)
    assert report.kinds(NEWEST) == {"missing"}
    (newest / ".metadata").unlink()
    assert Report(run).kinds(NEWEST) == {"missing", "uncommitted"}
    for file in newest.glob("*.distcp"):
        file.unlink()
    report = Report(run)
    assert (report.verdict(NEWEST), report.last, findings(report)) == ("broken", "iter_0000100", [])
    (newest / "common.pt").unlink()
    assert Report(run).verdict(NEWEST) == "broken"


@newer
def test_every_flip_is_found_where_megatron_left_checksums(run: Path) -> None:
    newest = run / NEWEST
    assert Report(run).checkpoints[NEWEST]["uncheckable_bytes"] == 0
    named = [".metadata", "__0_0.distcp", "__1_0.distcp", "metadata.json"]
    assert sorted(x.name for x in newest.iterdir()) == sorted([*named, "integrity.json"])
    for name in named:
        whole = (newest / name).read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 16)):
            (newest / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            same_age(newest)
            report = Report(newest)
            assert report.verdict(NEWEST) == "broken", (name, at)
            assert "checksum" in report.kinds(NEWEST), (name, at)
        (newest / name).write_bytes(whole)
    # A file of another save is whole, and the list is not of it.
    shutil.copy(run / "iter_0000100" / "__1_0.distcp", newest / "__1_0.distcp")
    same_age(newest)
    assert "checksum" in Report(run).kinds(NEWEST)


@core
def test_what_all_ranks_have_is_of_another_save(run: Path) -> None:
    shutil.copy(run / "iter_0000100" / "common.pt", run / NEWEST / "common.pt")
    assert Report(run).kinds(NEWEST) == {"torn"}


@core
def test_pickled_danger_in_a_table_is_listed(run: Path) -> None:
    table = run / NEWEST / ".metadata"
    saved = pickle.loads(table.read_bytes())
    saved.planner_data = Evil()
    table.write_bytes(pickle.dumps(saved))
    same_age(run)
    assert Report(run).kinds(NEWEST) == {"pickled-danger"}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit",)


@core
def test_the_data_loaders_state_is_no_rank_of_the_model(run: Path) -> None:
    folder = run / NEWEST / "mp_rank_00"
    folder.mkdir()
    state = folder / "train_dataloader_dprank000.pt"
    torch.save({"dataloader_state_dict": [torch.arange(3)]}, state)
    assert Report(run).verdict(NEWEST) == "trusted"
    state.write_bytes(state.read_bytes()[:-20])
    assert Report(run).verdict(NEWEST) == "broken"


@legacy
def test_a_rank_is_missing(run: Path) -> None:
    shutil.rmtree(run / NEWEST / "mp_rank_01")
    report = Report(run)
    assert report.kinds(NEWEST) == {"missing-shard"}
    assert report.last == "iter_0000100"
    (run / NEWEST / "mp_rank_01").mkdir()
    assert Report(run).kinds(NEWEST) == {"missing"}


@legacy
def test_a_rank_of_another_save(run: Path) -> None:
    name = Path("mp_rank_01") / "model_optim_rng.pt"
    shutil.copy(run / "iter_0000100" / name, run / NEWEST / name)
    assert Report(run).kinds(NEWEST) == {"torn"}


def test_ranks_of_experts_and_of_the_pipeline(tmp_path: Path) -> None:
    """Folders as `get_checkpoint_name` names them."""
    import argparse

    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 2}
    args = argparse.Namespace(**sizes, expert_model_parallel_size=2)
    for p in range(2):
        for e in range(2):
            folder = tmp_path / "iter_0000007" / f"mp_rank_00_{p:03}_{e:03}"
            folder.mkdir(parents=True)
            torch.save({"args": args, "iteration": 7}, folder / "model_optim_rng.pt")
    assert Report(tmp_path).verdict("iter_0000007") == "trusted"
    shutil.rmtree(tmp_path / "iter_0000007" / "mp_rank_00_001_001")
    report = Report(tmp_path)
    [told] = [
        x for x in report.checkpoints["iter_0000007"]["findings"] if x["severity"] == "damage"
    ]
    assert (told["kind"], told["object"]) == ("missing-shard", "mp_rank_00_001_001")


def test_torch_dcp_has_everything_in_its_table(tmp_path: Path) -> None:
    """`--ckpt-format torch_dcp` has neither `common.pt` nor `metadata.json`."""
    new = tmp_path / "iter_0000300"
    dcp.save({"iteration": 300, "model": torch.ones(3)}, checkpoint_id=new, no_dist=True)
    (tmp_path / TRACKER).write_text("300")
    assert Report(tmp_path).verdict(new.name) == "trusted"
    (new / ".metadata").unlink()
    assert Report(tmp_path).verdict(new.name) == "broken"


def test_gradients_are_no_checkpoint(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "torch", tmp_path / "run")
    folder = tmp_path / "run" / "wgrads" / "iter_0000200"
    folder.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, folder / "mp_rank_00.pth")
    report = Report(tmp_path / "run")
    assert report.ran.returncode == 0, report.ran.stdout
