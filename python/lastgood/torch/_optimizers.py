"""Optimizers as components: the state of each parameter by the parameter's name, and the groups."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn

from lastgood import _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Loading, Mismatch, Saved, Snapshot, World
from lastgood.torch._modules import cleaner, modules_of, spread_of
from lastgood.torch._sharding import Spread, is_dtensor
from lastgood.torch._tensors import local, shards_of, stage


class OptimizerAdapter:
    """An optimizer: the state of each parameter by the parameter's name, and the groups."""

    def __init__(
        self, name: str, optimizer: torch.optim.Optimizer, state: MutableMapping[str, Any]
    ) -> None:
        self.name = name
        self.optimizer = optimizer
        self.state = state

    def names(self) -> dict[int, str]:
        """What each parameter is called: as in the module that it belongs to, else by its place.

        Raises:
            Invalid: if a module was sharded after the optimizer was made: it then trains nothing.
        """
        modules = modules_of(self.state)
        known: dict[int, str] = {}
        for component, module in modules.items():
            clean = cleaner(module)
            for name, parameter in module.named_parameters(remove_duplicate=True):
                prefix = f"{component}." if len(modules) > 1 else ""
                known.setdefault(id(parameter), prefix + clean(name))
        place = 0
        names = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                names[id(parameter)] = known.get(id(parameter), f"#{place}")
                place += 1
        self._check_not_stale(known, names, modules)
        return names

    def _check_not_stale(
        self, known: dict[int, str], names: dict[int, str], modules: dict[str, nn.Module]
    ) -> None:
        if not names or any(parameter in known for parameter in names):
            return
        held = [p for module in modules.values() for p in module.parameters()]
        held_by_us = [p for group in self.optimizer.param_groups for p in group["params"]]
        if any(map(is_dtensor, held)) and not any(map(is_dtensor, held_by_us)):
            raise Invalid(
                f"{self.name} was made before fully_shard or parallelize_module gave the model new parameters, and "
                "trains none of them; make the optimizer after the sharding"
            )

    def groups(self, names: dict[int, str]) -> list[dict[str, Any]]:
        return [
            {k: ([names[id(p)] for p in v] if k == "params" else v) for k, v in group.items()}
            for group in self.optimizer.param_groups
        ]

    def capture(self, world: World, deferred: bool) -> Snapshot:
        names = self.names()
        snapshot = Snapshot()
        spread = spread_of(self.state)
        per_parameter: dict[str, Any] = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                values = self.optimizer.state.get(parameter)
                if values:
                    per_parameter[name] = self._values(snapshot, name, values, spread, deferred)
        parts = {"groups": self.groups(names), "state": per_parameter, "other": self._other()}
        encoded = _tree.encode(parts, self.name)
        snapshot.shards += _state.shards_of(encoded.arrays, self.name, "same")
        snapshot.tree = encoded.tree
        return snapshot

    def _other(self) -> dict[Any, Any]:
        """State that belongs to no parameter: counters and tables of some optimizers."""
        return {k: v for k, v in self.optimizer.state.items() if not isinstance(k, torch.Tensor)}

    def _values(
        self,
        snapshot: Snapshot,
        name: str,
        values: dict[str, Any],
        spread: Spread,
        deferred: bool,
    ) -> dict[str, Any]:
        """The values of one parameter that are no tensors; the tensors go to the snapshot."""
        plain: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                stored = f"state.{name}.{key}"
                path = f"{self.name}[{stored!r}]"
                snapshot.shards += shards_of(stored, value, path, "same", not deferred, spread)
                if deferred:
                    snapshot.deferred.append((path, local(value)))
                plain[key] = {"tensor": stored}
                if value.dtype == torch.complex128:
                    plain[key]["complex128"] = True
            else:
                plain[key] = {"value": value}
        return plain

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        names = self.names()
        parameters = {
            names[id(p)]: p for group in self.optimizer.param_groups for p in group["params"]
        }
        staged_groups = _state.stage(saved, _tree.arrays_of(tree["groups"]), world, {})
        staged_values = _state.stage(saved, _tree.arrays_of(tree["state"]), world, {})
        other = tree.get("other", {})
        staged_other = _state.stage(saved, _tree.arrays_of(other), world, {})
        self._check(tree, names, parameters)
        targets = staged_groups.targets + staged_values.targets + staged_other.targets
        tensors: dict[str, Any] = {}
        problems = []
        for name, values in tree["state"].items():
            for value in values.values():
                stored = value.get("tensor")
                if stored is None:
                    continue
                if stored not in saved.tensors:
                    problems.append(f"{self.name}/{stored} is missing in the checkpoint")
                    continue
                like = parameters[name] if is_dtensor(parameters[name]) else None
                whole = like is not None and saved.tensors[stored].shape != tuple(like.shape)
                target, make = stage(
                    saved, stored, saved.tensors[stored], world, None if whole else like
                )
                targets.append(target)
                tensors[stored] = _complex(make) if value.get("complex128") else make
        if problems:
            raise Mismatch(problems)
        before = (dict(self.optimizer.state), [dict(g) for g in self.optimizer.param_groups])
        on_device = {
            names[id(p)]: bool(group.get("capturable") or group.get("fused"))
            for group in self.optimizer.param_groups
            for p in group["params"]
        }

        def apply() -> None:
            groups = _tree.decode(tree["groups"], staged_groups.finish(), self.name)
            plain = _tree.decode(tree["state"], staged_values.finish(), self.name)
            for live, group in zip(self.optimizer.param_groups, groups, strict=True):
                for key, value in group.items():
                    if key != "params":
                        live[key] = value
            self.optimizer.state.clear()
            self.optimizer.state.update(_tree.decode(other, staged_other.finish(), self.name))
            for name, values in plain.items():
                self.optimizer.state[parameters[name]] = {
                    key: _placed(key, tensors[value["tensor"]](), parameters[name], on_device[name])
                    if "tensor" in value
                    else value["value"]
                    for key, value in values.items()
                }

        def undo() -> None:
            self.optimizer.state.clear()
            self.optimizer.state.update(before[0])
            for live, group in zip(self.optimizer.param_groups, before[1], strict=True):
                live.clear()
                live.update(group)

        return Loading(targets, apply, undo)

    def _check(self, tree: Any, names: dict[int, str], parameters: dict[str, Any]) -> None:
        problems = []
        live, there = self.groups(names), tree["groups"]
        if len(live) != len(there):
            problems.append(
                f"{self.name} has {len(live)} parameter groups, in the checkpoint {len(there)}"
            )
        for i, (ours, theirs) in enumerate(zip(live, there, strict=False)):
            missing = sorted(set(ours["params"]) - set(theirs["params"]))
            extra = sorted(set(theirs["params"]) - set(ours["params"]))
            problems += [f"{self.name}: group {i} of the checkpoint lacks {n}" for n in missing]
            problems += [
                f"{self.name}: group {i} of the checkpoint holds {n} as well" for n in extra
            ]
        unknown = sorted(set(tree["state"]) - set(parameters))
        problems += [f"{self.name}/state.{name} is only in the checkpoint" for name in unknown]
        if problems:
            raise Mismatch(problems)


def _complex(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: torch.view_as_complex(make())


def _placed(key: str, value: Any, parameter: Any, on_device: bool) -> Any:
    """On the parameter's device, but for the count of steps where the optimizer keeps that on the host; in the order of
    the parameter's memory, as optimizers make what has its shape."""
    if is_dtensor(value) or (key == "step" and value.ndim == 0 and not on_device):
        return value
    value = value.to(parameter.device)
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
