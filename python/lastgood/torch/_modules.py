"""Modules as components.

Names are fully qualified names without what wrappers add (``module.`` of DDP, ``_orig_mod.`` of compile), so that a
checkpoint of a wrapped model restores into a bare one.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lastgood import _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Loading, Mismatch, Saved, Shard, Snapshot, World
from lastgood.torch._sharding import Spread
from lastgood.torch._tensors import fits, local, shards_of, stage, swap

#: The attribute in which each kind of wrapper keeps the module that it wraps.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


def cleaner(module: nn.Module) -> Callable[[str], str]:
    """Gives names of ``module`` without what wrappers add. Only real wrappers count: a model may have a part that it
    calls ``module``."""
    added: set[str] = set()
    for path, part in module.named_modules(remove_duplicate=False):
        for kind in type(part).__mro__:
            attribute = _WRAPPERS.get(kind.__name__)
            if attribute is not None and attribute in part._modules:
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


def modules_of(state: MutableMapping[str, Any]) -> dict[str, nn.Module]:
    """The modules among the components."""
    found = {name: _state.as_declared(obj).obj for name, obj in state.items()}
    return {name: obj for name, obj in found.items() if isinstance(obj, nn.Module)}


def optimizers_of(state: MutableMapping[str, Any]) -> list[torch.optim.Optimizer]:
    """The optimizers among the components."""
    found = [_state.as_declared(obj).obj for obj in state.values()]
    return [obj for obj in found if isinstance(obj, torch.optim.Optimizer)]


def guarded_of(state: MutableMapping[str, Any]) -> set[int]:
    """The parameters that only an optimizer of ours changes."""
    parameters: set[int] = set()
    for optimizer in optimizers_of(state):
        for group in optimizer.param_groups:
            parameters.update(id(p) for p in group["params"])
    return parameters


def spread_of(state: MutableMapping[str, Any]) -> Spread:
    """How the parameters of all modules of the state are spread."""
    return Spread(p for module in modules_of(state).values() for p in module.parameters())


class ModuleAdapter:
    """A module: parameters, persistent buffers, extra state, which parameters are trained, which parts evaluate."""

    def __init__(self, name: str, module: nn.Module, state: MutableMapping[str, Any]) -> None:
        self.name = name
        self.module = module
        self.state = state

    def tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors of the state dict by clean name, and its other values."""
        tensors: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        clean = cleaner(self.module)
        live = {id(value) for value in self.module.parameters()}
        live.update(id(value) for value in self.module.buffers())
        for name, value in self.module.state_dict(keep_vars=True).items():
            # What get_extra_state gives may be a tensor, and is set by set_extra_state all the same.
            into = extra if name.rpartition(".")[2] == "_extra_state" else tensors
            cleaned = clean(name)
            if into is tensors and id(value) not in live:
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
        guarded = guarded_of(self.state) if deferred else set()
        snapshot = Snapshot()
        spread = spread_of(self.state)
        first: dict[int, str] = {}
        stored: set[str] = set()
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter) and id(tensor) in first:
                # A rank that stores nothing of a tensor has nothing to say of its ties.
                if first[id(tensor)] in stored:
                    snapshot.ties[name] = first[id(tensor)]
                continue
            first[id(tensor)] = name
            is_buffer = not isinstance(tensor, nn.Parameter)
            role = "own" if is_buffer and world.size > 1 else "same"
            path = f"{self.name}[{name!r}]"
            copy = id(tensor) not in guarded
            shards = shards_of(name, tensor, path, role, copy, spread)
            snapshot.shards += shards
            if any(shard.role != "witnessed" for shard in shards):
                stored.add(name)
            if not copy:
                snapshot.deferred.append((path, local(tensor)))
        encoded = _tree.encode(extra, self.name)
        snapshot.shards += _state.shards_of(
            encoded.arrays, self.name, "own" if world.size > 1 else "same"
        )
        frozen, evaluates = self._flags()
        snapshot.tree = {
            "extra": encoded.tree,
            "frozen": sorted(frozen),
            "evaluates": sorted(evaluates),
        }
        return snapshot

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
        before = self._flags()
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
        return replace(target, name=f"{name}@rank0"), make

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

    def _flags(self) -> tuple[set[str], set[str]]:
        clean = cleaner(self.module)
        frozen = {clean(n) for n, p in self.module.named_parameters() if not p.requires_grad}
        return frozen, {clean(n) for n, m in self.module.named_modules() if not m.training}

    def _set_flags(self, frozen: set[str], evaluates: set[str]) -> None:
        clean = cleaner(self.module)
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad == (clean(name) in frozen):
                parameter.requires_grad_(clean(name) not in frozen)
        for name, module in self.module.named_modules():
            module.training = clean(name) not in evaluates

    def _set_extra(self, extra: dict[str, Any]) -> None:
        clean = cleaner(self.module)
        for key, value in extra.items():
            path = key.removesuffix("_extra_state").removesuffix(".")
            for name, module in self.module.named_modules():
                if clean(name) == path:
                    module.set_extra_state(value)
