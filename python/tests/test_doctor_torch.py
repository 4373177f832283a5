"""`lastgood doctor` and `lastgood import` on files of `torch.save`."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doctor_reports import (
    Report,
    assert_same_bytes,
    flat,
    flip,
    imported,
    run,
    state,
    write_torch_file,
)


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "model.pt"
    write_torch_file(path)
    return path


def test_a_file_of_torch_save_is_trusted_and_a_flip_that_torch_loads_is_found(
    torch_file: Path, tmp_path: Path
) -> None:
    whole = Report(torch_file)
    assert whole.verdict("model.pt") == "trusted"
    assert whole.checkpoints["model.pt"]["step"] == 3
    assert whole.checkpoints["model.pt"]["uncheckable_bytes"] == 0
    flipped = tmp_path / "model.pt"
    shutil.copy(torch_file, flipped)
    weight = torch.load(torch_file)["model"]["0.weight"]
    flip(flipped, weight.numpy().tobytes(), 2)
    # P1: torch loads it, and it is wrong.
    assert not torch.equal(torch.load(flipped)["model"]["0.weight"], weight)
    report = Report(tmp_path)
    assert (report.verdict("model.pt"), report.kinds("model.pt")) == ("broken", {"checksum"})
    assert report.last is None


def test_older_and_sumless_files_are_read_and_nothing_is_claimed(tmp_path: Path) -> None:
    model, _ = state(0)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    report = Report(tmp_path)
    for name in ("old.pt", "bare.pt"):
        assert report.verdict(name) == "trusted"
        assert report.checkpoints[name]["checked_bytes"] == 0
        assert any(x["kind"] == "no-checksum" for x in report.checkpoints[name]["findings"])
    cut = (tmp_path / "old.pt").read_bytes()[:-5]
    (tmp_path / "old.pt").write_bytes(cut)
    assert Report(tmp_path).verdict("old.pt") == "broken"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_pickles_that_run_commands_are_listed_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"w": torch.ones(3), "x": Evil(marker)}, tmp_path / "evil.pt")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        plain = pickle.dumps(Evil(marker), protocol)
        (tmp_path / f"evil{protocol}.pkl").write_bytes(plain)
    report = Report(tmp_path)
    for name in ["evil.pt", *(f"evil{p}.pkl" for p in range(2, pickle.HIGHEST_PROTOCOL + 1))]:
        assert report.verdict(name) == "suspect", name
        [danger] = [x for x in report.checkpoints[name]["findings"] if x["severity"] == "danger"]
        assert f"{os.name}.system" in danger["found"], name
    # Protocols 0 and 1 have no mark that they begin with: what cannot be told is not trusted.
    assert {report.verdict("evil0.pkl"), report.verdict("evil1.pkl")} <= {"broken", "suspect"}
    imported = run(
        "import", tmp_path / "evil.pt", "--store", tmp_path / "s", "--run", "r", "--step", "1"
    )
    assert imported.returncode == 0, imported.stderr
    assert "left out: x (an object of posix.system)" in imported.stdout
    assert not marker.exists()
    # The attack works: whoever unpickles it runs it.
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.exists()


def test_an_import_of_torch_save_has_every_byte(torch_file: Path, tmp_path: Path) -> None:
    said, tensors = imported(torch_file, tmp_path)
    expected = flat("", torch.load(torch_file), {})
    assert_same_bytes(expected, tensors)  # type: ignore[arg-type]
    values = {name: json.loads(bytes(value)) for name, value in said["values"].items()}
    assert (values["step"], values["name"], values["lrs"]) == (3, "x", [0.1, 0.2])
    assert values["optimizer.param_groups.0.betas"] == [0.9, 0.999]
    assert said["left_out"] == ["model (attributes of an OrderedDict)"]


def test_a_checkpoint_is_read_while_it_is_written(tmp_path: Path) -> None:
    """A save that is under way is no trap: it is broken or suspect, and soon it is not."""
    path = tmp_path / "model.pt"
    big = {"w": torch.arange(2_000_000.0)}
    torch.save(big, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    with open(path, "wb") as file:
        for begin in range(0, len(data), 1_000_000):
            file.write(data[begin : begin + 1_000_000])
            file.flush()
            if begin % 4_000_000 == 0 and begin + 1_000_000 < len(data):
                assert Report(path).verdict("model.pt") == "broken"
                time.sleep(0)
    assert Report(path).verdict("model.pt") == "trusted"


def test_what_is_no_checkpoint_is_said_with_the_codes_of_the_command(tmp_path: Path) -> None:
    assert run("doctor", tmp_path / "nowhere").returncode == 4
    (tmp_path / "notes.txt").write_text("years")
    ran = run("doctor", tmp_path)
    assert ran.returncode == 4
    assert "holds no checkpoint" in ran.stderr
