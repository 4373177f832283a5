"""`lastgood://` through fsspec: stock DCP, Lightning, and files as such."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import children
import fsspec
import lastgood as lg
import pytest
import torch
import torch.distributed.checkpoint as dcp
from _worlds import worlds
from lastgood import _files
from lastgood.fs import LastgoodFileSystem

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SCENARIOS = ["files_reshard", "killed_files", "torn_files"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    return worlds(tmp_path_factory.mktemp("worlds"), *SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_real_process_groups(ended: tuple[set[str], str], scenario: str) -> None:
    assert scenario in ended[0], ended[1][-8000:]


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LastgoodFileSystem:
    monkeypatch.setenv("LASTGOOD_STORE", str(tmp_path))
    fsspec.register_implementation("lastgood", LastgoodFileSystem, clobber=True)
    made: LastgoodFileSystem = LastgoodFileSystem(skip_instance_cache=True)
    return made


def put(fs: LastgoodFileSystem, path: str, data: bytes) -> None:
    with fs.open(path, "wb") as file:
        file.write(data)


def test_files_are_written_listed_moved_and_removed(fs: LastgoodFileSystem) -> None:
    put(fs, "lastgood://run/a/one-1.bin", b"1" * 10)
    put(fs, "run/a/two.bin", b"2" * 20)
    put(fs, "run/b.bin", b"")
    assert fs.ls("run", detail=False) == ["run/a", "run/b.bin"]
    assert fs.ls("", detail=False) == ["run"]
    assert fs.find("lastgood://run") == ["run/a/one-1.bin", "run/a/two.bin", "run/b.bin"]
    assert fs.glob("lastgood://run/a/*.bin") == ["run/a/one-1.bin", "run/a/two.bin"]
    assert (fs.size("run/a/two.bin"), fs.cat("run/b.bin")) == (20, b"")
    assert fs.isdir("run/a") and fs.isfile("run/b.bin") and not fs.exists("run/c")
    assert fs.modified("run/a") == fs.modified("run/a/two.bin") > fs.modified("run/a/one-1.bin")
    fs.mv("run/a", "run/c")
    assert fs.cat("run/c/two.bin") == b"2" * 20 and not fs.exists("run/a")
    with pytest.raises(FileExistsError):
        fs.mv("run/b.bin", "run/c")
    fs.cp_file("run/c/two.bin", "run/d.bin")
    fs.rm("run/c/two.bin")
    assert fs.cat("run/d.bin") == b"2" * 20
    with pytest.raises(IsADirectoryError):
        fs.rm("run/c")
    fs.rm("run/c", recursive=True)
    assert fs.find("run") == ["run/b.bin", "run/d.bin"]
    fs.makedirs("run/new", exist_ok=True)
    assert fs.isdir("run/new")
    for wrong in ("run/gone", "run/gone/deeper"):
        with pytest.raises(FileNotFoundError):
            fs.open(wrong)
    with pytest.raises(FileNotFoundError):
        fs.rm("run/gone")


def test_only_whole_writes_are_allowed(
    fs: LastgoodFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(fs, "run/x", b"old")
    for mode in ("ab", "r+b"):
        with pytest.raises(lg.Invalid, match="written once"):
            fs.open("run/x", mode)
    with pytest.raises(RuntimeError), fs.open("run/x", "wb") as file:
        file.write(b"half")
        raise RuntimeError
    assert fs.cat("run/x") == b"old"
    file = fs.open("run/x", "wb")
    file.write(b"never closed")
    del file
    assert fs.cat("run/x") == b"old"
    monkeypatch.delenv("LASTGOOD_STORE")
    with pytest.raises(lg.Invalid, match="LASTGOOD_STORE"):
        fs.ls("run")


def test_transactions_are_as_lightning_uses_them(fs: LastgoodFileSystem) -> None:
    with fs.transaction, fs.open("run/x.ckpt", "wb") as file:
        file.write(b"new")
    assert fs.cat("run/x.ckpt") == b"new"
    with pytest.raises(RuntimeError), fs.transaction:
        with fs.open("run/x.ckpt", "wb") as file:
            file.write(b"newer")
        assert fs.cat("run/x.ckpt") == b"new"
        raise RuntimeError
    assert fs.cat("run/x.ckpt") == b"new"


def test_large_files_have_parts_are_read_by_ranges_and_share_chunks(
    fs: LastgoodFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "PART_BYTES", 3 << 20)
    data = bytearray(os.urandom(8 << 20))
    put(fs, "run/m-1.bin", bytes(data))

    def stored() -> int:
        return sum(p.stat().st_size for p in tmp_path.rglob("*.pack"))

    before = stored()
    data[5_000_000] ^= 1
    put(fs, "run/m-2.bin", bytes(data))
    assert stored() - before < (2 << 20), "one chunk of 1 MiB is new"
    entry = lg._files.Files(str(tmp_path), "run").catalog()["m-2.bin"]
    assert [size for _, _, size in entry.parts] == [3 << 20, 3 << 20, 2 << 20]
    with fs.open("run/m-2.bin") as file:
        for at, size in (
            (0, 10),
            (3 << 20, 1),
            ((3 << 20) - 5, 10),
            (4_999_990, 3 << 20),
            (8 << 20, 5),
        ):
            file.seek(at)
            assert file.read(size) == bytes(data[at : at + size])
    assert fs.cat_file("run/m-2.bin", start=100, end=200) == bytes(data[100:200])


def test_several_processes_change_the_files_at_once(fs: LastgoodFileSystem, tmp_path: Path) -> None:
    code = (
        "import sys; from lastgood.fs import LastgoodFileSystem\n"
        "fs = LastgoodFileSystem()\n"
        "for i in range(5):\n"
        "    with fs.open(f'run/{sys.argv[1]}/{i}', 'wb') as file: file.write(sys.argv[1].encode() * 9)\n"
    )
    env = children.environment(LASTGOOD_STORE=os.environ["LASTGOOD_STORE"])
    started = [subprocess.Popen([sys.executable, "-c", code, name], env=env) for name in "abc"]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert fs.find("run") == [f"run/{name}/{i}" for name in "abc" for i in range(5)]
    assert all(fs.cat(path) == path[4].encode() * 9 for path in fs.find("run"))


def test_stock_dcp_saves_over_an_id_and_loads(fs: LastgoodFileSystem) -> None:
    for value in (1.0, 2.0):
        dcp.save({"w": torch.full((3,), value), "n": value}, checkpoint_id="lastgood://run/step-3")
        found: dict[str, Any] = {"w": torch.zeros(3), "n": 0}
        dcp.load(found, checkpoint_id="lastgood://run/step-3")
        assert found["w"].tolist() == [value] * 3 and found["n"] == value
    with lg.open(None, {}, run="run") as run:
        assert [c.step for c in run.history()] == [3, 3]
    # What is not committed is not there.
    put(fs, "run/step-4/__0_0.distcp", b"alone")
    assert not fs.exists("run/step-4")


def test_a_run_of_another_kind_is_refused(fs: LastgoodFileSystem, tmp_path: Path) -> None:
    lg.torch.save({"x": 1}, lg.torch.Writer(tmp_path, run="dcp"), checkpoint_id=1)
    with pytest.raises(lg.Incompatible, match="a run of their own"):
        fs.ls("dcp")


def test_lightning_keeps_its_checkpoints_in_a_run(fs: LastgoodFileSystem, tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.layer(batch[0]).pow(2).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(8, 4)), batch_size=2
    )
    keep = ModelCheckpoint(
        dirpath="lastgood://pl", save_top_k=1, every_n_train_steps=2, save_last=True
    )
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    model = Model()
    pl.Trainer(max_steps=4, callbacks=[keep], **quiet).fit(model, data)
    names = fs.find("pl")
    assert names == ["pl/epoch=0-step=4.ckpt", "pl/last.ckpt"], names
    again = pl.Trainer(max_steps=6, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    again.fit(Model(), data, ckpt_path="lastgood://pl/last.ckpt", weights_only=False)
    assert again.global_step == 6
    assert not any(Path(p).name.endswith(".ckpt") for p in tmp_path.rglob("*"))


@pytest.mark.skipif(
    os.environ.get("LASTGOOD_INSTALLED") != "1",
    reason="needs lastgood installed from its wheel: LASTGOOD_INSTALLED=1 says that it is",
)
def test_the_installed_package_alone_is_enough(tmp_path: Path) -> None:
    assert importlib.metadata.version("lastgood") == lg.__version__
    code = (
        "import warnings, torch, torch.distributed.checkpoint as dcp; warnings.simplefilter('ignore')\n"
        "dcp.save({'w': torch.ones(3)}, checkpoint_id='lastgood://run/step-3')\n"
        "found = {'w': torch.zeros(3)}\n"
        "dcp.load(found, checkpoint_id='lastgood://run/step-3')\n"
        "print(found['w'].tolist())\n"
    )
    check_prints(code, "[1.0, 1.0, 1.0]", tmp_path, {})


def test_the_entry_point_alone_is_enough(tmp_path: Path) -> None:
    """The same for files, with the metadata that pyproject.toml gives a wheel, in a folder of its own."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    group = '[project.entry-points."fsspec.specs"]\n'
    assert group in project
    line = project.split(group)[1].splitlines()[0].replace('"', "")
    info = tmp_path / "site" / f"lastgood-{lg.__version__}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: lastgood\nVersion: {lg.__version__}\n"
    )
    (info / "entry_points.txt").write_text(f"[fsspec.specs]\n{line}\n")
    packages = [str(tmp_path / "site"), children.PACKAGES]
    code = (
        "import fsspec\n"
        "with fsspec.open('lastgood://run/note.txt', 'w') as file: file.write('written')\n"
        "print(fsspec.open('lastgood://run/note.txt', 'r').open().read())\n"
    )
    check_prints(code, "written", tmp_path, {"PYTHONPATH": os.pathsep.join(packages)})


def check_prints(code: str, expected: str, folder: Path, env: dict[str, str]) -> None:
    """Runs a program in an interpreter that has imported nothing."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env, "LASTGOOD_STORE": str(folder / "store")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.strip() == expected, run.stdout + run.stderr


def test_each_checkpoint_is_recorded_and_a_replay_is_refused(
    fs: LastgoodFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(fs, "lastgood://run/note-1.txt", b"no checkpoint")
    dcp.save({"w": torch.ones(3)}, checkpoint_id="lastgood://run/step-3")
    events = children.events(tmp_path, "run")
    (step,) = [event for event in events if event["kind"] == "step"]
    size = fs.du("lastgood://run/step-3")
    told = {"checkpoint": "step-3/.metadata", "files": 2, "bytes": size}
    assert (step["step"], step["event"]) == (3, told)
    assert [event["kind"] for event in events].count("environment") == 1
    monkeypatch.setenv("LASTGOOD_REPLAY", children.replay_of(tmp_path, "run"))
    with pytest.raises(lg.Invalid, match="by lastgood://, which records its saves"):
        put(fs, "lastgood://run/note-2.txt", b"of a replay")
    assert not fs.exists("lastgood://run/note-2.txt")
