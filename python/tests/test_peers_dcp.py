"""What goes wrong silently in today's tools, each shown, and that it does not here: P1, P3 to P7."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import forks
import fsspec
import lastgood as lg
import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch_checkpointing as tc
from _worlds import worlds
from lastgood.fs import LastgoodFileSystem
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SCENARIOS = ["full_stock", "full_ours", "torn_stock", "torn_files", "memory"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    return worlds(tmp_path_factory.mktemp("worlds"), *SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_full_disks_torn_mixes_and_memory(ended: tuple[set[str], str], scenario: str) -> None:
    """P3, P4, P6."""
    assert scenario in ended[0], ended[1][-8000:]


#: Bytes that are easy to find in a file.
WEIGHTS = torch.arange(1000, 1400, dtype=torch.float32)


def flip(folder: Path) -> list[Path]:
    """Flips one bit of element 200, in every file that holds it."""
    payload = WEIGHTS[200:204].numpy().tobytes()
    flipped = []
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        stored = bytearray(path.read_bytes())
        at = stored.find(payload)
        if at >= 0:
            stored[at] ^= 1
            path.chmod(0o644)
            path.write_bytes(stored)
            flipped.append(path)
    assert flipped
    return flipped


def manager(config: Any) -> tc.CheckpointManager:
    save = tc.SyncCheckpointSaverConfig()
    return tc.CheckpointManager(tc.CheckpointManager.Config(save=save, storage_config=config))


def through_dcp(folder: Path) -> Callable[[], torch.Tensor]:
    dcp.save({"w": WEIGHTS}, checkpoint_id=str(folder))
    return lambda: load_dcp(checkpoint_id=str(folder))


def load_dcp(**how: Any) -> torch.Tensor:
    found = {"w": torch.zeros(400)}
    dcp.load(found, **how)
    return found["w"]


def through_torch(folder: Path) -> Callable[[], torch.Tensor]:
    torch.save({"w": WEIGHTS}, folder / "w.pt")
    return lambda: torch.load(folder / "w.pt")["w"]


def through_safetensors(folder: Path) -> Callable[[], torch.Tensor]:
    from safetensors.torch import load_file, save_file

    save_file({"w": WEIGHTS}, folder / "w.safetensors")
    return lambda: load_file(folder / "w.safetensors")["w"]


def through_manager(config: Any, name: str) -> Callable[[], torch.Tensor]:
    manager(config).save(name, {"m": {"w": WEIGHTS}})

    def load() -> torch.Tensor:
        found: torch.Tensor = manager(config).load(name, into={"m": {"w": torch.zeros(400)}})["m"][
            "w"
        ]
        return found

    return load


def through_torch_checkpointing(folder: Path) -> Callable[[], torch.Tensor]:
    return through_manager(
        LocalFileSystemStorageConfig(use_direct_io=False), str(folder / "step_1")
    )


STOCK = [through_dcp, through_torch, through_safetensors, through_torch_checkpointing]


@pytest.mark.parametrize("save", STOCK)
def test_a_flipped_bit_loads_silently_elsewhere(
    tmp_path: Path, save: Callable[[Path], Callable[[], torch.Tensor]]
) -> None:
    """P1."""
    load = save(tmp_path)
    flip(tmp_path)
    assert (load() != WEIGHTS).sum() == 1


def through_writer(folder: Path) -> Callable[[], torch.Tensor]:
    lg.torch.save({"w": WEIGHTS}, lg.torch.Writer(folder), checkpoint_id=1)
    return lambda: load_dcp(storage_reader=lg.torch.Reader(folder))


def through_files(folder: Path) -> Callable[[], torch.Tensor]:
    dcp.save({"w": WEIGHTS}, checkpoint_id="lastgood://run/step-1")
    return lambda: load_dcp(checkpoint_id="lastgood://run/step-1")


def through_lightning(folder: Path) -> Callable[[], torch.Tensor]:
    fs = LastgoodFileSystem(store=folder)
    with fs.transaction, fs.open("run/x.ckpt", "wb") as file:
        torch.save({"w": WEIGHTS}, file)

    def load() -> torch.Tensor:
        with fs.open("run/x.ckpt") as file:
            found: torch.Tensor = torch.load(file)["w"]
            return found

    return load


def through_our_storage(folder: Path) -> Callable[[], torch.Tensor]:
    return through_manager(lg.torch.StorageConfig(folder, "tc"), "/step_1")


@pytest.mark.parametrize(
    "save", [through_writer, through_files, through_lightning, through_our_storage]
)
def test_a_flipped_bit_is_refused_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Path], Callable[[], torch.Tensor]],
) -> None:
    """P1."""
    monkeypatch.setenv("LASTGOOD_STORE", str(tmp_path))
    fsspec.register_implementation("lastgood", LastgoodFileSystem, clobber=True)
    load = save(tmp_path)
    assert torch.equal(load(), WEIGHTS)
    flip(tmp_path)
    with pytest.raises(BaseException, match=r"expected hash .*\.pack"):
        load()


def test_a_rank_alone_goes_back_by_itself(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    lg.torch.save({"w": torch.zeros(400)}, writer, checkpoint_id=1)
    lg.torch.save({"w": WEIGHTS}, writer, checkpoint_id=2)
    flip(tmp_path)
    with pytest.raises(lg.Corrupt, match="pack"):
        lg.torch.load({"w": torch.ones(400)}, lg.torch.Reader(tmp_path, at=2))
    found, reader = {"w": torch.ones(400)}, lg.torch.Reader(tmp_path)
    with pytest.warns(RuntimeWarning, match="the one before it is loaded"):
        lg.torch.load(found, reader)
    assert not found["w"].any() and reader.loaded is not None and reader.loaded[1] == 1


def test_a_missing_part_is_loaded_as_whatever_was_there_elsewhere(tmp_path: Path) -> None:
    """P5."""
    dcp.save({"w": WEIGHTS.reshape(4, 100)}, checkpoint_id=str(tmp_path))
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    metadata.state_dict_metadata["w"].chunks[0].sizes = torch.Size([3, 100])
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    found = {"w": torch.full((4, 100), -1.0)}
    dcp.load(found, checkpoint_id=str(tmp_path))
    assert (found["w"] == -1).sum() == 100


class Forgetful(DefaultLoadPlanner):
    """A planner that leaves out a part, as DCP's does where the metadata has a gap."""

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        plan.items.pop()
        return plan


