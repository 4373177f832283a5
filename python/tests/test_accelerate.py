"""`lg.accelerate` with the real library: killed, with its folders gone or damaged, on one rank and on two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trainers

pytest.importorskip("accelerate")

SMALL = "small_accelerate.py"


@pytest.mark.parametrize(
    ("ranks", "automatic", "damage"),
    [(1, False, "nothing"), (1, False, "gone"), (1, True, "torn"), (2, False, "torn")],
)
def test_killed_and_resumed_every_step_is_bit_identical(
    tmp_path: Path, ranks: int, automatic: bool, damage: str
) -> None:
    naming = ["--automatic"] if automatic else []
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    assert trainers.run(SMALL, log, "--out", whole, *naming, ranks=ranks) == [0] * ranks, (
        trainers.output(log)
    )
    codes = trainers.run(
        SMALL, log, "--out", out, *naming, "--kill-at", 8, "--kill-rank", ranks - 1, ranks=ranks
    )
    assert codes[-1] == -9, trainers.output(log)
    newest = out / "checkpoints" / "checkpoint_1" if automatic else out / "checkpoint-6"
    assert newest.is_dir()
    if damage == "gone":
        shutil.rmtree(newest)
    if damage == "torn":
        (newest / "optimizer.bin").write_bytes((newest / "optimizer.bin").read_bytes()[:500])
    assert trainers.run(SMALL, log, "--out", out, *naming, ranks=ranks) == [0] * ranks, (
        trainers.output(log)
    )
    for rank in range(ranks):
        assert trainers.began(out, rank) == 6
        assert trainers.trace(out, rank) == trainers.trace(whole, rank)


def test_a_folder_of_another_tool_is_not_restored(tmp_path: Path) -> None:
    import accelerate
    import lastgood as lg
    from lastgood import _folders, _resume
    from lastgood._peers import Peers
    from lastgood._state import World

    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    run = _resume.open_run(str(tmp_path / "store"), "one")
    _folders.ingest(run, folder, 2, "transformers", Peers(World())).durable.result()
    run.close()
    accelerator = accelerate.Accelerator(cpu=True)
    keeper = lg.accelerate.attach(
        accelerator, tmp_path / "out", store=tmp_path / "store", run="one"
    )
    with pytest.raises(
        lg.Incompatible, match="folder of transformers, no checkpoint folder of acc"
    ):
        keeper.restore()


def test_what_is_no_accelerator_or_has_no_step_is_refused(tmp_path: Path) -> None:
    import accelerate
    import lastgood as lg

    with pytest.raises(lg.Invalid, match=r"takes an accelerate.Accelerator, given str"):
        lg.accelerate.attach("model", tmp_path)
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(lg.Invalid, match="say in which folder the checkpoints are"):
        lg.accelerate.attach(accelerator)
    lg.accelerate.attach(accelerator, tmp_path, strict=True)
    with pytest.raises(lg.Invalid, match="'final' does not end in a step"):
        accelerator.save_state(str(tmp_path / "final"))
