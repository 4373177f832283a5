"""Data-parallel training that has the same bits on 4, 2 or 1 processes, any of which can be killed:

    lastgood run --store ./checkpoints --run default --ranks 4 -- \\
        python examples/train_ddp_ordered.py --store ./checkpoints

Four logical ranks have a part of each batch, a loss and gradients of their own, and all sums are in their order; each
process holds some of them. So what four processes did can be proven on one, by ``lastgood prove … --ranks 1 -- …``.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time

import lastgood as lg
import numpy
import sklearn.datasets
import torch
import torch.distributed as dist
from torch import nn

LOGICAL = 4
BATCH = 16


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--store")
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--save-every", type=int, default=10)
    arguments.add_argument("--pause", type=float, default=0.0, help="seconds after each step")
    asked = arguments.parse_args()

    dist.init_process_group("gloo")
    # What is recorded of a step are all of them: the same on every process, however many there are.
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
    torch.set_num_threads(1)
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    logical = lg.torch.LogicalRanks(LOGICAL)

    # These lines make it recoverable, and record each step for every logical rank.
    state = {"model": model, "optimizer": optimizer}
    policy = lg.Policy(steps=asked.save_every)
    journal = {"logical": (logical.mine.start, logical.mine.stop)}
    run = lg.open(asked.store, state, policy=policy, journal=journal)
    start = run.restore()
    for step in range(start, asked.steps):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
        parts = order[: LOGICAL * BATCH].chunk(LOGICAL)
        losses, grads = [], []
        for rank in logical.mine:
            # What dropout draws belongs to the logical rank too, wherever it is.
            with torch.random.fork_rng():
                torch.manual_seed(step * LOGICAL + rank)
                output = model(images[parts[rank]])
            loss = nn.functional.cross_entropy(output, labels[parts[rank]])
            grads.append(torch.autograd.grad(loss, list(model.parameters())))
            losses.append(loss)
        lg.torch.ordered_all_reduce_grads(model, grads, logical=logical)
        optimizer.step()
        mean = lg.torch.ordered_all_reduce(losses, logical=logical, op="mean")
        run.step(step + 1, loss=mean)
        time.sleep(asked.pause)
    run.close()

    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    if dist.get_rank() == 0:
        print(f"from step {start}: loss {mean:.3f}, digest {digest.hexdigest()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
