"""The blocks of Python in the guides run, in the order in which they stand there."""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

GUIDES = Path(__file__).parents[2] / "docs/guides"


def blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (GUIDES / page).read_text(), re.MULTILINE | re.DOTALL
    )


def run(page: str, names: dict[str, Any]) -> dict[str, Any]:
    """What the blocks of ``page`` leave, begun with ``names``."""
    found = blocks(page)
    assert len(found) >= 3, page
    for number, block in enumerate(found):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(block, f"{page}, block {number}", "exec"), names)
    return names


def test_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LASTGOOD_STORE", "")
    small = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=2,
    )
    texts = [
        {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(64)
    ]
    names: dict[str, Any] = {"classifier": BertForSequenceClassification(small), "texts": texts}
    names |= lightning_parts()
    left = run("pytorch.md", names)
    assert left["step"] == 24 and left["trainer"].global_step == 8
    assert torch.isfinite(left["loss"])
    assert "[16, 8]" in capsys.readouterr().out.replace(
        "weight has shape [32, 8], in the checkpoint", ""
    )
    assert (tmp_path / "out/_lastgood").is_dir() and (tmp_path / "files").is_dir()


def lightning_parts() -> dict[str, Any]:
    import lightning.pytorch as pl
    import torch

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.DataLoader(torch.randn(64, 4), batch_size=8)
    return {"module": Module(), "batches": data}


def test_jax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    left = run("jax.md", {})
    assert left["step"] == 30 and left["manager"] is not None
    import numpy as np

    for name in ("w", "b"):
        assert (
            np.asarray(left["restored"][name]).tobytes()
            == np.asarray(left["state"]["params"][name]).tobytes()
        )