def test_a_missing_part_is_refused_here(tmp_path: Path) -> None:
    """P5: a gap in the plan, and objects that are gone."""
    writer = lg.torch.Writer(tmp_path)
    lg.torch.save({"v": WEIGHTS, "w": WEIGHTS + 1}, writer, checkpoint_id=1)
    found = {"v": torch.full((400,), -1.0), "w": torch.full((400,), -1.0)}
    with pytest.raises(lg.Incompatible, match="400 elements are asked for"):
        lg.torch.load(found, lg.torch.Reader(tmp_path), planner=Forgetful())
    for pattern in ("*.pack", "*.idx"):
        path = next(tmp_path.rglob(pattern))
        path.rename(tmp_path / "away")
        with pytest.raises(lg.Corrupt, match=path.name.replace(".", r"\.")):
            lg.torch.load(found, lg.torch.Reader(tmp_path, at=1))
        (tmp_path / "away").rename(path)
    assert all((tensor == -1).all() for tensor in found.values())
    lg.torch.load(found, lg.torch.Reader(tmp_path, at=1))
    assert torch.equal(found["w"], WEIGHTS + 1)


def test_a_missing_shard_is_loaded_elsewhere_and_refused_here(tmp_path: Path) -> None:
    """P5: a file that one of two ranks wrote is gone."""
    program = [sys.executable, str(children.PROGRAMS / "hf_shards.py"), str(tmp_path)]
    with open(tmp_path / "output", "wb") as output:
        ranks = [
            forks.Fork("torch", [*program, str(rank)], env=forks.environment(), stdout=output)
            for rank in range(2)
        ]
        codes = [rank.wait(120) for rank in ranks]
    assert codes == [0, 0], (tmp_path / "output").read_text()
    files = sorted((tmp_path / "stock").glob("*.safetensors"))
    assert len(files) == 2
    # The sizes are taken from the parts that are there: without the last one it would look smaller.
    files[0].unlink()
    found = {"w": torch.full((16, 4), -1.0)}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "stock")))
    assert (found["w"][:8] == -1).all() and (found["w"][8:] > 0).all()
    next((tmp_path / "ours").rglob("1-*.pack")).unlink()
    with pytest.raises(lg.Corrupt, match="pack"):
        lg.torch.load({"w": torch.zeros(16, 4)}, lg.torch.Reader(tmp_path / "ours", at=1))


def test_errors_pass_by_except_exception_elsewhere(tmp_path: Path) -> None:
    """P7."""
    (tmp_path / "file").write_text("in the way")
    assert not issubclass(CheckpointException, Exception)
    with pytest.raises(CheckpointException):
        try:
            dcp.save({"w": WEIGHTS}, checkpoint_id=str(tmp_path / "file" / "x"))
        except Exception:
            raise AssertionError("it was caught") from None
    for call in (
        lambda: lg.torch.save({"w": object()}, lg.torch.Writer(tmp_path / "s"), checkpoint_id=1),
        lambda: lg.torch.load({"w": WEIGHTS}, lg.torch.Reader(tmp_path / "s"), checkpoint_id=7),
        lambda: lg.torch.save({"w": WEIGHTS}, lg.torch.Writer(tmp_path / "file"), checkpoint_id=1),
    ):
        caught = None
        try:
            call()
        except Exception as error:
            caught = error
        assert isinstance(caught, lg.LastgoodError)


def test_failures_behind_the_call_are_hidden_elsewhere(tmp_path: Path) -> None:
    """P7."""
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        lost = dcp.async_save({"w": WEIGHTS}, checkpoint_id=str(tmp_path / "file" / "x"))
        assert isinstance(lost.exception(), BaseException)
        dcp.async_save({"w": WEIGHTS}, checkpoint_id=str(tmp_path / "y")).result()
    assert not [w for w in heard if "x" in str(w.message) and "fail" in str(w.message)]
    writer = lg.torch.Writer(tmp_path / "store")
    dcp.async_save({"w": object()}, checkpoint_id=1, storage_writer=writer).exception()
    with pytest.warns(lg._run.SaveWarning, match="the save of step 1 failed"):
        dcp.async_save({"w": WEIGHTS}, checkpoint_id=2, storage_writer=writer).result()
    assert os.listdir(tmp_path / "store" / "runs" / "default" / "checkpoints")
