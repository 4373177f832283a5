"""The models and the optimizer that the states are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Gpt(nn.Module):
    """GPT-2's shape: learned places, norms before the layers, the head tied to the words."""

    def __init__(self, words: int, width: int, heads: int, blocks: int, places: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(places, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)

    def begin(self) -> None:
        """GPT-2's first weights: normal, of a deviation of 0.02, less at the end of each block."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                ends = name.endswith(("out_proj.weight", "linear2.weight"))
                scale = (2 * len(self.blocks)) ** -0.5 if ends else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        length = words.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.words(words) + self.places.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return functional.linear(self.norm(x), self.words.weight)


class Experts(nn.Module):
    """A mixture of experts: each batch is of some of them, as a router sends it when it balances by topic."""

    def __init__(self, words: int, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )

    def forward(self, words: torch.Tensor, chosen: list[int]) -> torch.Tensor:
        x = self.words(words)
        parts = x.chunk(len(chosen), dim=1)
        mixed = [part + self.experts[i](part) for i, part in zip(chosen, parts, strict=True)]
        return functional.linear(torch.cat(mixed, dim=1), self.words.weight)


class Tables(nn.Module):
    """Embedding tables of a recommender, of so many rows in all."""

    def __init__(self, tables: int, rows: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(rows // tables, width, sparse=True) for _ in range(tables)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return sum(table(rows[i]).sum(1) for i, table in enumerate(self.tables))


class Adapted(nn.Module):
    """A frozen base in bf16, and LoRA's adapters of rank 16 in fp32 beside the matrices of attention."""

    RANK = 16

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.base = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(shape, dtype=torch.bfloat16), requires_grad=False)
                for name, shape in shapes.items()
            }
        )
        adapted = [name for name in shapes if name.endswith(("_q", "_k", "_v", "_o"))]
        self.down = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(self.RANK, shapes[name][1])) for name in adapted}
        )
        self.up = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shapes[name][0], self.RANK)) for name in adapted}
        )

    def forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What the adapters of one matrix add to it."""
        return functional.linear(functional.linear(x, self.down[name]), self.up[name])


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one sum of squares for a row, as recommenders train (FBGEMM's ``EXACT_ROWWISE_ADAGRAD``)."""

    def __init__(self, parameters: Any, lr: float = 0.02, eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros(parameter.shape[0])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Changes the rows that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()
                total = self.state[parameter]["sum"]
                total[rows] += values.square().mean(1)
                scale = group["lr"] / (total[rows].sqrt() + group["eps"])
                parameter[rows] -= scale[:, None] * values
