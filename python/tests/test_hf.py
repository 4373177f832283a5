"""`lg.hf` with the real `Trainer`: killed, damaged, on two ranks, with a store that goes away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trainers

pytest.importorskip("transformers")

SMALL = "small_hf.py"
NEWEST = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: Any) -> Path:
    """The output folder of a run that nothing happened to."""
    out: Path = tmp_path_factory.mktemp("hf") / "undisturbed"
    assert trainers.run(SMALL, out.parent / "log", "--out", out) == [0], trainers.output(
        out.parent / "log"
    )
    return out


def resume(out: Path, *arguments: object, ranks: int = 1) -> str:
    """Runs it again to its end, and gives what rank 0 printed."""
    log = out.parent / f"{out.name}-again"
    assert trainers.run(SMALL, log, "--out", out, *arguments, ranks=ranks) == [0] * ranks, (
        trainers.output(log)
    )
    return trainers.output(log)


def copy_of(undisturbed: Path, to: Path, steps: int = 12) -> Path:
    """The folder as it was at ``steps``, without the lines of the trace after that."""
    shutil.copytree(undisturbed, to)
    lines = (to / "trace.0").read_text().splitlines(keepends=True)
    (to / "trace.0").write_text("".join(lines[:steps]))
    return to


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["--kill-at", 8], 6),
        # Between the trainer's last write and the callback's save the folder is whole and unknown.
        (["--kill-in-save", 6], 6),
        (["--kill-at", 2], 0),
        (["--kill-at", 11, "--keep", 1], 9),
    ],
    ids=str,
)
def test_killed_and_resumed_every_step_is_bit_identical(
    undisturbed: Path, tmp_path: Path, arguments: list[object], begins: int
) -> None:
    out = tmp_path / "out"
    assert trainers.run(SMALL, tmp_path / "log", "--out", out, *arguments) == [-9]
    resume(out)
    assert trainers.began(out) == begins
    assert trainers.trace(out) == trainers.trace(undisturbed)


def test_a_policy_saves_other_steps_and_the_one_before_the_end(
    undisturbed: Path, tmp_path: Path
) -> None:
    import lastgood as lg

    out = tmp_path / "out"
    told = ("--policy", '{"at": [5], "grace": 60}', "--term-at", 7)
    codes = trainers.run(SMALL, tmp_path / "log", "--out", out, *told)
    said = trainers.output(tmp_path / "log")
    assert codes == [lg.Policy.PREEMPTED], said
    assert "the state after step 7 is saved" in said
    with lg.open(out / "_lastgood", {}) as run:
        assert [checkpoint.step for checkpoint in run.history()] == [3, 5, 6, 7]
    resume(out)
    assert trainers.began(out) == 7
    assert trainers.trace(out) == trainers.trace(undisturbed)


def test_without_exact_batches_a_drawing_collator_is_not_resumed_exactly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trainers.run(
        SMALL, tmp_path / "log", "--out", out, "--plain-batches", "--kill-at", 8
    ) == [-9]
    resume(out, "--plain-batches")
    with pytest.raises(AssertionError, match="step 7 gave another state"):
        trainers.trace(out)


def test_two_ranks_are_resumed_exactly_after_one_is_killed(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert trainers.run(SMALL, tmp_path / "whole.log", "--out", whole, ranks=2) == [0, 0]
    # On a busy machine the save of step 6 would else be on its way at the kill.
    killed = ("--block", "--kill-at", 8, "--kill-rank", 1)
    codes = trainers.run(SMALL, tmp_path / "log", "--out", out, *killed, ranks=2)
    assert codes[1] == -9 and codes[0] != 0
    shutil.rmtree(out / "checkpoint-6")
    resume(out, ranks=2)
    for rank in (0, 1):
        assert trainers.began(out, rank) == 6
        assert trainers.trace(out, rank) == trainers.trace(whole, rank)


def test_a_failed_save_warns_and_training_goes_on_unless_strict(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trainers.run(SMALL, tmp_path / "log", "--out", out, "--break-store-at", 5) == [0]
    said = trainers.output(tmp_path / "log")
    assert "SaveWarning: lastgood: checkpoint-6 is not saved, and training goes on" in said, said
    strict = tmp_path / "strict"
    assert trainers.run(
        SMALL, tmp_path / "log", "--out", strict, "--break-store-at", 5, "--strict"
    ) == [1]


def damage_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


DAMAGE = {
    "is missing": shutil.rmtree,
    "one bit of the weights": damage_byte,
    "no optimizer": remove("optimizer.pt"),
    "no state": remove("trainer_state.json"),
    "torn": lambda folder: os.truncate(folder / "optimizer.pt", 1000),
    "a file more": lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_written_back_byte_for_byte(
    undisturbed: Path, tmp_path: Path, damage: str
) -> None:
    import lastgood as lg

    out = copy_of(undisturbed, tmp_path / "out")
    newest = out / f"checkpoint-{NEWEST}"
    before = contents(newest)
    DAMAGE[damage](newest)
    damaged = contents(newest) if newest.exists() else None
    with pytest.warns(RuntimeWarning, match="is written back from the store"):
        assert lg.hf.last_good(out, preflight="off") == str(newest)
    assert contents(newest) == before
    if damaged is not None:
        aside = out / "_lastgood-quarantine" / f"checkpoint-{NEWEST}.0"
        assert contents(aside) == damaged, "what was there is kept as it was"


def unknown(undisturbed: Path, to: Path) -> Path:
    """A folder `checkpoint-15` that was never saved: the newest one, with the trainer's state of step 15."""
    out = copy_of(undisturbed, to)
    folder = out / "checkpoint-15"
    shutil.copytree(out / f"checkpoint-{NEWEST}", folder)
    state = folder / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 12', '"global_step": 15'))
    return out


