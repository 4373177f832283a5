"""A state that lives in memory and is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lastgood_bench.tensors import Flat


class Loader:
    """Where the data is: the number of the next batch."""

    def __init__(self) -> None:
        self.batch = 0

    def state_dict(self) -> dict[str, int]:
        return {"batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch = state["batch"]


@dataclass
class State:
    """A live state and its training.

    ``components`` is what a user gives to `lg.open`. ``forward`` computes gradients, ``update`` changes the state; a
    step is one after the other.
    """

    id: str
    components: dict[str, Any]
    forward: Callable[[], None]
    update: Callable[[], None]
    hidden: Any = None
    _names: dict[Any, str] = field(default_factory=dict)

    def step(self) -> None:
        """One step of the training."""
        self.forward()
        self.update()

    def flat(self) -> Flat:
        """Every tensor of the state, live; and what is no tensor, as a tensor of its JSON."""
        out: Flat = {}
        plain: dict[str, Any] = {}
        for name, part in self.components.items():
            if isinstance(part, nn.Module):
                for key, tensor in part.state_dict().items():
                    out[f"{name}.{key}"] = tensor
            elif isinstance(part, torch.optim.Optimizer):
                out.update(self._moments(name, part))
            elif isinstance(part, dict):
                out.update({f"{name}.{key}": tensor for key, tensor in part.items()})
            else:
                plain[name] = part.state_dict()
        if plain:
            out["rng"] = torch.get_rng_state()
            text = json.dumps(plain, default=str, sort_keys=True).encode()
            out["plain"] = torch.frombuffer(bytearray(text.ljust(4096)), dtype=torch.uint8)
        return out

    def _moments(self, name: str, optimizer: torch.optim.Optimizer) -> Flat:
        if not self._names:
            for part in self.components.values():
                if isinstance(part, nn.Module):
                    self._names.update({p: key for key, p in part.named_parameters()})
        return {
            f"{name}.{self._names[parameter]}.{key}": tensor
            for parameter, values in optimizer.state.items()
            for key, tensor in values.items()
        }
