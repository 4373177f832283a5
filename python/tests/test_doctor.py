"""`lastgood doctor` and `lastgood import` on what the real frameworks write, whole and damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from children import PROGRAMS
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]


def command() -> list[str]:
    """How the command is run: the built binary, or the module's entry point."""
    named = os.environ.get("LASTGOOD_BIN")
    if named:
        return [named]
    if "LASTGOOD_INSTALLED" in os.environ:
        return [sys.executable, "-m", "lastgood"]
    built = ROOT / "target" / "debug" / "lastgood"
    return [str(built)] if built.exists() else [sys.executable, "-m", "lastgood"]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command without a store in its environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("LASTGOOD_STORE", "LASTGOOD_RUN")}
    args_ = [*command(), *map(str, args)]
    return subprocess.run(args_, capture_output=True, text=True, env=env, timeout=120)


class Report:
    """What doctor says about a path: each checkpoint by its name, and the folders."""

    def __init__(self, path: Path, *args: str) -> None:
        self.ran = run("doctor", path, "--json", *args)
        lines = [json.loads(line) for line in self.ran.stdout.splitlines()]
        assert lines, self.ran.stderr
        self.checkpoints = {Path(x["checkpoint"]).name: x for x in lines if "checkpoint" in x}
        self.folders = [x for x in lines if "stock" in x]
        assert self.ran.returncode == (0 if lines[-1]["ok"] else 3), self.ran.stderr

    def verdict(self, name: str) -> str:
        return str(self.checkpoints[name]["verdict"])

    def kinds(self, name: str) -> set[str]:
        """The kinds of findings that are worse than a note."""
        findings = self.checkpoints[name]["findings"]
        return {x["kind"] for x in findings if x["severity"] != "note"}

    @property
    def last(self) -> str | None:
        [folder] = self.folders
        return Path(folder["last_trusted"]).name if folder["last_trusted"] else None

    @property
    def stock(self) -> tuple[str | None, str]:
        [folder] = self.folders
        takes = folder["stock"]["takes"]
        return (Path(takes).name if takes else None, folder["stock"]["outcome"])


def flip(path: Path, needle: bytes, at: int = 0) -> None:
    """Flips one bit of the bytes `needle` in a file."""
    data = bytearray(path.read_bytes())
    begin = data.find(needle)
    assert begin >= 0
    data[begin + at] ^= 1
    path.write_bytes(data)


def same_age(path: Path) -> None:
    """What was copied or damaged gets the age of its commit, so that ages tell nothing."""
    for file in path.rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))


