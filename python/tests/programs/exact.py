"""A training that uses everything that must be saved, for `test_bit_exact.py`; each step's digest is printed.

``exact.py STORE STEPS [resumed|slowly]``: trains to step STEPS, and restores if there is a checkpoint; ``resumed``
saves no other one, ``slowly`` leaves time to be killed after the save. Batch norm, dropout, embedding, AdamW, OneCycle,
an average of the weights, label smoothing, clipping, augmentation that draws from the generators of python, numpy and
torch, a shuffled loader with two worker processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import lastgood as lg
import numpy
import torch
from torch import nn

SAMPLES, BATCH, EPOCH = 160, 10, 16
SAVED_AT, STEPS = 21, 40
#: Everything that is saved, and so everything that a resume must not lack.
ITEMS = (
    "python generator",
    "numpy generator",
    "torch generator",
    "own generator",
    "loader",
    "parameters",
    "buffers",
    "optimizer",
    "scheduler",
    "average",
    "training flags",
    "frozen flags",
    "counters",
)


class Samples:
    """Pictures that are augmented in worker processes, by numbers that belong to the sample."""

    def __init__(self) -> None:
        draw = numpy.random.default_rng(0)
        self.x = draw.normal(size=(SAMPLES, 1, 6, 6)).astype("float32")
        self.words = draw.integers(0, 20, SAMPLES)
        self.y = draw.integers(0, 4, SAMPLES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        noise = random.gauss(0, 0.05) + numpy.random.normal(0, 0.05) + 0.05 * torch.randn(1).item()
        return self.x[index] + numpy.float32(noise), self.words[index], self.y[index]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.words = nn.Embedding(20, 8)
        self.fixed = nn.Dropout(0.1)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(4 * 36 + 8, 4)

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.conv(x))).flatten(1)
        return self.out(self.drop(torch.cat([x, self.fixed(self.words(words))], 1)))


class Training:
    """All the objects of one process."""

    def __init__(self) -> None:
        random.seed(1)
        numpy.random.seed(1)
        torch.manual_seed(1)
        self.model = Model()
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.02, total_steps=STEPS + 1
        )
        self.own = numpy.random.default_rng(5)
        self.counters = {"best": 99.0, "seen": 0}
        self.sampler = lg.data.Sampler(SAMPLES, seed=3, batch_size=BATCH)
        data = torch.utils.data.DataLoader(
            lg.data.seeded(Samples()),
            batch_sampler=self.sampler,
            num_workers=2,
            multiprocessing_context="fork",
        )
        self.loader = lg.data.loader(data)
        self.batches: Iterator[Any] | None = None
        self.state = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "own": self.own,
            "counters": self.counters,
            "loader": self.loader,
        }

    def batch(self) -> Any:
        while True:
            self.batches = self.batches or iter(self.loader)
            with contextlib.suppress(StopIteration):
                return next(self.batches)
            self.batches = None

    def step(self, step: int) -> str:
        if step == 10:
            self.model.fixed.eval()
            self.model.words.weight.requires_grad_(False)
        x, words, y = self.batch()
        x = x + 0.01 * random.random() + 0.01 * numpy.random.rand() + 0.01 * self.own.random()
        loss = nn.functional.cross_entropy(self.model(x.float(), words), y, label_smoothing=0.1)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.counters["best"] = min(self.counters["best"], loss.item())
        self.counters["seen"] += len(y)
        return self.digest()

    def digest(self) -> str:
        hashed = hashlib.blake2b(digest_size=16)
        for module in (self.model, self.average):
            for name, tensor in module.state_dict().items():
                hashed.update(name.encode() + tensor.numpy().tobytes())
        for values in self.optimizer.state.values():
            for tensor in values.values():
                hashed.update(tensor.numpy().tobytes())
        flags = [m.training for m in self.model.modules()]
        flags += [p.requires_grad for p in self.model.parameters()]
        hashed.update(repr((flags, self.counters, self.scheduler.get_last_lr())).encode())
        return hashed.hexdigest()

    def forget(self, item: str) -> None:
        """Makes ``item`` what it was in a fresh process, as if it had not been restored."""
        fresh = Training
        if item == "python generator":
            random.seed(1)
        elif item == "numpy generator":
            numpy.random.seed(1)
        elif item == "torch generator":
            torch.manual_seed(1)
        elif item == "own generator":
            self.own.bit_generator.state = numpy.random.default_rng(5).bit_generator.state
        elif item == "training flags":
            self.model.train()
        elif item == "frozen flags":
            self.model.requires_grad_(True)
        elif item == "counters":
            self.counters.update(best=99.0, seen=0)
        else:
            self._forget_object(item, fresh)

    def _forget_object(self, item: str, fresh: Any) -> None:
        states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        other = fresh()
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if item == "loader":
            self.loader.load_state_dict(other.loader.state_dict())
        elif item in ("parameters", "buffers"):
            wanted = dict(getattr(other.model, f"named_{item}")())
            with torch.no_grad():
                for name, tensor in getattr(self.model, f"named_{item}")():
                    tensor.copy_(wanted[name])
        elif item == "optimizer":
            self.optimizer.state.clear()
        elif item == "scheduler":
            self.scheduler.load_state_dict(other.scheduler.state_dict())
        elif item == "average":
            self.average.load_state_dict(other.average.state_dict())


def train(
    store: str, steps: int, dropped: str | None = None, save: bool = True, pause: float = 0
) -> dict[int, str]:
    training = Training()
    found = {}
    with lg.open(
        store, training.state, policy=lg.Policy(at=[SAVED_AT] if save else [10**9])
    ) as run:
        start = run.restore()
        if dropped is not None:
            training.forget(dropped)
        for step in range(start, steps):
            found[step + 1] = training.step(step + 1)
            run.step(step + 1)
            print(step + 1, found[step + 1], flush=True)
            time.sleep(pause if step >= SAVED_AT else 0)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    how = sys.argv[3:]
    train(sys.argv[1], int(sys.argv[2]), save="resumed" not in how, pause=0.03 * ("slowly" in how))
