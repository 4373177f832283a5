"""`lastgood doctor` on what DeepSpeed wrote from two ranks (programs/doctor_deepspeed.py), whole and damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from doctor_reports import Report, flip_record, unpack

LAYOUTS = ["zero0", "bf16", "zero1", "zero2", "zero3", "experts", "pipeline0", "pipeline1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("doctor_deepspeed", tmp_path_factory.mktemp("deepspeed"))


def findings(report: Report) -> list[str]:
    """The kinds of what is wrong with the trackers."""
    return [x["kind"] for folder in report.folders for x in folder["findings"]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_ones_are_trusted(written: Path, layout: str) -> None:
    report = Report(written / layout)
    assert report.ran.returncode == 0, report.ran.stdout
    steps = {name: x["step"] for name, x in report.checkpoints.items() if "universal" not in name}
    assert steps == {"global_step1": 1, "global_step3": 3}
    assert all(x["uncheckable_bytes"] == 0 for x in report.checkpoints.values())
    assert report.stock == ("global_step3", "it resumes")


def damages(file: Path) -> dict[str, Callable[[], object]]:
    """What a crash, a disk and an operator do to a file."""
    data = file.read_bytes()
    return {
        "gone": file.unlink,
        "empty": lambda: file.write_bytes(b""),
        "cut": lambda: file.write_bytes(data[: len(data) // 2]),
        "zeros": lambda: file.write_bytes(bytes(len(data))),
        "foreign": lambda: file.write_bytes(b"rank 1: out of memory\n"),
        "pickle": lambda: flip_record(file, "data.pkl"),
        "tensor": lambda: flip_record(file, "data/0"),
    }


# Which layers a pipeline has is written by ZeRO alone.
INVISIBLE = {("pipeline0", f"layer_{n:02}-model_states.pt", "gone") for n in range(4)}
# Nothing in stage 3's files of the model is a tensor with something in it.
NO_TENSORS = {("zero3", f"zero_pp_rank_{n}_mp_rank_00_model_states.pt", "tensor") for n in (0, 1)}
NO_TENSORS |= {("pipeline1", f"mp_rank_0{n}_model_states.pt", "tensor") for n in (0, 1)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_to_any_file_is_found(written: Path, tmp_path: Path, layout: str) -> None:
    whole = written / layout / "global_step3"
    cases: dict[str, tuple[str, str]] = {}
    for name in sorted(x.name for x in whole.iterdir()):
        for damage in damages(whole / name):
            if (layout, name, damage) in NO_TENSORS:
                continue
            case = f"case{len(cases)}"
            folder = tmp_path / case / "global_step3"
            shutil.copytree(whole, folder)
            damages(folder / name)[damage]()
            cases[case] = (name, damage)
    assert len(cases) >= 7
    report = Report(tmp_path)
    told = {Path(x["folder"]).name: x["last_suspect"] or x["last_trusted"] for x in report.folders}
    assert told.keys() == cases.keys()
    unseen = {(layout, *cases[case]) for case, last in told.items() if last is not None}
    assert unseen == {x for x in INVISIBLE if x[0] == layout}


def test_a_save_that_was_cut_off_and_the_one_before(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "zero1", tmp_path / "run")
    run = tmp_path / "run"
    shutil.rmtree(run / "global_step3_universal")
    # Killed after rank 0 has written: what is missing is the other rank's shard, and `latest` is of before.
    (run / "global_step3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    (run / "latest").write_text("global_step1")
    report = Report(run)
    assert report.kinds("global_step3") == {"missing-shard"}
    assert (report.last, report.stock) == ("global_step1", ("global_step1", "it resumes"))
    assert findings(report) == []
    # Killed before anything was written.
    shutil.rmtree(run / "global_step3")
    (run / "global_step3").mkdir()
    report = Report(run)
    assert report.verdict("global_step3") == "broken"
    assert report.last == "global_step1"


def test_every_shard_of_the_optimizer_is_missing(written: Path, tmp_path: Path) -> None:
    for layout in ("zero1", "zero2", "zero3", "pipeline1", "experts"):
        folder = tmp_path / layout / "global_step3"
        shutil.copytree(written / layout / "global_step3", folder)
        for file in folder.glob("*_optim_states.pt"):
            file.unlink()
        report = Report(folder)
        assert report.kinds("global_step3") == {"missing-shard"}, layout


def test_files_of_two_saves_of_one_tag(written: Path, tmp_path: Path) -> None:
    for layout in ("zero0", "bf16", "zero1", "zero3", "pipeline0", "pipeline1", "experts"):
        one, two = (written / layout / f"global_step{step}" for step in (1, 3))
        names = sorted(x.name for x in two.iterdir())
        for number, name in enumerate(names):
            best = tmp_path / layout / str(number) / "best"
            shutil.copytree(two, best)
            shutil.copy(one / name, best / name)
            report = Report(best)
            # A layer or an expert is weights alone, and one file is all that a plain model has.
            if name.startswith("layer_") or len(names) == 1:
                assert report.verdict("best") == "trusted", (layout, name)
                continue
            assert report.verdict("best") == "suspect", (layout, name)
            assert report.kinds("best") <= {"torn", "optimizer-step"}, (layout, name)
    renamed = tmp_path / "renamed" / "global_step3"
    shutil.copytree(written / "zero0" / "global_step1", renamed)
    assert Report(renamed).kinds("global_step3") == {"torn"}


@pytest.mark.parametrize(
    ("text", "found", "outcome"),
    [
        ("global_step3", [], "it resumes"),
        ("global_step3\n", [], "it resumes"),
        ("", ["stale-tracker"], "fresh weights"),
        ("global_step40", ["stale-tracker"], "it fails"),
        ("global_step1", ["stale-tracker"], "it resumes"),
        (None, ["missing-tracker"], "fresh weights"),
    ],
)
def test_what_latest_says(
    written: Path, tmp_path: Path, text: str | None, found: list[str], outcome: str
) -> None:
    shutil.copytree(written / "zero2", tmp_path / "run")
    latest = tmp_path / "run" / "latest"
    latest.unlink() if text is None else latest.write_text(text)
    report = Report(tmp_path / "run")
    assert report.last == "global_step3"
    assert findings(report) == found
    assert outcome in report.stock[1]


def test_latest_names_one_that_is_broken(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "zero2", tmp_path / "run")
    for name in ("global_step3", "global_step1"):
        next((tmp_path / "run" / name).glob("*optim_states.pt")).unlink()
        report = Report(tmp_path / "run")
        assert findings(report) == ["stale-tracker"]
        assert report.stock[0] == "global_step3"
    assert report.last is None


def test_a_universal_checkpoint(written: Path, tmp_path: Path) -> None:
    whole = written / "zero1" / "global_step3_universal"
    report = Report(whole)
    assert report.verdict(whole.name) == "trusted", report.ran.stdout
    assert report.checkpoints[whole.name]["step"] == 3
    files = sorted(x.relative_to(whole) for x in whole.rglob("*.pt"))
    assert len(files) == 1 + 1 + 4 * 4
    cases = {}
    for file in files:
        for damage in ("gone", "empty", "cut", "pickle"):
            folder = tmp_path / f"case{len(cases)}" / whole.name
            shutil.copytree(whole, folder)
            damages(folder / file)[damage]()
            cases[folder.parent.name] = (file, damage)
    folder = tmp_path / "parameter" / whole.name
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "zero" / "0.bias")
    report = Report(tmp_path)
    last = {Path(x["folder"]).name: x["last_suspect"] or x["last_trusted"] for x in report.folders}
    assert last == dict.fromkeys([*cases, "parameter"], None)
    # Its own tracker names it.
    shutil.copytree(written / "zero1", tmp_path / "both")
    tracker = tmp_path / "both" / "latest_universal"
    assert findings(Report(tmp_path / "both")) == []
    tracker.write_text("global_step9_universal")
    assert findings(Report(tmp_path / "both")) == ["stale-tracker"]
    tracker.unlink()
    assert findings(Report(tmp_path / "both")) == ["missing-tracker"]


def test_a_checkpoint_of_the_trainer_with_deepspeed_in_it(written: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "checkpoint-3"
    shutil.copytree(written / "zero2" / "global_step3", folder / "global_step3")
    (folder / "latest").write_text("global_step3")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    save_file({}, folder / "model.safetensors")
    shutil.copy(folder / "global_step3" / "mp_rank_00_model_states.pt", folder / "rng_state.pth")
    assert Report(folder).verdict("checkpoint-3") == "trusted"
    (folder / "latest").write_text("global_step1")
    assert Report(folder).kinds("checkpoint-3") == {"stale-tracker"}
    (folder / "latest").unlink()
    assert Report(folder).kinds("checkpoint-3") == {"missing-tracker"}
