"""Modules and optimizers of torch among the components of a run, and whether their tensors change under a copy."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import nn

from lastgood._lastgood import Invalid
from lastgood._state import Adapter, Look
from lastgood.torch._modules import ModuleAdapter, walks_of
from lastgood.torch._optimizers import OptimizerAdapter

_COUNTER = operator.attrgetter("_version")
_ADDRESS = torch.Tensor.data_ptr


def adapter_for(name: str, look: Look, obj: Any) -> Adapter | None:
    """The adapter for a module, an optimizer or a bare tensor; None for everything else."""
    if isinstance(obj, nn.Module):
        if look.once(walks_of)[name].holds_fsdp1():
            raise Invalid(
                f"{name} is wrapped by FullyShardedDataParallel, whose flat parameters cannot be restored on other "
                "ranks; use fully_shard (FSDP2), or save get_model_state_dict() of it through lg.torch.Writer"
            )
        return ModuleAdapter(name, obj, look)
    plain = isinstance(obj, torch.optim.Optimizer) and (
        type(obj).load_state_dict is torch.optim.Optimizer.load_state_dict
    )
    if plain:
        return OptimizerAdapter(name, obj, look)
    return None


def versions(tensors: list[tuple[str, list[str], list[Any]]]) -> list[Version]:
    """What tells whether one of the ``tensors``, which each component names, is changed in place or moved from now
    on."""
    found = []
    for component, names, held in tensors:
        try:
            counters = list(map(_COUNTER, held))
        except RuntimeError:
            # Tensors of inference have no counter.
            kept = [(name, t) for name, t in zip(names, held, strict=True) if not t.is_inference()]
            names, held = [name for name, _ in kept], [t for _, t in kept]
            counters = list(map(_COUNTER, held))
        found.append(Version(component, names, held, counters, list(map(_ADDRESS, held))))
    return found


class Version(NamedTuple):
    """What torch counts of the tensors of a component, and where they are, in columns."""

    component: str
    names: list[str]
    tensors: list[Any]
    counters: list[int]
    addresses: list[int]


def changed(before: list[Version]) -> str | None:
    """Says which tensor was changed since `versions`, if any was. Writes that torch does not count (through
    ``.data``, or from another library) are not seen."""
    for component, names, tensors, counters, addresses in before:
        if list(map(_COUNTER, tensors)) == counters and list(map(_ADDRESS, tensors)) == addresses:
            continue
        for name, tensor, counter, address in zip(names, tensors, counters, addresses, strict=True):
            if tensor._version != counter or tensor.data_ptr() != address:
                return f"{component}[{name!r}] was changed while the save copied it"
    return None
