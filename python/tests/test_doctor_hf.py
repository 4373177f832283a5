"""`lastgood doctor` and `lastgood import` on what Hugging Face's libraries write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from doctor_reports import Report, assert_same_bytes, flip, imported, state


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


def test_shards_in_a_checkpoint_of_the_trainer(hf: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def checkpoint(name: str) -> Path:
        """What a model that is larger than a shard leaves."""
        path = tmp_path / name / "checkpoint-6"
        shutil.copytree(hf[0] / "checkpoint-6", path)
        (path / "model.safetensors").unlink()
        for file in (hf[0].parent / "sharded").glob("model*"):
            shutil.copy(file, path)
        return path

    index = "model.safetensors.index.json"
    assert Report(checkpoint("whole")).verdict("checkpoint-6") == "trusted"
    # P5: a shard that the index names is gone.
    path = checkpoint("shard")
    next(path.glob("model-00002-of-*")).unlink()
    assert Report(path).kinds("checkpoint-6") == {"missing-shard"}
    # Killed before the index, which is written last.
    path = checkpoint("index")
    (path / index).unlink()
    report = Report(path)
    assert (report.verdict("checkpoint-6"), report.kinds("checkpoint-6")) == ("broken", {"missing"})
    next(path.glob("model-00003-of-*")).unlink()
    assert Report(path).verdict("checkpoint-6") == "broken"
    # Of an older save into the same folder; from_pretrained takes it before the shards.
    path = checkpoint("both")
    save_file({"x": torch.ones(3)}, path / "model.safetensors")
    assert Report(path).kinds("checkpoint-6") == {"leftover"}
    # A machine that died before the file was written out.
    path = checkpoint("config")
    (path / "config.json").write_bytes(b"")
    assert Report(path).kinds("checkpoint-6") == {"empty"}


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


def test_an_import_of_shards_has_every_byte(hf: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch

    sharded = hf[0].parent / "sharded"
    said, tensors = imported(sharded, tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for shard in sharded.glob("*.safetensors"):
        expected.update(load_torch(shard))
    assert_same_bytes(expected, tensors)  # type: ignore[arg-type]
    assert said["left_out"] == ["config.json (a file beside it)"]
