"""Optimizers as components: the state of each parameter by the parameter's name, and the groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lastgood import _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Loading, Look, Mismatch, Saved, Snapshot, World
from lastgood.torch._modules import spread_of, walks_of
from lastgood.torch._sharding import is_dtensor
from lastgood.torch._tensors import PlainTensors, local, shards_of, stage
from lastgood.torch._updates import updates_of


class OptimizerAdapter:
    """An optimizer: the state of each parameter by the parameter's name, and the groups."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, look: Look) -> None:
        self.name = name
        self.optimizer = optimizer
        self.look = look

    def names(self) -> dict[int, str]:
        """What each parameter is called: as in the module that it belongs to, else by its place.

        Raises:
            Invalid: if a module was sharded after the optimizer was made: it then trains nothing.
        """
        walks = self.look.once(walks_of)
        known: dict[int, str] = {}
        for component, walk in walks.items():
            prefix = f"{component}." if len(walks) > 1 else ""
            for name, parameter in walk.parameters.items():
                known.setdefault(id(parameter), prefix + walk.clean(name))
        place = 0
        names = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                names[id(parameter)] = known.get(id(parameter), f"#{place}")
                place += 1
        self._check_not_stale(known, names)
        return names

    def _check_not_stale(self, known: dict[int, str], names: dict[int, str]) -> None:
        if not names or any(parameter in known for parameter in names):
            return
        walks = self.look.once(walks_of).values()
        held = [p for walk in walks for p in walk.parameters.values()]
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
        wholes = PlainTensors("same", changes=False)
        snapshot = Snapshot(wholes=[wholes])
        others: tuple[list[str], list[Any]] = ([], [])
        if deferred:
            snapshot.deferred += [(wholes.names, wholes.tensors), others]
        # By id, since the hash of a tensor is a function of Python.
        state = {id(parameter): values for parameter, values in self.optimizer.state.items()}
        per_parameter: dict[str, Any] = {}
        is_json = True
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                values = state.get(id(parameter))
                if values:
                    name = names[id(parameter)]
                    told, is_told = self._values(snapshot, wholes, others, name, values)
                    per_parameter[name] = told
                    is_json = is_json and is_told
        snapshot.updates = updates_of(
            self.optimizer,
            self.name,
            lambda parameter: self.look.once(_weights_of).get(id(parameter)),
            lambda parameter, key: f"state.{names[id(parameter)]}.{key}",
        )
        encoded = _tree.Encoded()
        encoder = _tree.Encoder(encoded.arrays, self.name)
        groups = encoder.node(self.groups(names), ("groups",), 1)
        if not (is_json and _tree.is_plain(per_parameter)):
            per_parameter = encoder.node(per_parameter, ("state",), 1)
        other = encoder.node(self._other(), ("other",), 1)
        snapshot.tree = {"groups": groups, "state": per_parameter, "other": other}
        snapshot.add_arrays(encoded.arrays, self.name, "same", deferred)
        return snapshot

    def _other(self) -> dict[Any, Any]:
        """State that belongs to no parameter: counters and tables of some optimizers."""
        return {k: v for k, v in self.optimizer.state.items() if not isinstance(k, torch.Tensor)}

    def _values(
        self,
        snapshot: Snapshot,
        wholes: PlainTensors,
        others: tuple[list[str], list[Any]],
        name: str,
        values: dict[str, Any],
    ) -> tuple[dict[str, Any], bool]:
        """The values of one parameter that are no tensors, and whether they are JSON already; the tensors go to the
        snapshot."""
        told: dict[str, dict[str, Any]] = {}
        is_json = _tree.is_plain(values)
        for key, value in values.items():
            if not isinstance(value, torch.Tensor):
                told[key] = {"value": value}
                is_json = False
                continue
            stored = f"state.{name}.{key}"
            told[key] = {"tensor": stored}
            if value.dtype == torch.complex128:
                told[key]["complex128"] = True
            if wholes.take(stored, value):
                continue
            path, spread = f"{self.name}[{stored!r}]", self.look.once(spread_of)
            snapshot.shards += shards_of(stored, value, path, "same", False, spread)
            others[0].append(stored)
            others[1].append(local(value))
        return told, is_json

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


def _weights_of(look: Look) -> dict[int, tuple[str, str]]:
    """Under which component and name each parameter of the modules is saved."""
    known: dict[int, tuple[str, str]] = {}
    for component, walk in look.once(walks_of).items():
        for name, parameter in walk.parameters.items():
            known.setdefault(id(parameter), (component, walk.clean(name)))
    return known


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
