"""What saving costs a training loop: lastgood's overlapped saves against DCP's async_save, interleaved in one process.

``stall.py [--blocks 12] [--tokens 128] [--steps 2] [--saves 4] [--reps 3]``: the model is GPT-2 small
(124 M parameters with 12 blocks, tied head, fp32, AdamW: 1.49 GB of weights and moments), trained on so many random
tokens a step. The ways take turns on the same state, each into a new folder of one disk, and save once to warm up.
Then windows of so many steps alternate: one without a save, one that saves after its first step, so that the steps
behind it pay for what goes on behind the call. What is not durable at the end of a window is waited for, and told as
``drain``. Both sync their files.

For each way: the time of a window with a save less that of the window before it (the total slowdown); of that the time
inside of the call; the processor time of all threads, drain included, above that of the window before.
``dcp-cached`` is DCP with memory for its copies that it keeps between saves. Medians over all pairs of windows with
their quartiles, and every pair on request (``--all``): memory and processors that others share make windows differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lastgood as lg
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

WAYS = ("lastgood", "dcp", "dcp-cached")
WORDS, WIDTH, HEADS, TOKENS = 50257, 768, 12, 1024


class Gpt(nn.Module):
    """GPT-2 small, with so many blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.words(tokens) + self.places.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        # The head has the words' weights.
        return nn.functional.linear(self.norm(x), self.words.weight)


class Lastgood:
    def __init__(self, folder: str, model: nn.Module, optimizer: Any) -> None:
        self.run = lg.open(folder, {"model": model, "optimizer": optimizer})
        self.last: Any = None

    def save(self, step: int) -> None:
        self.last = self.run.save(step)

    def drain(self) -> None:
        self.last.durable.result()

    def close(self) -> None:
        self.run.close()


class Dcp:
    def __init__(self, folder: str, model: nn.Module, optimizer: Any, cached: bool) -> None:
        self.folder, self.model, self.optimizer = folder, model, optimizer
        # Pinned memory is of no use without a device.
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self.stager = DefaultStager(options) if cached else None
        self.pending: Any = None

    def save(self, step: int) -> None:
        # One save in flight, as with lastgood.
        self.drain()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        saved = dcp.async_save(
            state, checkpoint_id=f"{self.folder}/{step}", async_stager=self.stager
        )
        self.pending = getattr(saved, "upload_completion", saved)

    def drain(self) -> None:
        if self.pending is not None:
            self.pending.result()

    def close(self) -> None:
        self.drain()


@dataclass
class Window:
    """The seconds of a window, of the call in it, of waiting behind it, and of all processors."""

    total: float
    inside: float
    drain: float
    processor: float


def window(steps: int, step: Callable[[], None], way: Any, number: int) -> Window:
    processor, begin, inside = time.process_time(), time.perf_counter(), 0.0
    for i in range(steps):
        step()
        if way is not None and i == 0:
            called = time.perf_counter()
            way.save(number)
            inside = time.perf_counter() - called
    total = time.perf_counter() - begin
    if way is not None:
        way.drain()
    drain = time.perf_counter() - begin - total
    return Window(total, inside, drain, time.process_time() - processor)


def compare(asked: Any) -> None:
    torch.manual_seed(0)
    model = Gpt(asked.blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(WORDS, (1, asked.tokens + 1))

    def step() -> None:
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits[0], tokens[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    ways: list[str] = asked.ways
    pairs: dict[str, list[tuple[Window, Window]]] = {name: [] for name in ways}
    step()
    for repetition in range(asked.reps):
        # Each way comes first, second, … in turn.
        for name in ways[repetition % len(ways) :] + ways[: repetition % len(ways)]:
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                way = make(name, folder, model, optimizer)
                window(asked.steps, step, way, 1)
                for number in range(2, asked.saves + 2):
                    without = window(asked.steps, step, None, number)
                    pairs[name].append((without, window(asked.steps, step, way, number)))
                    if asked.all:
                        print(f"  {name:10} {pairs[name][-1]}", flush=True)
                way.close()
            os.sync()
    size = 3 * sum(p.nbytes for p in model.parameters())
    show(pairs, asked.steps, size)


def make(name: str, folder: str, model: nn.Module, optimizer: Any) -> Any:
    if name == "lastgood":
        return Lastgood(folder, model, optimizer)
    return Dcp(folder, model, optimizer, cached=name == "dcp-cached")


def show(pairs: dict[str, list[tuple[Window, Window]]], steps: int, size: int) -> None:
    base = statistics.median(without.total for found in pairs.values() for without, _ in found)
    cores = len(os.sched_getaffinity(0))
    print(
        f"state {size / 1e6:.0f} MB, windows of {steps} steps of {base / steps * 1e3:.0f} ms; "
        f"{torch.get_num_threads()} threads of torch on {cores} cores"
    )
    print("ms a save    slowdown (quartiles)    in the call    drain    processor    saves")
    medians = {}
    for name, found in pairs.items():
        slowdowns = [saving.total - without.total for without, saving in found]
        low, medians[name], high = statistics.quantiles(slowdowns, n=4)
        inside = statistics.median(saving.inside for _, saving in found)
        drain = statistics.median(saving.drain for _, saving in found)
        processor = statistics.median(b.processor - a.processor for a, b in found)
        print(
            f"{name:10} {medians[name] * 1e3:10.0f} ({low * 1e3:.0f} to {high * 1e3:.0f})".ljust(37)
            + f"{inside * 1e3:11.1f} {drain * 1e3:8.0f} {processor * 1e3:12.0f} {len(found):8}"
        )
    first, *others = medians
    for name in others:
        print(f"{name} / {first}: {medians[name] / max(medians[first], 1e-9):.1f}")


def idle() -> None:
    """A step that does not save."""
    with (
        tempfile.TemporaryDirectory() as folder,
        lg.open(folder, {"x": {"y": 1}}, policy=lg.Policy(at=[10**9])) as run,
    ):
        begin = time.perf_counter()
        for step in range(10_000):
            run.step(step, loss=0.5)
        print(f"run.step without a save: {(time.perf_counter() - begin) / 10_000 * 1e6:.2f} us")


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--blocks", type=int, default=12)
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=2)
    arguments.add_argument("--saves", type=int, default=4)
    arguments.add_argument("--reps", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=None)
    arguments.add_argument("--folder", default=None)
    arguments.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    arguments.add_argument("--all", action="store_true")
    asked = arguments.parse_args()
    if asked.saves * asked.reps < 2:
        arguments.error("quartiles need at least two saves")
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    idle()
    compare(asked)


if __name__ == "__main__":
    main()
