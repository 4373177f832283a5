"""`lg.torch.StorageConfig` with the real CheckpointManager of torch_checkpointing."""

from __future__ import annotations

import pickle
from pathlib import Path

import lastgood as lg
import pytest
import torch
import torch_checkpointing as tc
from torch_checkpointing.checkpoint_process import CheckpointProcessConfig


def manager(store: Path, save: tc.CheckpointSaverConfig) -> tc.CheckpointManager:
    config = lg.torch.StorageConfig(store, "tc")
    return tc.CheckpointManager(tc.CheckpointManager.Config(save=save, storage_config=config))


#: Its process imports torch, which takes long where several tests run.
PATIENT = CheckpointProcessConfig(subprocess_init_timeout_secs=200)


@pytest.mark.parametrize(
    "save",
    [tc.SyncCheckpointSaverConfig(), tc.AsyncCheckpointSaverConfig(process_config=PATIENT)],
)
def test_saves_and_loads(tmp_path: Path, save: tc.CheckpointSaverConfig) -> None:
    saves = manager(tmp_path, save)
    for step in (1, 2):
        state = {"model": {"w": torch.full((50, 50), float(step))}, "step": step}
        future = saves.save(f"/ckpt/step_{step}", state)
        if future is not None:
            future.result()
    for step in (1, 2):
        into = {"model": {"w": torch.zeros(50, 50)}, "step": 0}
        loaded = saves.load(f"/ckpt/step_{step}", into=into)
        assert loaded["model"]["w"].unique().tolist() == [step] and loaded["step"] == step
    saves.close()
    storage = lg.torch.StorageConfig(tmp_path, "tc").create_storage()
    assert sorted(storage.ls(Path("/ckpt"))) == ["step_1", "step_2"]
    with lg.open(tmp_path, {}, run="tc") as run:
        assert run.verify("latest") > 0


def test_renames_as_the_table_says(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(lg.torch.StorageConfig(tmp_path, "tc").create_storage()))
    for name in ("d/x", "e/y", "f", "g"):
        storage.write(Path(name), name.encode())
    storage.rename(Path("d"), Path("new"), is_directory=True)
    assert storage.read(Path("new/x")) == b"d/x" and not storage.exists(Path("d"))
    storage.mkdir(Path("empty"))
    storage.rename(Path("new"), Path("empty"), is_directory=True)
    assert storage.ls(Path("empty")) == ["x"]
    for source, target in (("empty", "e"), ("empty", "f"), ("f", "e"), ("f", "empty")):
        with pytest.raises(OSError):
            storage.rename(Path(source), Path(target), is_directory=source == "empty")
    storage.rename(Path("f"), Path("h"))
    storage.rename(Path("g"), Path("h"))
    assert storage.read(Path("h")) == b"g" and storage.getsize(Path("h")) == 1
    assert not storage.exists(Path("f")) and storage.isdir(Path("e"))
    storage.rmdir(Path("e"))
    storage.delete(Path("h"))
    with pytest.raises(FileNotFoundError):
        storage.getsize(Path("h"))
    assert storage.glob("*/x") == [] and storage.glob("empty/*") == ["empty/x"]
