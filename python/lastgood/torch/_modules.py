"""Modules as components.

Names are fully qualified names without what wrappers add (``module.`` of DDP, ``_orig_mod.`` of compile), so that a
checkpoint of a wrapped model restores into a bare one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lastgood import _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Loading, Look, Mismatch, Saved, Shard, Snapshot, World
from lastgood.torch._sharding import Spread
from lastgood.torch._tensors import PlainTensors, fits, local, shards_of, stage, swap

#: The attribute in which each kind of wrapper keeps the module that it wraps.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


class Walk:
    """What is found in one walk through a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        #: Every part with its path; a part that stands in several places has several.
        self.parts: list[tuple[str, nn.Module]] = list(module.named_modules(remove_duplicate=False))
        #: Each parameter once, by the name under which it is found first.
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        self.clean = _cleaner(self.parts)

    def holds_fsdp1(self) -> bool:
        kinds = {type(part) for _, part in self.parts}
        return any(kind.__name__ == "FullyShardedDataParallel" for kind in kinds)

    def flags(self) -> tuple[set[str], set[str]]:
        """The clean names of the parameters that are not trained, and of the parts that evaluate."""
        frozen = [name for name, p in self.parameters.items() if not p.requires_grad]
        evaluates = []
        seen: set[int] = set()
        for path, part in self.parts:
            if id(part) not in seen:
                seen.add(id(part))
                if not part.training:
                    evaluates.append(path)
        return set(map(self.clean, frozen)), set(map(self.clean, evaluates))


def _cleaner(parts: list[tuple[str, nn.Module]]) -> Callable[[str], str]:
    """Gives names without what wrappers add. Only real wrappers count: a model may have a part that it calls
    ``module``."""
    attributes = {kind: _added_by(kind) for kind in {type(part) for _, part in parts}}
    added: set[str] = set()
    for path, part in parts:
        for attribute in attributes[type(part)]:
            if attribute in part._modules:
                added.add(f"{path}.{attribute}" if path else attribute)
    if not added:
        return lambda name: name

    def clean(name: str) -> str:
        path, kept = "", []
        for part in name.split("."):
            path = f"{path}.{part}" if path else part
            if path not in added:
                kept.append(part)
        return ".".join(kept)

    return clean


def _added_by(kind: type) -> list[str]:
    return [_WRAPPERS[base.__name__] for base in kind.__mro__ if base.__name__ in _WRAPPERS]


def walks_of(look: Look) -> dict[str, Walk]:
    """The modules among the components."""
    found = {name: _state.as_declared(obj).obj for name, obj in look.state.items()}
    return {name: Walk(obj) for name, obj in found.items() if isinstance(obj, nn.Module)}


def optimizers_of(state: MutableMapping[str, Any]) -> list[torch.optim.Optimizer]:
    """The optimizers among the components."""
    found = [_state.as_declared(obj).obj for obj in state.values()]
    return [obj for obj in found if isinstance(obj, torch.optim.Optimizer)]


def guarded_of(look: Look) -> set[int]:
    """The parameters that only an optimizer of ours changes."""
    parameters: set[int] = set()
    for optimizer in optimizers_of(look.state):
        for group in optimizer.param_groups:
            parameters.update(map(id, group["params"]))
    return parameters


def spread_of(look: Look) -> Spread:
    """How the parameters of all modules of the state are spread."""
    walks = look.once(walks_of).values()
    return Spread(p for walk in walks for p in walk.parameters.values())


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == "_extra_state"


