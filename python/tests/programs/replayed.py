"""A small training, on which the tests of replays plant faults: ``PLANT="FAULT=STEP …" replayed.py STORE STEPS``."""

from __future__ import annotations

import os
import signal
import sys

import lastgood as lg
import numpy
import torch
from torch import nn

BATCH = 16
SIZE = 96


def main() -> None:
    store, steps = sys.argv[1], int(sys.argv[2])
    plant = dict(fault.split("=") for fault in os.environ.get("PLANT", "").split())

    def due(fault: str, step: int) -> bool:
        return plant.get(fault) == str(step)

    torch.manual_seed(0)
    torch.set_num_threads(int(plant.get("threads", 1)))
    if "version" in plant:
        numpy.__version__ = "9.9"
    # A sum of many numbers, which several threads add up in another order.
    many = torch.randn(1 << 20, generator=torch.Generator().manual_seed(2))
    data = torch.randn(SIZE, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(SIZE) % 4
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = lg.data.loader(lg.data.Sampler(SIZE, seed=3, batch_size=BATCH))
    state = {"model": model, "optimizer": optimizer, "batches": batches}
    every = int(plant.get("digest_every", 0))
    run = lg.open(
        store,
        state,
        run="small",
        policy=lg.Policy(steps=int(plant.get("save_every", 8))),
        # What it is killed behind is in the record.
        journal={"digest_every": every, "wait": "kill" in plant},
    )
    step = run.restore()
    while step < steps:
        for batch in batches:
            step += 1
            if due("note", step):
                run.event("note", step)
            rows = torch.tensor([int(index) for index in batch])
            if due("batch", step):
                rows = (rows + 1) % SIZE
            rate = run.read_external("rate", 0.02 if "rate" in plant else 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate * 2 if due("lr", step) else rate
            scale = many.sum() / (500 + ("version" in plant))
            loss = nn.functional.cross_entropy(model(data[rows] * scale), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if due("flip", step):
                model[0].weight.data.view(torch.int32)[3, 5] ^= 1 << 20
            if due("draw", step):
                torch.rand(1)
            run.step(step, loss=loss)
            if due("kill", step):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == steps:
                break
    run.close()


if __name__ == "__main__":
    main()
