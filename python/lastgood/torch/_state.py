"""Modules, optimizers and tensors of torch as components.

Names are fully qualified names without what wrappers add (``module.`` of DDP, ``_orig_mod.`` of compile), so that a
checkpoint of a wrapped model restores into a bare one. A DTensor is the shard that this rank holds, whatever the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lastgood import _memory, _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Adapter, Loading, Mismatch, Saved, SavedTensor, Shard, Snapshot, World


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


def _is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


@dataclass(frozen=True)
class LocalPart:
    """The part of a DTensor that this rank holds."""

    tensor: Any
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    #: ``shard`` if no other rank holds it; else ``stored`` on the rank at the beginning of every replicated dimension
    #: of the mesh, and ``witnessed`` on the others.
    role: str

    @property
    def empty(self) -> bool:
        return 0 in self.sizes


class Spread:
    """Over which dimensions of its root mesh a job spreads its parameters.

    With two-dimensional parallelism a parameter may be spread over one dimension alone, by a mesh that knows nothing of
    the other one: all ranks along that other dimension hold the same part. A dimension that no parameter is spread over
    is something else (the stages of a pipeline hold different parameters).
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        self._used: set[int] = set()
        self._known: dict[int, tuple[Any, set[int], list[int]]] = {}
        for tensor in tensors:
            if _is_dtensor(tensor):
                self._used |= self._look(tensor.device_mesh)[1]

    def _look(self, mesh: Any) -> tuple[Any, set[int], list[int]]:
        """The mesh itself, which dimensions of the root it covers, and this rank's place in the root."""
        found = self._known.get(id(mesh))
        if found is None:
            root = mesh._get_root_mesh()
            mine = list(root.get_coordinate() or ())
            covered: set[int] = set()
            for rank in mesh.mesh.flatten().tolist():
                place = (root.mesh == rank).nonzero().flatten().tolist()
                covered |= {
                    d for d, at in enumerate(mine) if len(place) == len(mine) and place[d] != at
                }
            found = self._known[id(mesh)] = (mesh, covered, mine)
        return found

    def role(self, mesh: Any) -> str:
        """Whether ranks outside of ``mesh`` hold the same as those in it, as a role of `LocalPart`."""
        _, covered, mine = self._look(mesh)
        missing = self._used - covered
        if not missing:
            return "shard"
        return "witnessed" if any(mine[d] for d in missing if d < len(mine)) else "stored"


def spread_of(state: MutableMapping[str, Any]) -> Spread:
    """How the parameters of all modules of the state are spread."""
    return Spread(p for module in modules_of(state).values() for p in module.parameters())


def local_part(tensor: Any, path: str, spread: Spread | None = None) -> LocalPart:
    """The part of the DTensor ``tensor`` that this rank holds.

    Raises:
        Invalid: if it is no state (partial sums), or no box of the global tensor.
    """
    mesh, placements, shape = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
    if any(placement.is_partial() for placement in placements):
        raise Invalid(f"{path}: a DTensor with partial sums is no state; redistribute it first")
    local = tensor._local_tensor
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return LocalPart(local, (0,) * len(shape), (0,) * len(shape), "shard")
    rows: dict[int, list[range]] = {dim: [range(size)] for dim, size in enumerate(shape)}
    role = spread.role(mesh) if spread is not None else "shard"
    for axis, placement in enumerate(placements):
        parts, mine = mesh.size(axis), coordinate[axis]
        if placement.is_replicate():
            if parts > 1 and role != "witnessed":
                role = "witnessed" if mine else "stored"
            continue
        # FSDP over tensor parallelism cuts each part of the other mesh dimension.
        groups = getattr(placement, "split_factor", 1)
        cut = [_chunk(group, parts, mine) for group in _groups(rows[placement.dim], groups)]
        rows[placement.dim] = [run for runs in cut for run in runs]
    boxes = [_joined(rows[dim]) for dim in range(len(shape))]
    sizes = tuple(sum(len(run) for run in rows[dim]) for dim in range(len(shape)))
    if sizes != tuple(local.shape) or any(len(runs) > 1 for runs in boxes):
        raise Invalid(
            f"{path}: the part of {list(shape)} that this rank holds by {placements} is no box of it; redistribute it "
            "so that each rank holds consecutive rows"
        )
    offsets = tuple(runs[0].start if runs else 0 for runs in boxes)
    return LocalPart(local, offsets, sizes, role)


def _groups(runs: list[range], groups: int) -> list[list[range]]:
    return [runs] if groups == 1 else [_chunk(runs, groups, i) for i in range(groups)]


