"""Learns handwritten digits with Lightning, and goes on from the last good checkpoint, in the middle of an epoch.

    lastgood run --store /tmp/pl/store --run digits -- python examples/train_lightning.py --out /tmp/pl/out --kill-at 50

The digits are those of scikit-learn. The digest that it ends with is the same, killed or not.
"""

import argparse
import hashlib
import os
import signal

# Sums over threads of another number are not the same bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lastgood as lg
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.datasets import load_digits
from torchdata.stateful_dataloader import StatefulDataLoader


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 64),
            torch.nn.BatchNorm1d(64),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(64, 10),
        )

    def training_step(self, batch, index):
        images, labels = batch
        noisy = images + 0.1 * torch.randn_like(images)
        return torch.nn.functional.cross_entropy(self.net(noisy), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=90)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KillAt(Callback):
    """Dies by SIGKILL after this step, in the first attempt."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_start(self, trainer, *_) -> None:
        print(f"begins at step {trainer.global_step}", flush=True)

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step and os.environ.get("LASTGOOD_ATTEMPT", "1") == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="where Lightning writes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()

    pl.seed_everything(7, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = torch.utils.data.TensorDataset(
        torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    )
    model = Digits()
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        devices=1,
        default_root_dir=arguments.out,
        callbacks=[
            KillAt(arguments.kill_at),
            lg.lightning.LastGood(),
            ModelCheckpoint(
                dirpath=os.path.join(arguments.out, "checkpoints"),
                every_n_train_steps=8,
                save_top_k=-1,
            ),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = lg.lightning.last_good()
    print("resumes" if last else "starts afresh", flush=True)
    # A loader with a state: Lightning saves it, and the epoch goes on where it was.
    trainer.fit(model, StatefulDataLoader(data, batch_size=64, shuffle=True), ckpt_path=last)

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    print(f"digest {digest.hexdigest()} after step {trainer.global_step}", flush=True)


if __name__ == "__main__":
    main()
