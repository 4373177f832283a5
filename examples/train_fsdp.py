"""A classifier of scikit-learn's digits, its parameters spread over ranks by FSDP2, any of which can be killed:

    lastgood run --store ./checkpoints --run default -- \\
        torchrun --nproc-per-node 2 examples/train_fsdp.py --store ./checkpoints
"""

from __future__ import annotations

import argparse
import hashlib
import time

import lastgood as lg
import sklearn.datasets
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

BATCH = 64


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--store")
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--save-every", type=int, default=10)
    arguments.add_argument("--pause", type=float, default=0.0, help="seconds after each step")
    asked = arguments.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)

    # These lines make it recoverable. Each rank saves its own part, and none waits for another.
    state = {"model": model, "optimizer": optimizer}
    run = lg.open(asked.store, state, policy=lg.Policy(steps=asked.save_every))
    start = run.restore()
    for step in range(start, asked.steps):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))
        batch = order[:BATCH][rank::ranks]
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(step + 1, loss=loss)
        time.sleep(asked.pause)
    run.close()

    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.full_tensor().detach().numpy().tobytes())
    if rank == 0:
        print(f"from step {start}: loss {loss:.3f}, digest {digest.hexdigest()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
