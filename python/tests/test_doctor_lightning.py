"""`lastgood doctor` and `lastgood import` on Lightning's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from doctor_reports import Report, assert_same_bytes, flat, flip, imported


def optimizer_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in the list of optimizers of a Lightning checkpoint, by their paths."""
    optimizers = torch.load(path, weights_only=False)["optimizer_states"]
    return flat("optimizer_states", dict(enumerate(optimizers)), {})


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
