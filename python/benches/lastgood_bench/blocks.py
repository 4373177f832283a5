"""States that are too large to train here: trained weights, in as many different tiles as are needed.

The weights of a small GPT that was trained (``QUICK``) are repeated; each tile begins elsewhere, and has its own sign
and scale, so that values are distributed as in trained weights and no two tiles have the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from lastgood_bench import models
from lastgood_bench.live import Loader, State

SOURCE = "QUICK"


def _source(cache: Path) -> State:
    from lastgood_bench import states

    with torch.random.fork_rng():
        return states.build(SOURCE, cache)


def _matrices(state: State) -> torch.Tensor:
    model = state.components["model"]
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.dim() > 1])


def _tiles(tile: torch.Tensor, count: int, seed: int) -> Iterator[torch.Tensor]:
    """``count`` values in tiles."""
    generator = torch.Generator().manual_seed(seed)
    while count > 0:
        begin = int(torch.randint(len(tile), (1,), generator=generator))
        scale = float(torch.rand(1, generator=generator)) * 0.5 + 0.75
        sign = 1 if torch.rand(1, generator=generator) < 0.5 else -1
        made = torch.roll(tile, begin)[:count] * (sign * scale)
        count -= len(made)
        yield made


def fill(out: torch.Tensor, tile: torch.Tensor, seed: int) -> None:
    """Writes tiles into ``out``, in its dtype."""
    at, flat = 0, out.reshape(-1)
    for made in _tiles(tile, out.numel(), seed):
        flat[at : at + len(made)] = made
        at += len(made)


def weights(count: int, cache: Path) -> torch.Tensor:
    """So many values of trained weights, in fp32."""
    out = torch.empty(count)
    fill(out, _matrices(_source(cache)), 1)
    return out


def _llama(layers: int, width: int, hidden: int, keys: int, words: int) -> dict[str, tuple]:
    """The matrices of a model of Llama's shape; "." is no part of a parameter's name."""
    shapes: dict[str, tuple] = {"words": (words, width)}
    for i in range(layers):
        name = f"layer{i:02}_"
        shapes |= {
            name + "q": (width, width),
            name + "k": (keys, width),
            name + "v": (keys, width),
            name + "o": (width, width),
            name + "gate": (hidden, width),
            name + "up": (hidden, width),
            name + "down": (width, hidden),
        }
    return shapes


def lora(empty: bool, cache: Path) -> State:
    """TinyLlama's shape with adapters: each of these learns, for real, what another small matrix does to its input."""
    shapes = _llama(22, 2048, 5632, 256, 32000) | {"head": (32000, 2048)}
    model = models.Adapted(shapes)
    if not empty:
        tile = _matrices(_source(cache)).to(torch.bfloat16)
        for i, parameter in enumerate(model.base.values()):
            fill(parameter.data, tile, i)
        for parameter in model.down.values():
            torch.nn.init.kaiming_uniform_(parameter, a=5**0.5)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    loader = Loader()

    def forward() -> None:
        generator = torch.Generator().manual_seed(loader.batch)
        loader.batch += 1
        for i, name in enumerate(model.down):
            x = torch.randn(16, shapes[name][1], generator=generator)
            goal = torch.randn(shapes[name], generator=torch.Generator().manual_seed(i))
            wanted = x @ goal.T / shapes[name][1] ** 0.5
            (model(name, x) - wanted).square().mean().backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return State(
        "LORA", {"model": model, "optimizer": optimizer, "loader": loader}, forward, update
    )


def rl(empty: bool, cache: Path) -> State:
    """Weights in bf16 of masters that take steps as AdamW does at a rate of 9e-7, which most roundings hide.

    The directions are those of the trained source (its first moment over the root of its second), in other tiles each
    step; the masters are no part of the state.
    """
    shapes = _llama(18, 1536, 4096, 512, 32000)
    parts = {k: torch.empty(shape, dtype=torch.bfloat16) for k, shape in shapes.items()}
    number = [0]
    hidden: dict[str, torch.Tensor] = {}
    direction = torch.empty(0)
    if not empty:
        source = _source(cache)
        tile = _matrices(source)
        moments = source.components["optimizer"].state.values()
        direction = torch.cat(
            [
                (m["exp_avg"] / (m["exp_avg_sq"].sqrt() + 1e-8)).flatten()
                for m in moments
                if m["exp_avg"].dim() > 1
            ]
        )
        for i, (name, part) in enumerate(parts.items()):
            hidden[name] = torch.empty(part.shape)
            fill(hidden[name], tile, i)
            part.copy_(hidden[name])

    def update() -> None:
        number[0] += 1
        for i, (name, part) in enumerate(parts.items()):
            master, at = hidden[name].reshape(-1), 0
            for made in _tiles(direction, part.numel(), 1000 * number[0] + i):
                master[at : at + len(made)].sub_(made, alpha=RL_RATE)
                at += len(made)
            part.copy_(hidden[name])

    return State("RL", {"weights": parts}, lambda: None, update, hidden=hidden)


#: The learning rate of `rl`.
RL_RATE = 9e-7


def srv(empty: bool, cache: Path) -> State:
    """Llama 3.2's shape of 3 billion parameters, for loading alone."""
    shapes = _llama(28, 3072, 8192, 1024, 128256)
    parts = {k: torch.empty(shape, dtype=torch.bfloat16) for k, shape in shapes.items()}
    if not empty:
        tile = _matrices(_source(cache)).to(torch.bfloat16)
        for i, part in enumerate(parts.values()):
            fill(part, tile, i)
    return State("SRV", {"weights": parts}, lambda: None, lambda: None)