def state(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


# --- torch.save -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, optimizer = state(0)
    path = tmp_path_factory.mktemp("torch") / "model.pt"
    weight = model[0].weight.detach()  # type: ignore[index]
    extra = {
        "bf16": torch.randn(3).bfloat16(),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "complex": torch.randn(2, dtype=torch.complex64),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "transposed": weight.t(),
        "slice": torch.arange(10)[3:7],
        "columns": torch.arange(12.0).reshape(3, 4)[:, 1:3],
        "empty": torch.zeros(0, 3),
        "tied": weight,
        "rng": torch.get_rng_state(),
    }
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": extra}
    torch.save({**saved, "step": 3, "name": "x", "lrs": (0.1, 0.2)}, path)
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


# --- DCP ------------------------------------------------------------------------------------


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


# --- Hugging Face ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[Path], Any]]:
    """Checkpoints 2, 4 and 6 of a tiny model, and how a new Trainer resumes from a folder."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 16

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {"input_ids": torch.arange(8) + i % 8, "labels": torch.tensor(i % 2)}

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, intermediate_size=16, max_position_embeddings=16, **sizes)

    def trainer(path: Path, steps: int) -> Any:
        args = TrainingArguments(
            str(path), max_steps=steps, save_steps=2, per_device_train_batch_size=2,
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return Trainer(BertForSequenceClassification(config), args, train_dataset=Data())

    root = tmp_path_factory.mktemp("hf") / "out"
    trainer(root, 6).train()
    trainer(root, 6).model.save_pretrained(root.parent / "sharded", max_shard_size="6KB")
    return root, lambda path: trainer(path, 7).train(resume_from_checkpoint=True)


def hf_copy(hf: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(hf[0], tmp_path / "out")
    return tmp_path / "out"


def test_checkpoints_of_the_trainer_are_trusted(hf: tuple[Path, Any]) -> None:
    report = Report(hf[0])
    verdicts = {name: report.verdict(name) for name in report.checkpoints}
    assert verdicts == dict.fromkeys(["checkpoint-2", "checkpoint-4", "checkpoint-6"], "trusted")
    assert report.last == "checkpoint-6"
    assert report.stock == ("checkpoint-6", "it resumes")


def test_the_weights_of_the_end_do_not_hide_the_checkpoints_below(
    hf: tuple[Path, Any], tmp_path: Path
) -> None:
    out = hf_copy(hf, tmp_path)
    for name in ("model.safetensors", "trainer_state.json", "training_args.bin"):
        shutil.copy(out / "checkpoint-6" / name, out / name)
    (out / "checkpoint-6" / "optimizer.pt").write_bytes(b"")
    report = Report(out)
    assert report.verdict("out") == "trusted"
    assert report.kinds("checkpoint-6") == {"empty"}
    last = {x["format"]: x["last_trusted_step"] for x in report.folders}
    assert last == {"safetensors": None, "hf-trainer": 4}


def test_a_partial_highest_checkpoint_is_broken_and_an_older_one_named(
    hf: tuple[Path, Any], tmp_path: Path
) -> None:
    # P8: killed after the weights, before the state.
    out = hf_copy(hf, tmp_path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (out / "checkpoint-6" / name).unlink()
    with pytest.raises(FileNotFoundError):
        hf[1](out)
    report = Report(out)
    assert report.verdict("checkpoint-6") == "broken"
    assert report.last == "checkpoint-4"
    taken, outcome = report.stock
    assert taken == "checkpoint-6"
    assert "checkpoint-4 is never tried" in outcome


def test_a_missing_optimizer_is_doubted_where_the_trainer_says_nothing(
    hf: tuple[Path, Any], tmp_path: Path
) -> None:
    out = hf_copy(hf, tmp_path)
    (out / "checkpoint-6" / "optimizer.pt").unlink()
    hf[1](out)
    shutil.rmtree(out / "checkpoint-7", ignore_errors=True)
    report = Report(out)
    assert report.verdict("checkpoint-6") == "suspect"
    assert report.kinds("checkpoint-6") == {"state-missing"}
    assert report.last == "checkpoint-4"
    assert "says nothing" in report.stock[1]


def test_marks_steps_and_sizes_that_do_not_fit(hf: tuple[Path, Any], tmp_path: Path) -> None:
    out = hf_copy(hf, tmp_path)
    (out / "checkpoint-6" / "checkpoint-is-incomplete.txt").write_text("")
    weights = out / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    # An optimizer of another save.
    shutil.copy(out / "checkpoint-6" / "optimizer.pt", out / "checkpoint-2" / "optimizer.pt")
    report = Report(out)
    assert report.kinds("checkpoint-6") == {"incomplete"}
    assert report.kinds("checkpoint-4") == {"unreadable"}
    assert report.kinds("checkpoint-2") == {"optimizer-step"}
    assert [report.verdict(f"checkpoint-{n}") for n in (2, 4, 6)] == ["suspect", "broken", "broken"]
    assert report.last is None


def test_shards_and_their_index(hf: tuple[Path, Any], tmp_path: Path) -> None:
    whole = hf[0].parent / "sharded"
    assert Report(whole).verdict("sharded") == "trusted"
    shutil.copytree(whole, tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) == 3
    kept = shards[1].read_bytes()
    shards[1].unlink()
    assert Report(tmp_path).kinds("sharded") == {"missing-shard"}
    # A shard in another's place: of what the formats tell, tensors that are elsewhere.
    shards[1].write_bytes(shards[0].read_bytes())
    assert {"missing-tensor", "torn"} <= Report(tmp_path).kinds("sharded")
    shards[1].write_bytes(kept)
    assert Report(tmp_path).verdict("sharded") == "trusted"


def test_shards_of_dcps_hugging_face_writer_have_no_mark(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(str(tmp_path / "w"), save_distributed=True)
    dcp.save({"w": torch.arange(8.0)}, storage_writer=writer, no_dist=True)
    report = Report(tmp_path / "w")
    assert (report.verdict("w"), report.kinds("w")) == ("suspect", {"no-commit-mark"})
    # P5: the first of two shards is gone, and the second one begins where it would end.
    [shard] = (tmp_path / "w").glob("*.safetensors")
    data = shard.read_bytes()
    text = b'\\"saved_offsets\\": [0]'
    assert data.count(text) == 1
    shard.write_bytes(data.replace(text, b'\\"saved_offsets\\": [8]'))
    shard.rename(shard.with_name(shard.name.replace("shard-00001", "shard-00002")))
    report = Report(tmp_path / "w")
    assert {"missing-shard", "coverage"} <= report.kinds("w")
    assert report.verdict("w") == "broken"


def test_a_state_of_accelerate(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model, optimizer = state(0)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, optimizer)
    accelerator.save_state(str(tmp_path / "state_5"))
    report = Report(tmp_path)
    assert report.verdict("state_5") == "trusted", report.ran.stdout
    assert report.checkpoints["state_5"]["step"] == 5
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    flip(tmp_path / "state_5" / "optimizer.bin", moment.numpy().tobytes())
    assert Report(tmp_path).kinds("state_5") == {"checksum"}


# --- Lightning ------------------------------------------------------------------------------


def test_checkpoints_of_lightning(tmp_path: Path) -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    out = tmp_path / "out"
    data = torch.utils.data.TensorDataset(torch.randn(16, 4))
    trainer = lightning.Trainer(
        max_epochs=2, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ModelCheckpoint(out, save_top_k=-1, save_last=True)],
    )  # fmt: skip
    trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=4))
    weights = tmp_path / "weights" / "weights.ckpt"
    trainer.save_checkpoint(weights, weights_only=True)
    report = Report(out)
    assert {x["format"] for x in report.checkpoints.values()} == {"lightning"}
    assert {name: x["step"] for name, x in report.checkpoints.items()} == {
        "epoch=0-step=4.ckpt": 4, "epoch=1-step=8.ckpt": 8, "last.ckpt": 8,
    }  # fmt: skip
    assert all(x["verdict"] == "trusted" for x in report.checkpoints.values())
    assert report.stock == ("last.ckpt", "it resumes")
    said, tensors = imported(out / "last.ckpt", tmp_path)
    expected = flat("", torch.load(out / "last.ckpt", weights_only=False), {})
    expected.update(optimizer_tensors(out / "last.ckpt"))
    assert_same_bytes(expected, tensors)  # type: ignore[arg-type]
    assert bytes(said["values"]["global_step"]) == b"8"
    assert Report(weights.parent).kinds("weights.ckpt") == {"state-missing"}
    # P1 and a cut.
    saved = torch.load(out / "last.ckpt", weights_only=False)["state_dict"]["layer.weight"]
    flip(out / "last.ckpt", saved.numpy().tobytes())
    cut = out / "epoch=1-step=8.ckpt"
    cut.write_bytes(cut.read_bytes()[:-100])
    report = Report(out)
    assert report.kinds("last.ckpt") == {"checksum"}
    assert report.verdict(cut.name) == "broken"
    assert report.last == "epoch=0-step=4.ckpt"
    assert report.stock[0] == "last.ckpt"


# --- Orbax ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orbax_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("orbax")
    program = [sys.executable, str(PROGRAMS / "doctor_orbax.py"), str(root)]
    code, output = forks.run("jax", program, tmp_path_factory.mktemp("output") / "orbax")
    assert code == 0, output
    return root


def largest(path: Path) -> Path:
    return max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("layout", ["tree", "files", "zarr3"])
def test_checkpoints_of_orbax(orbax_root: Path, tmp_path: Path, layout: str) -> None:
    shutil.copytree(orbax_root / layout, tmp_path / layout)
    root = tmp_path / layout
    report = Report(root)
    assert {name: report.verdict(name) for name in report.checkpoints} == {
        "1": "trusted", "2": "trusted", "3": "trusted",
    }, report.ran.stdout  # fmt: skip
    assert report.stock == ("3", "it resumes")
    (root / "3").rename(root / "3.orbax-checkpoint-tmp")
    data = largest(root / "2")
    # The end of a tree's file holds nodes that nothing names any more.
    data.write_bytes(data.read_bytes()[:-1000])
    report = Report(root)
    assert report.kinds("3.orbax-checkpoint-tmp") == {"uncommitted"}
    assert report.verdict("2") == "broken"
    assert report.last == "1"
    assert report.stock[0] == "2"


def test_missing_files_of_orbax(orbax_root: Path, tmp_path: Path) -> None:
    for name in ("tree", "files"):
        shutil.copytree(orbax_root / name / "3", tmp_path / name / "3")
    largest(tmp_path / "tree" / "3").unlink()
    report = Report(tmp_path / "tree")
    assert "truncated" in report.kinds("3")
    largest(tmp_path / "files" / "3").unlink()
    report = Report(tmp_path / "files")
    assert report.kinds("3") == {"missing-chunk"}
    shutil.copytree(orbax_root / "tree" / "3", tmp_path / "table" / "3")
    manifest = tmp_path / "table" / "3" / "default" / "manifest.ocdbt"
    data = bytearray(manifest.read_bytes())
    for at in range(len(data)):
        data[at] ^= 1
        manifest.write_bytes(data)
        data[at] ^= 1
        if at % 16 == 0:
            assert Report(tmp_path / "table").verdict("3") == "broken", at
    # Without the table, and without anything.
    manifest.unlink()
    assert Report(tmp_path / "table").verdict("3") == "broken"
    shutil.rmtree(manifest.parent)
    manifest.parent.mkdir()
    assert Report(tmp_path / "table").kinds("3") == {"missing"}


# --- DeepSpeed and Megatron, laid out as their documentation says -----------------------------


def deepspeed(root: Path, step: int) -> None:
    folder = root / f"global_step{step}"
    folder.mkdir(parents=True)
    model = {"module": {"w": torch.ones(4)}, "global_steps": step}
    world = {"dp_world_size": 2, "mp_world_size": 1}
    torch.save({**model, **world}, folder / "mp_rank_00_model_states.pt")
    for rank in range(2):
        shard = {"optimizer_state_dict": {"fp32": torch.full((2,), float(rank))}}
        torch.save(shard, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (root / "latest").write_text(f"global_step{step}")


def test_checkpoints_of_deepspeed(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        deepspeed(tmp_path, step)
    report = Report(tmp_path)
    assert report.ran.returncode == 0, report.ran.stdout
    assert report.stock == ("global_step30", "it resumes")
    (tmp_path / "global_step30" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    report = Report(tmp_path)
    assert report.kinds("global_step30") == {"missing-shard"}
    assert report.last == "global_step20"
    [folder] = report.folders
    assert [x["kind"] for x in folder["findings"]] == ["stale-tracker"]
    for text in ("", "global_step40", "global_step10"):
        (tmp_path / "latest").write_text(text)
        [folder] = Report(tmp_path).folders
        assert [x["kind"] for x in folder["findings"]] == ["stale-tracker"], text
    (tmp_path / "latest").unlink()
    [folder] = Report(tmp_path).folders
    assert [x["kind"] for x in folder["findings"]] == ["missing-tracker"]
    assert "fresh weights" in folder["stock"]["outcome"]


def test_checkpoints_of_megatron(dcp_root: Path, tmp_path: Path) -> None:
    import argparse

    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    args = argparse.Namespace(**sizes, **{f"option_{n}": n for n in range(300)})
    for step in (100, 200):
        for rank in range(2):
            folder = tmp_path / f"iter_{step:07d}" / f"mp_rank_{rank:02d}"
            folder.mkdir(parents=True)
            saved = {"args": args, "iteration": step, "model": {"w": torch.ones(4)}}
            torch.save(saved, folder / "model_optim_rng.pt")
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("200")
    report = Report(tmp_path)
    assert report.ran.returncode == 0, report.ran.stdout
    shutil.rmtree(tmp_path / "iter_0000200" / "mp_rank_01")
    report = Report(tmp_path)
    assert report.kinds("iter_0000200") == {"missing-shard"}
    assert report.last == "iter_0000100"
    for text, outcome in (("", "it stops"), ("300", "it fails"), ("x", "it stops")):
        tracker.write_text(text)
        [folder] = Report(tmp_path).folders
        assert [x["kind"] for x in folder["findings"]] == ["stale-tracker"], text
        assert folder["stock"]["outcome"].startswith(outcome), text
    # A distributed one: DCP below, and what all ranks have in common.
    new = tmp_path / "iter_0000300"
    shutil.copytree(dcp_root / "step-1", new)
    same_age(new)
    tracker.write_text("300")
    assert Report(tmp_path).kinds("iter_0000300") == {"missing"}
    (new / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    torch.save({"args": args, "iteration": 300}, new / "common.pt")
    assert Report(tmp_path).verdict("iter_0000300") == "trusted"


# --- What is no checkpoint ------------------------------------------------------------------


def test_what_is_no_checkpoint_is_said_with_the_codes_of_the_command(tmp_path: Path) -> None:
    assert run("doctor", tmp_path / "nowhere").returncode == 4
    (tmp_path / "notes.txt").write_text("years")
    ran = run("doctor", tmp_path)
    assert ran.returncode == 4
    assert "holds no checkpoint" in ran.stderr


# --- import ---------------------------------------------------------------------------------


def imported(path: Path, tmp_path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What the import says, and the tensors that an export of it has."""
    where = ("--store", tmp_path / "store", "--run", "r")
    ran = run("import", path, *where, "--step", "7", "--json")
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "export"
    exported = run("export", *where, "--to", out)
    assert exported.returncode == 0, exported.stderr
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(out / "model.safetensors")
    blobs = out / "model.blobs.safetensors"
    values = load_file(blobs) if blobs.exists() else {}
    return {**json.loads(ran.stdout), "values": values}, tensors


def flat(path: str, value: Any, into: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        into[path] = value
    elif isinstance(value, dict):
        for key, inner in value.items():
            flat(f"{path}.{key}" if path else str(key), inner, into)
    return into


def optimizer_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in the list of optimizers of a Lightning checkpoint, by their paths."""
    optimizers = torch.load(path, weights_only=False)["optimizer_states"]
    return flat("optimizer_states", dict(enumerate(optimizers)), {})


def assert_same_bytes(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        other = found[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        one, two = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other))
        assert torch.equal(one, two), name


def test_an_import_of_torch_save_has_every_byte(torch_file: Path, tmp_path: Path) -> None:
    said, tensors = imported(torch_file, tmp_path)
    expected = flat("", torch.load(torch_file), {})
    assert_same_bytes(expected, tensors)  # type: ignore[arg-type]
    values = {name: json.loads(bytes(value)) for name, value in said["values"].items()}
    assert (values["step"], values["name"], values["lrs"]) == (3, "x", [0.1, 0.2])
    assert values["optimizer.param_groups.0.betas"] == [0.9, 0.999]
    assert said["left_out"] == ["model (attributes of an OrderedDict)"]


def test_an_import_of_shards_has_every_byte(hf: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch

    sharded = hf[0].parent / "sharded"
    said, tensors = imported(sharded, tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for shard in sharded.glob("*.safetensors"):
        expected.update(load_torch(shard))
    assert_same_bytes(expected, tensors)  # type: ignore[arg-type]
    assert said["left_out"] == ["config.json (a file beside it)"]


def test_an_import_of_dcp_has_every_byte_of_all_ranks(dcp_root: Path, tmp_path: Path) -> None:
    said, tensors = imported(dcp_root / "step-1", tmp_path)
    target = {"rows": torch.zeros(8, 4), "columns": torch.zeros(4, 8), "plain": torch.zeros(5)}
    dcp.load(target, checkpoint_id=dcp_root / "step-1", no_dist=True)
    assert target["columns"].unique().numel() == 32
    assert_same_bytes(target, tensors)  # type: ignore[arg-type]
    assert bytes(said["values"]["step"]) == b"1"
    assert said["left_out"] == ["object (an object of collections.deque)"]


def test_nothing_damaged_is_imported(dcp_root: Path, torch_file: Path, tmp_path: Path) -> None:
    path = dcp_copy(dcp_root, "step-1", tmp_path)
    (path / "__2_0.distcp").unlink()
    flipped = tmp_path / "model.pt"
    shutil.copy(torch_file, flipped)
    flip(flipped, torch.load(torch_file)["model"]["0.weight"].numpy().tobytes())
    store = tmp_path / "store"
    for damaged in (path, flipped):
        ran = run("import", damaged, "--store", store, "--run", "r", "--step", "1")
        assert ran.returncode == 3, ran.stderr
        assert "lastgood doctor" in ran.stderr
    assert not store.exists()


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