class ModuleAdapter:
    """A module: parameters, persistent buffers, extra state, which parameters are trained, which parts evaluate."""

    def __init__(self, name: str, module: nn.Module, look: Look) -> None:
        self.name = name
        self.module = module
        self.look = look
        self.walk = look.once(walks_of)[name]

    def tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors of the state dict by clean name, and its other values."""
        tensors: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        clean = self.walk.clean
        live = set(map(id, self.walk.parameters.values()))
        # Most modules have none: they are looked for when something is no parameter.
        buffers = functools.cache(lambda: set(map(id, self.module.buffers())))
        for name, value in self.module.state_dict(keep_vars=True).items():
            # What get_extra_state gives may be a tensor, and is set by set_extra_state all the same.
            into = extra if name.endswith("_extra_state") and _is_extra(name) else tensors
            cleaned = clean(name)
            if into is tensors and id(value) not in live and id(value) not in buffers():
                raise Invalid(
                    f"{self.name}.state_dict() makes {cleaned} anew, so that nothing could be restored into it; give "
                    "lastgood an object with a state_dict and a load_state_dict of its own"
                )
            if cleaned in into:
                raise Invalid(f"{self.name} has two tensors that are called {cleaned}; rename one")
            into[cleaned] = value
        return tensors, extra

    def capture(self, world: World, deferred: bool) -> Snapshot:
        tensors, extra = self.tensors()
        guarded = self.look.once(guarded_of) if deferred else set()
        snapshot = Snapshot()
        alone = world.size == 1
        # What no optimizer of ours changes may be changed as soon as the call returns.
        guards = PlainTensors("same", changes=False)
        shared, own = (PlainTensors(role, changes=deferred) for role in ("same", "own"))
        snapshot.wholes += [guards, shared, own]
        others: tuple[list[str], list[Any]] = ([], [])
        snapshot.deferred += [(guards.names, guards.tensors), others]
        first: dict[int, str] = {}
        unstored: set[str] = set()
        for name, tensor in tensors.items():
            key = id(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            if is_parameter and key in first:
                # A rank that stores nothing of a tensor has nothing to say of its ties.
                if first[key] not in unstored:
                    snapshot.ties[name] = first[key]
                continue
            first[key] = name
            is_guarded = key in guarded
            is_shared = alone or is_parameter
            wholes = shared if is_shared else own
            if (guards if is_guarded and is_shared else wholes).take(name, tensor):
                continue
            shards = self._shards(name, tensor, wholes.role, deferred and not is_guarded)
            snapshot.shards += shards
            if is_guarded:
                others[0].append(name)
                others[1].append(local(tensor))
            if all(shard.role == "witnessed" for shard in shards):
                unstored.add(name)
        encoded = _tree.encode(extra, self.name)
        snapshot.add_arrays(encoded.arrays, self.name, "same" if alone else "own", deferred)
        frozen, evaluates = self.walk.flags()
        snapshot.tree = {
            "extra": encoded.tree,
            "frozen": sorted(frozen),
            "evaluates": sorted(evaluates),
        }
        return snapshot

    def _shards(self, name: str, tensor: Any, role: str, copy: bool) -> list[Shard]:
        path = f"{self.name}[{name!r}]"
        return shards_of(name, tensor, path, role, copy, self.look.once(spread_of))

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        tensors, extra = self.tensors()
        kinds = _tree.arrays_of(tree["extra"])
        problems = self._problems(saved, tensors, extra, tree, kinds)
        if problems:
            raise Mismatch(problems)
        targets, swaps = [], []
        seen: set[int] = set()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter) and id(tensor) in seen:
                continue
            seen.add(id(tensor))
            target, make = self._stage(saved, name, world, tensor)
            targets.append(target)
            swaps.append((tensor, make))
        staged_extra = _state.stage(saved, kinds, world, {})
        before = Walk(self.module).flags()
        kept = _tree.encode(extra, self.name)

        def apply() -> None:
            for tensor, make in swaps:
                swap(tensor, local(make()))
            self._set_flags(set(tree["frozen"]), set(tree["evaluates"]))
            self._set_extra(_tree.decode(tree["extra"], staged_extra.finish(), self.name))

        def undo() -> None:
            for tensor, make in swaps:
                swap(tensor, local(make()))
            self._set_flags(*before)
            self._set_extra(_tree.decode(kept.tree, kept.arrays, self.name))

        return Loading(targets + staged_extra.targets, apply, undo)

    def _stage(
        self, saved: Saved, name: str, world: World, tensor: Any
    ) -> tuple[Shard, Callable[[], Any]]:
        """In a world of another size, a buffer that every rank stored for itself is taken from rank 0, which is
        whose buffers DDP gives to all ranks."""
        ranks = saved.own.get(name)
        if ranks is None or ranks == world.size:
            return stage(saved, name, saved.tensors[name], world, tensor)
        saved.notices.append(f"{self.name}/{name}: taken from rank 0 of {ranks}")
        shared = replace(saved, own={key: value for key, value in saved.own.items() if key != name})
        target, make = stage(shared, name, saved.tensors[name], world, tensor)
        return target._replace(name=f"{name}@rank0"), make

    def _problems(
        self,
        saved: Saved,
        tensors: dict[str, Any],
        extra: dict[str, Any],
        tree: Any,
        kinds: dict[str, str],
    ) -> list[str]:
        problems = []
        for name, tensor in tensors.items():
            if name not in saved.tensors:
                problems.append(f"{self.name}/{name} is not in the checkpoint")
                continue
            problem = fits(self.name, name, tensor, saved.tensors[name])
            problems += [problem] if problem else []
        gone = set(saved.tensors) - set(tensors) - set(kinds)
        problems += [f"{self.name}/{name} is only in the checkpoint" for name in sorted(gone)]
        if set(tree["extra"]) != set(extra):
            both = f"{sorted(extra)}, in the checkpoint {sorted(tree['extra'])}"
            problems.append(f"{self.name} has extra state {both}")
        return problems

    def _set_flags(self, frozen: set[str], evaluates: set[str]) -> None:
        clean = Walk(self.module).clean
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad == (clean(name) in frozen):
                parameter.requires_grad_(clean(name) not in frozen)
        for name, module in self.module.named_modules():
            module.training = clean(name) not in evaluates

    def _set_extra(self, extra: dict[str, Any]) -> None:
        clean = Walk(self.module).clean
        for key, value in extra.items():
            path = key.removesuffix("_extra_state").removesuffix(".")
            for name, module in self.module.named_modules():
                if clean(name) == path:
                    module.set_extra_state(value)