def test_an_unknown_folder_that_is_proven_whole_is_taken_and_saved(
    undisturbed: Path, tmp_path: Path
) -> None:
    import lastgood as lg

    out = unknown(undisturbed, tmp_path / "out")
    with pytest.warns(
        RuntimeWarning, match="checkpoint-15 is not whole in the store, and is whole here"
    ):
        assert lg.hf.last_good(out) == str(out / "checkpoint-15")
    shutil.rmtree(out / "checkpoint-15")
    with pytest.warns(RuntimeWarning, match="written back"):
        assert lg.hf.last_good(out) == str(out / "checkpoint-15")


UNPROVEN = {
    "is missing": remove("scheduler.pt"),
    "no whole torch file": lambda folder: os.truncate(folder / "rng_state.pth", 500),
    "not as long as its header says": lambda folder: os.truncate(
        folder / "model.safetensors", 4000
    ),
    "no whole JSON": lambda folder: os.truncate(folder / "trainer_state.json", 100),
    "not of step": lambda folder: shutil.copy(
        folder.parent / "checkpoint-9" / "trainer_state.json", folder
    ),
    "stopped while it saved": lambda folder: (folder / "checkpoint-is-incomplete.txt").touch(),
    "the system was started since": lambda folder: [
        os.utime(path, (1, 1)) for path in folder.iterdir()
    ],
}


@pytest.mark.parametrize("why", UNPROVEN)
def test_an_unknown_folder_that_is_not_proven_whole_is_set_aside(
    undisturbed: Path, tmp_path: Path, why: str
) -> None:
    import lastgood as lg

    out = unknown(undisturbed, tmp_path / "out")
    UNPROVEN[why](out / "checkpoint-15")
    kept = contents(out / "checkpoint-15")
    with pytest.warns(RuntimeWarning, match=f"checkpoint-15 is not resumed from: .*{why}"):
        assert lg.hf.last_good(out, preflight="off") == str(out / f"checkpoint-{NEWEST}")
    assert not (out / "checkpoint-15").exists()
    assert contents(out / "_lastgood-quarantine" / "checkpoint-15.0") == kept


def flip(store: Path, step: int) -> None:
    """One bit in the middle of the largest pack of the newest attempt that saved ``step``."""
    packs = store.glob(f"runs/default/packs/*/{step:012}/*.pack")
    pack = max(packs, key=lambda path: (int(path.parts[-3]), path.stat().st_size))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)


