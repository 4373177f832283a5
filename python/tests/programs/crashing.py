"""Trains numbers for some steps under ``lastgood run``, and ends by a signal in the first attempt.

``crashing.py STEPS CRASH [WORD…]``: it kills itself behind step CRASH, saving every second one. Words:

- ``torch``: a module and its optimizer are part of the state;
- ``twice``: it opens another run beside the first;
- ``damage``: in the second attempt it changes bytes of the memory that the first has left.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import warnings
from typing import Any

import lastgood as lg
import numpy as np

steps, crash, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
state: dict[str, Any] = {"x": np.zeros(1 << 20), "y": {"sum": 0}}
if "torch" in words:
    import torch

    torch.manual_seed(0)
    state["model"] = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(4)))
    state["optimizer"] = torch.optim.AdamW(state["model"].parameters())
if "damage" in words and restarts == "1":
    with open(os.environ["LASTGOOD_MEMORY"], "r+b", buffering=0) as memory:
        # The first segment begins behind 2 MiB.
        for at in range(2 << 20, 16 << 20, 1 << 18):
            was = os.pread(memory.fileno(), 1, at)
            os.pwrite(memory.fileno(), bytes([was[0] ^ 1]), at)


def train(step: int) -> None:
    state["x"] += np.random.default_rng(step).random(1 << 20)
    state["y"]["sum"] += step
    if "torch" in words:
        state["optimizer"].zero_grad()
        state["model"](torch.randn(8, 300)).square().sum().backward()
        state["optimizer"].step()


def digest() -> str:
    found = hashlib.sha256(state["x"].tobytes() + str(state["y"]["sum"]).encode())
    if "torch" in words:
        optimizer = state["optimizer"].state
        for parameter in state["model"].parameters():
            for tensor in (parameter, *optimizer[parameter].values()):
                found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


with lg.open(state=state, policy=lg.Policy(steps=1000)) as run:
    if "twice" in words:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            lg.open(state={}, run="other").close()
        print("twice:", *(str(warning.message) for warning in said))
    done = run.restore()
    told = run.last_restore
    print(f"from {done}, {told.bytes_read if told else 0} bytes read")
    for step in range(done + 1, steps + 1):
        train(step)
        run.step(step)
        if step % 2 == 0:
            run.save(step, block=True)
        if step == crash and restarts == "0":
            os.kill(os.getpid(), signal.SIGKILL)
print("digest", digest())