def _chunk(runs: list[range], parts: int, mine: int) -> list[range]:
    """Part ``mine`` of the positions in ``runs``, as torch.chunk cuts them."""
    count = sum(len(run) for run in runs)
    width = -(-count // parts)
    begin, end = min(count, mine * width), min(count, (mine + 1) * width)
    cut, passed = [], 0
    for run in runs:
        piece = run[max(0, begin - passed) : max(0, end - passed)]
        cut += [piece] if piece else []
        passed += len(run)
    return cut


def _joined(runs: list[range]) -> list[range]:
    joined: list[range] = []
    for run in runs:
        if joined and joined[-1].stop == run.start:
            joined[-1] = range(joined[-1].start, run.stop)
        else:
            joined.append(run)
    return joined


def shards_of(
    name: str, tensor: Any, path: str, role: str, copy: bool, spread: Spread | None = None
) -> list[Shard]:
    """The part of ``tensor`` that this rank holds; of a DTensor it is what its placements say, whatever ``role``."""
    dtype = _dtype_name(tensor, path)
    if not _is_dtensor(tensor):
        plain = _real(_memory.plain_torch(tensor, path, copy))
        return [_state.whole(name, dtype, plain.shape, _memory.of_torch(plain), role)]
    part = local_part(tensor, path, spread)
    shape = tuple(tensor.shape)
    if part.empty and 0 not in shape:
        return []
    plain = _memory.plain_torch(part.tensor, path, copy)
    memory = _memory.of_torch(plain)
    return [Shard(name, dtype, shape, part.offsets, part.sizes, memory, part.role)]


def _dtype_name(tensor: Any, path: str) -> str:
    # There is no stored name for complex128: it is two float64, in a dimension after the others.
    if tensor.dtype == torch.complex128 and not _is_dtensor(tensor):
        return "F64"
    return _memory.torch_dtype_name(tensor.dtype, path)


def _real(tensor: Any) -> Any:
    return torch.view_as_real(tensor) if tensor.dtype == torch.complex128 else tensor


def stage(
    saved: Saved, name: str, tensor: SavedTensor, world: World, like: Any
) -> tuple[Shard, Callable[[], Any]]:
    """Memory for a tensor of a checkpoint, or for the part of it that ``like`` holds, and how to get the tensor."""
    dtype = _memory.torch_dtype(tensor.dtype)
    if like is not None and _is_dtensor(like):
        part = local_part(like, name)
        memory = torch.empty(part.sizes, dtype=dtype)
        held = _memory.of_torch(memory)
        target = Shard(name, tensor.dtype, tensor.shape, part.offsets, part.sizes, held, "shard")
        return target, lambda: _as_dtensor(memory, like)
    memory = torch.empty(tensor.shape, dtype=dtype)
    role = _state.role_of(saved, name, world)
    target = _state.whole(name, tensor.dtype, tensor.shape, _memory.of_torch(memory), role)
    complex128 = like is not None and like.dtype == torch.complex128

    return target, lambda: torch.view_as_complex(memory) if complex128 else memory


def _as_dtensor(local: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _local(tensor: Any) -> Any:
    return tensor._local_tensor if _is_dtensor(tensor) else tensor


def _fits(component: str, name: str, tensor: Any, saved: SavedTensor) -> str | None:
    shape, dtype = tuple(tensor.shape), _dtype_name(tensor, name)
    if tensor.dtype == torch.complex128:
        shape = (*shape, 2)
    if shape != saved.shape:
        return f"{component}/{name} has shape {list(shape)}, in the checkpoint {list(saved.shape)}"
    if dtype != saved.dtype:
        return f"{component}/{name} is {dtype}, in the checkpoint {saved.dtype}"
    return None


def _swap(live: Any, staged: Any) -> None:
    """Exchanges what ``live`` and ``staged`` hold, so that a second call takes the first back."""
    live = _local(live)
    before = live.detach().to("cpu", copy=True)
    fill(live, staged)
    with torch.inference_mode(staged.is_inference()), torch.no_grad():
        staged.copy_(before)


def fill(live: Any, values: Any) -> None:
    """Puts ``values`` into ``live``, which stays the same tensor."""
    with torch.inference_mode(live.is_inference()), torch.no_grad():
        if torch._debug_has_internal_overlap(live) == 1:
            # Elements of an expanded tensor share memory, and each has a value of its own now.
            live.set_(values.to(live.device, copy=True))
        else:
            live.copy_(values)


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
        guarded = _guarded(self.state) if deferred else set()
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
                snapshot.deferred.append((path, _local(tensor)))
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
                _swap(tensor, _local(make()))
            self._set_flags(set(tree["frozen"]), set(tree["evaluates"]))
            self._set_extra(_tree.decode(tree["extra"], staged_extra.finish(), self.name))

        def undo() -> None:
            for tensor, make in swaps:
                _swap(tensor, _local(make()))
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
            problem = _fits(self.name, name, tensor, saved.tensors[name])
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


def _guarded(state: MutableMapping[str, Any]) -> set[int]:
    """The parameters that only an optimizer of ours changes."""
    parameters: set[int] = set()
    for optimizer in optimizers_of(state):
        for group in optimizer.param_groups:
            parameters.update(id(p) for p in group["params"])
    return parameters


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
        if any(map(_is_dtensor, held)) and not any(map(_is_dtensor, held_by_us)):
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
                    snapshot.deferred.append((path, _local(value)))
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
                like = parameters[name] if _is_dtensor(parameters[name]) else None
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
    if _is_dtensor(value) or (key == "step" and value.ndim == 0 and not on_device):
        return value
    value = value.to(parameter.device)
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
