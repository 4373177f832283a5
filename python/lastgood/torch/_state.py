"""Modules and optimizers of torch among the components of a run, and whether their tensors change under a copy."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import nn

from lastgood._lastgood import Invalid
from lastgood._state import Adapter
from lastgood.torch._modules import ModuleAdapter
from lastgood.torch._optimizers import OptimizerAdapter


def adapter_for(name: str, state: MutableMapping[str, Any], obj: Any) -> Adapter | None:
    """The adapter for a module, an optimizer or a bare tensor; None for everything else."""
    if isinstance(obj, nn.Module):
        if _is_fsdp1(obj):
            raise Invalid(
                f"{name} is wrapped by FullyShardedDataParallel, whose flat parameters cannot be restored on other "
                "ranks; use fully_shard (FSDP2), or save get_model_state_dict() of it through lg.torch.Writer"
            )
        return ModuleAdapter(name, obj, state)
    plain = isinstance(obj, torch.optim.Optimizer) and (
        type(obj).load_state_dict is torch.optim.Optimizer.load_state_dict
    )
    if plain:
        return OptimizerAdapter(name, obj, state)
    return None


def _is_fsdp1(module: nn.Module) -> bool:
    return any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())


def versions(tensors: list[tuple[str, Any]]) -> list[tuple[str, Any, int, int]]:
    """What tells whether one of the named ``tensors`` is changed in place or moved from now on."""
    return [(path, t, t._version, t.data_ptr()) for path, t in tensors if not t.is_inference()]


def changed(before: list[tuple[str, Any, int, int]]) -> str | None:
    """Says which tensor was changed since `versions`, if any was. Writes that torch does not count (through
    ``.data``, or from another library) are not seen."""
    for path, tensor, version, address in before:
        if tensor._version != version or tensor.data_ptr() != address:
            return f"{path} was changed while the save copied it"
    return None
