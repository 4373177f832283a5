"""`lg.lightning` with the real Trainer: one process, DDP and FSDP2 on two gloo ranks, killed and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trainers

pytest.importorskip("lightning")

SMALL = "small_lightning.py"
RANKS = {"one": 1, "ddp": 2, "fsdp2": 2}


def run(out: Path, kind: str, *arguments: object) -> list[int]:
    return trainers.run(
        SMALL, out.parent / f"{out.name}.log", kind, "--out", out, *arguments, ranks=RANKS[kind]
    )


def said(out: Path) -> str:
    return trainers.output(out.parent / f"{out.name}.log")


@pytest.mark.parametrize(
    ("kind", "kill_at", "begins"),
    # Epochs have 8 steps: 8 is in the middle of nothing, 9 was saved in the middle of the second.
    [("one", 5, 3), ("one", 11, 9), ("ddp", 11, 9), ("fsdp2", 11, 9)],
)
def test_killed_and_resumed_every_step_is_bit_identical(
    tmp_path: Path, kind: str, kill_at: int, begins: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    ranks = RANKS[kind]
    assert run(whole, kind) == [0] * ranks, said(whole)
    killed = run(out, kind, "--kill-at", kill_at, "--kill-rank", ranks - 1)
    assert killed[-1] == -9 and 0 not in killed, said(out)
    # What Lightning wrote is not needed: the store has it.
    shutil.rmtree(out / "ck")
    assert run(out, kind) == [0] * ranks, said(out)
    for rank in range(ranks):
        assert trainers.began(out, rank) == begins
        assert trainers.trace(out, rank) == trainers.trace(whole, rank)


def test_without_the_generators_it_is_not_resumed_exactly(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "one", "--kill-at", 11) == [-9], said(out)
    assert run(out, "one", "--without-generators") == [0], said(out)
    with pytest.raises(AssertionError, match="step 10 gave another state"):
        trainers.trace(out)


def test_under_its_old_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "one", "--old-name", "--kill-at", 5) == [-9], said(out)
    assert run(out, "one", "--old-name") == [0], said(out)
    assert trainers.began(out) == 3
    assert len(trainers.trace(out)) == 16


def test_what_cannot_be_stored_is_named_with_the_remedy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "one", "--unstorable") == [0], said(out)
    text = said(out)
    assert (
        "checkpoint['mine']['tool'][0] is a builtins.object, which cannot be stored without pickle"
        in text
    ), text
    assert run(tmp_path / "strict", "one", "--unstorable", "--strict") == [1]


def test_a_damaged_checkpoint_is_passed_over_and_a_file_of_another_plugin_is_read(
    tmp_path: Path,
) -> None:
    import lastgood as lg
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.plugins import TorchCheckpointIO

    store = tmp_path / "store"
    io = lg.lightning.CheckpointIO(store)
    assert lg.lightning.last_good(store) is None
    value = {
        "state_dict": {"w": torch.arange(5.0)},
        "global_step": 1,
        "epoch": 0,
        "loops": {"x": (1, None)},
    }
    io.save_checkpoint(value, tmp_path / "1.ckpt")
    io.save_checkpoint({**value, "global_step": 2, "extra": torch.randn(1000)}, tmp_path / "2.ckpt")
    # The same step again is a checkpoint of its own.
    io.save_checkpoint({**value, "global_step": 2, "again": True}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt")["again"] is True
    loaded = io.load_checkpoint(tmp_path / "1.ckpt")
    assert torch.equal(loaded["state_dict"]["w"], value["state_dict"]["w"]) and loaded["loops"] == {
        "x": (1, None)
    }

    token = lg.lightning.last_good(store)
    newest = json.loads((tmp_path / "last.ckpt").read_text())["lastgood"]["checkpoint"]
    for pack in store.glob("runs/default/packs/2/*/*.pack"):
        data = bytearray(pack.read_bytes())
        data[20] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    with pytest.warns(RuntimeWarning):
        assert "again" not in lg.lightning.CheckpointIO(store).load_checkpoint(token)
    with pytest.raises(lg.Corrupt):
        io.load_checkpoint(tmp_path / "last.ckpt")
    assert newest

    TorchCheckpointIO().save_checkpoint(value, tmp_path / "torch.ckpt")
    assert io.load_checkpoint(tmp_path / "torch.ckpt")["global_step"] == 1
    io.remove_checkpoint(tmp_path / "torch.ckpt")
    assert not (tmp_path / "torch.ckpt").exists()
    assert pl.Trainer(plugins=[io], logger=False).strategy.checkpoint_io is io


def test_a_named_tuple_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    import collections

    import lastgood as lg

    pair = collections.namedtuple("pair", "a b")
    io: Any = lg.lightning.CheckpointIO(tmp_path / "store", strict=True)
    with pytest.raises(lg.Invalid, match=r"checkpoint\['x'\].* is a named tuple pair"):
        io.save_checkpoint({"global_step": 1, "x": pair(1, 2)}, tmp_path / "1.ckpt")
