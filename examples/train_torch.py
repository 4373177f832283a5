"""A classifier of scikit-learn's digits in one process, which can be killed at any moment:

lastgood run --store ./checkpoints --run default -- python examples/train_torch.py --store ./checkpoints
"""

from __future__ import annotations

import argparse
import hashlib
import time

import lastgood as lg
import sklearn.datasets
import torch
from torch import nn

BATCH = 64


class Batches:
    """Shuffled batches without an end. Its state is where it stands."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch, self.position = 0, 0

    def __next__(self) -> torch.Tensor:
        if self.position + BATCH > self.size:
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch))
        self.position += BATCH
        return order[self.position - BATCH : self.position]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--store")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--save-every", type=int, default=10)
    arguments.add_argument("--pause", type=float, default=0.0, help="seconds after each step")
    asked = arguments.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=asked.steps + 1)
    batches = Batches(len(images))

    # These lines make it recoverable; the generators of python, numpy and torch are saved too.
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "batches": batches}
    run = lg.open(asked.store, state, policy=lg.Policy(steps=asked.save_every))
    start = run.restore()
    for step in range(start, asked.steps):
        batch = next(batches)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.step(step + 1, loss=loss)
        time.sleep(asked.pause)
    run.close()

    model.eval()
    right = (model(images).argmax(1) == labels).float().mean().item()
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    print(f"from step {start}: {right:.1%} right, digest {digest.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