def test_a_damaged_store_is_healed_from_a_whole_folder_else_passed_over(
    undisturbed: Path, tmp_path: Path
) -> None:
    import lastgood as lg

    whole, both = copy_of(undisturbed, tmp_path / "whole"), copy_of(undisturbed, tmp_path / "both")
    for out in (whole, both):
        flip(out / "_lastgood", 12)
    with pytest.warns(
        RuntimeWarning, match="checkpoint-12 is not whole in the store, and is whole here"
    ):
        assert lg.hf.last_good(whole, preflight="off") == str(whole / "checkpoint-12")
    before = contents(whole / "checkpoint-12")
    shutil.rmtree(whole / "checkpoint-12")
    with pytest.warns(RuntimeWarning, match="written back"):
        assert lg.hf.last_good(whole, preflight="off") == str(whole / "checkpoint-12")
    assert contents(whole / "checkpoint-12") == before

    os.truncate(both / "checkpoint-12" / "optimizer.pt", 999)
    with pytest.warns(
        RuntimeWarning,
        match="checkpoint-12 is not resumed from: optimizer.pt is no whole torch file",
    ):
        assert lg.hf.last_good(both, preflight="off") == str(both / "checkpoint-9")


def test_a_damaged_part_of_the_store_is_found_although_the_folder_is_whole(
    undisturbed: Path, tmp_path: Path
) -> None:
    import lastgood as lg

    out = unknown(undisturbed, tmp_path / "out")
    (out / "checkpoint-15" / "large").write_bytes(os.urandom(4 << 20))
    with pytest.warns(RuntimeWarning, match="checkpoint-15 is not whole in the store"):
        lg.hf.last_good(out)
    flip(out / "_lastgood", 15)
    with pytest.warns(
        RuntimeWarning, match="the stored copy of checkpoint-15 is damaged, the folder is not"
    ):
        assert lg.hf.last_good(out) == str(out / "checkpoint-15")
    # It was saved again, without what is damaged: it comes back without the folder.
    before = contents(out / "checkpoint-15")
    shutil.rmtree(out / "checkpoint-15")
    with pytest.warns(RuntimeWarning, match="written back"):
        assert lg.hf.last_good(out) == str(out / "checkpoint-15")
    assert contents(out / "checkpoint-15") == before


def test_folders_from_before_lastgood(undisturbed: Path, tmp_path: Path) -> None:
    import lastgood as lg

    out = copy_of(undisturbed, tmp_path / "out")
    shutil.rmtree(out / "_lastgood")
    (out / "checkpoint-12" / "optimizer.pt").unlink()
    with pytest.warns(RuntimeWarning, match="checkpoint-9 is not whole in the store"):
        assert lg.hf.last_good(out) == str(out / "checkpoint-9")
    assert lg.hf.last_good(tmp_path / "nothing") is None


def test_another_run_in_the_store_is_no_checkpoint_folder(tmp_path: Path) -> None:
    import lastgood as lg

    with lg.open(tmp_path / "store", {"x": {"y": 1}}) as run:
        run.save(1, block=True)
    with pytest.raises(
        lg.Incompatible, match="x of trainer, no checkpoint folder of transformers; give this run"
    ):
        lg.hf.last_good(tmp_path / "out", store=tmp_path / "store")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"bytes": 1 << 50}, "tells of more than the"),
        ({"bytes": -1}, "tells of more than the"),
        ({"bytes": "9"}, "tells of more than the"),
        ({"tensors": True}, "has no header of model.safetensors"),
        ({"path": "../outside"}, "names what is not in its folder"),
        ({"more": 1}, "is none of this version"),
    ],
)
def test_a_list_of_files_that_lies_is_refused(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    import lastgood as lg
    from lastgood import _folders, _state

    file = {"path": "model.safetensors", "bytes": 4, "digest": "0" * 64, "tensors": False, **told}
    tree = {"kind": _folders.KIND, "name": "checkpoint-1", "files": [file]}
    with lg.open(tmp_path / "store", {}) as run:
        capture = lg._lastgood.Capture()
        component = capture.component(_folders.COMPONENT, "transformers", "durable")
        capture.blob(component, _state.TREE, _state.stored_tree(tree), False)
        run._native.save(1, capture, False).wait_committed()
    with pytest.raises(lg.Incompatible, match=said):
        lg.hf.last_good(tmp_path / "out", store=tmp_path / "store")
