"""What a run saves: components, and the adapters that know how each kind of object is captured and restored.

An adapter turns an object into a [`Snapshot`], and plans how a checkpoint's bytes get back into it. Planning changes
nothing: everything that does not fit is a named problem before the first live object is touched. Then all bytes are
read into memory of their own and verified, and only then each `Loading` is applied, with a way back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from lastgood import _lastgood, _memory, _tree
from lastgood._declared import Declared as Declared
from lastgood._declared import Derived as Derived
from lastgood._declared import Durable as Durable
from lastgood._declared import Volatile as Volatile
from lastgood._declared import as_declared as as_declared
from lastgood._memory import Memory

T = TypeVar("T")

#: The name of the component with the generators' states.
RNG = "rng"
#: The stored name of a component's tree, before ``@rankN``.
TREE = "tree"
#: How many tensors are named in one call: what is made for it is gone before the garbage collector counts it among what
#: stays, and looks through everything that the process has.
_ROWS = 256


@dataclass(frozen=True)
class World:
    """This process among those that train one model together."""

    rank: int = 0
    size: int = 1


class Shard(NamedTuple):
    """One shard of a tensor, or the memory for a part of one.

    ``shape`` is global; ``offsets`` and ``sizes`` say which part ``memory`` holds. ``role`` is ``same`` (every rank
    holds these bytes: one stores them), ``shard`` (a part that nobody else holds), ``stored`` (a part that others hold
    as well, and this rank stores), ``witnessed`` (one that another of them stores) or ``own`` (each rank stores its own
    whole, as ``name@rankN``).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    memory: Memory
    role: str = "same"


def whole(name: str, dtype: str, shape: Iterable[int], memory: Memory, role: str) -> Shard:
    """A shard that is the whole tensor."""
    shape = tuple(shape)
    return Shard(name, dtype, shape, (0,) * len(shape), shape, memory, role)


def ask(targets: Any, component: str, name: str, into: Shard) -> None:
    """Asks for what is stored under ``name``, to be read into the memory of ``into``, unless it is there already."""
    memory = into.memory
    if isinstance(memory.owner, _lastgood.Taken):
        return
    box = (into.shape, into.offsets, into.sizes)
    targets.tensor(component, name, into.dtype, *box, memory.address, memory.bytes, memory.owner)


class Columns(NamedTuple):
    """What is known of whole tensors beside their names, each list in the order of the names."""

    dtypes: list[str]
    shapes: list[tuple[int, ...]]
    addresses: list[int]
    sizes: list[int]
    owners: list[Any]


class Wholes:
    """Whole tensors of one role: a state has many, and a call for each would cost more than their bytes.

    Their memory is that of the live objects. If it ``changes``, the save copies it within its call; else it stays as it
    is until the save has copied it.
    """

    def __init__(self, role: str, *, changes: bool) -> None:
        self.role = role
        self.changes = changes
        self.names: list[str] = []
        self._columns = Columns([], [], [], [], [])

    def add(self, name: str, dtype: str, shape: tuple[int, ...], memory: Memory) -> None:
        """Adds one that is ``memory``."""
        self.names.append(name)
        columns = self._columns
        columns.dtypes.append(dtype)
        columns.shapes.append(shape)
        columns.addresses.append(memory.address)
        columns.sizes.append(memory.bytes)
        columns.owners.append(memory.owner)

    def columns(self, rows: slice) -> Columns:
        """What is known of those in ``rows``."""
        dtypes, shapes, addresses, sizes, owners = self._columns
        return Columns(dtypes[rows], shapes[rows], addresses[rows], sizes[rows], owners[rows])


@dataclass
class Snapshot:
    """A component at one step: JSON, shards, and which names are the same memory as which."""

    tree: _tree.Json = None
    #: Their memory stays as it is until the save has copied it.
    shards: list[Shard] = field(default_factory=list)
    wholes: list[Wholes] = field(default_factory=list)
    ties: dict[str, str] = field(default_factory=dict)
    #: What is copied after the call, names and tensors: it must not be changed until then.
    deferred: list[tuple[list[str], list[Any]]] = field(default_factory=list)
    #: What optimizers did in their last step.
    updates: list[Any] = field(default_factory=list)

    def add_arrays(self, arrays: dict[str, Any], where: str, role: str, deferred: bool) -> None:
        """Arrays of any framework, as they are in the call of the save, whose other memory may be ``deferred``. A
        DTensor is a shard whatever ``role`` says."""
        torch = {name: array for name, array in arrays.items() if _memory.is_torch(array)}
        if torch:
            from lastgood.torch import _tensors

            self.shards += _tensors.add_tensors(self.wholes, torch, where, role, deferred)
        wholes = Wholes(role, changes=True)
        self.wholes.append(wholes)
        for name, array in arrays.items():
            if name in torch:
                continue
            if _memory.is_jax(array):
                from lastgood import jax as lg_jax

                path = f"{where}[{name!r}]"
                self.shards += lg_jax.shards_of(name, array, path, role, copy=deferred)
            else:
                path = f"{where}[{name!r}]"
                plain = _memory.plain_numpy(array, path, copy=False)
                dtype = _memory.numpy_dtype_name(plain.dtype, path)
                wholes.add(name, dtype, plain.shape, _memory.of_numpy(plain))

    def declare(self, capture: Any, component: int, rank: int) -> None:
        """Names everything in a native capture. What each rank stores for itself is ``name@rankN`` there."""
        own: list[str] = []

        def stored(name: str, role: str) -> str:
            if role != "own":
                return name
            own.append(name)
            return f"{name}@rank{rank}"

        for wholes in self.wholes:
            names = wholes.names
            if wholes.role == "own":
                names = [stored(name, "own") for name in names]
            for begin in range(0, len(names), _ROWS):
                rows = slice(begin, begin + _ROWS)
                columns = wholes.columns(rows)
                capture.wholes(component, names[rows], *columns, wholes.role, wholes.changes)
        for shard in self.shards:
            capture.tensor(
                component,
                stored(shard.name, shard.role),
                shard.dtype,
                shard.shape,
                shard.offsets,
                shard.sizes,
                *shard.memory,
                shard.role,
            )
        for name, of in self.ties.items():
            capture.tied(component, name, of)
        for told in self.updates:
            tensors = (told.weights, told.firsts, told.seconds)
            capture.updates(told.kind, told.numbers, told.steps, *tensors)
        capture.blob(component, TREE, stored_tree({"tree": self.tree, "own": own}), False)


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a checkpoint: dtype and global shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass
class Saved:
    """What a checkpoint holds of one component. ``trees`` are by rank: only this rank's if the world is as large as
    it was, else all. ``tensors`` are by stored name, without those of other ranks' own."""

    component: str
    world_size: int
    trees: dict[int, _tree.Json]
    tensors: dict[str, SavedTensor]
    #: For each tensor that every rank stored for itself, the number of ranks that did.
    own: dict[str, int]
    #: What a person should know, for the report.
    notices: list[str] = field(default_factory=list)
    #: What a crash has left in memory, if anything can be taken from there.
    taking: Any = None

    def take(self, name: str, part: tuple[Iterable[int], Iterable[int]]) -> Any:
        """The memory of the part (offsets, sizes) of a tensor as a crash has left it; None if it must be read."""
        if self.taking is None:
            return None
        return self.taking.tensor(self.component, name, *map(list, part))

    def tree(self, world: World) -> _tree.Json:
        """The tree for this rank.

        Raises:
            Mismatch: if the ranks' trees differ and the world has another size now.
        """
        if world.rank in self.trees and self.world_size == world.size:
            return self.trees[world.rank]
        first = self.trees[min(self.trees)]
        if all(tree == first for tree in self.trees.values()):
            return first
        raise Mismatch(
            [
                f"component {self.component!r} differs between the {self.world_size} ranks that saved it, and there "
                f"are {world.size} now: nothing says which values each gets; save a state that is the same on all"
            ]
        )


class Mismatch(Exception):
    """A checkpoint does not fit the live objects: one line for each problem. Never leaves the package."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass
class Loading:
    """How one component is restored: memory to fill, then ``apply``; ``undo`` takes it back."""

    targets: list[Shard]
    apply: Callable[[], Any]
    undo: Callable[[], Any]
    #: Generators are restored after everything else: what builds or loads objects may draw from them.
    last: bool = False


class Adapter(Protocol):
    """How a kind of object is captured and restored."""

    def capture(self, world: World, deferred: bool) -> Snapshot:
        """The object's state now. With ``deferred``, memory that is known to stay unchanged until the optimizer's
        next step may be given as it is, and is copied later; everything else is copied here."""

    def load(self, saved: Saved, world: World) -> Loading:
        """Plans a restore, and changes nothing.

        Raises:
            Mismatch: naming everything that does not fit.
        """


class Look:
    """The state while it is saved or a restore of it is planned. What is found out of it is kept for that long, since
    every optimizer asks what all modules hold, and walks over many modules are slow."""

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self.state = state
        self._found: dict[Any, Any] = {}

    def once(self, find: Callable[[Look], T]) -> T:
        """What ``find`` finds in this."""
        if find not in self._found:
            self._found[find] = find(self)
        found: T = self._found[find]
        return found


def adapter_for(name: str, look: Look, declared: Durable) -> Adapter:
    """The adapter for the object of component ``name``.

    Raises:
        Invalid: if it can be stored by none, naming the remedy.
    """
    obj = declared.obj
    if sys.modules.get("torch") is not None:
        from lastgood.torch import _state as torch_state

        found = torch_state.adapter_for(name, look, obj)
        if found is not None:
            return found
    from lastgood import _rng

    generator = _rng.adapter_for(name, obj)
    if generator is not None:
        return generator
    from lastgood import data

    loader = data.adapt(obj)
    if loader is not None:
        return StatefulAdapter(name, loader, declared.ranks)
    if hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
        return StatefulAdapter(name, obj, declared.ranks)
    if sys.modules.get("jax") is not None:
        from lastgood import jax as lg_jax

        tree = lg_jax.adapter_for(name, look.state, obj)
        if tree is not None:
            return tree
    return ValueAdapter(name, look.state, declared)


@dataclass
class _Staged:
    """Memory for the arrays of a tree, and what they are once it is filled."""

    targets: list[Shard] = field(default_factory=list)
    arrays: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def finish(self) -> dict[str, Any]:
        return {name: make() for name, make in self.arrays.items()}


def stage(saved: Saved, kinds: dict[str, str], world: World, like: dict[str, Any]) -> _Staged:
    """Memory for the arrays that a tree names. ``like`` are live arrays of the same names: a DTensor among them says
    which part this rank wants.

    Raises:
        Mismatch: if the checkpoint lacks one.
    """
    staged = _Staged()
    problems = []
    for name, kind in kinds.items():
        if name not in saved.tensors:
            problems.append(f"{saved.component}/{name} is missing in the checkpoint")
            continue
        tensor = saved.tensors[name]
        if kind == "torch":
            from lastgood.torch import _tensors

            target, make = _tensors.stage(saved, name, tensor, world, like.get(name))
        else:
            target, make = _stage_numpy(saved, name, tensor, world, kind)
        staged.targets.append(target)
        staged.arrays[name] = make
    if problems:
        raise Mismatch(problems)
    return staged


def role_of(saved: Saved, name: str, world: World) -> str:
    """Whether ``name`` is read as this rank's own or as what all ranks share.

    Raises:
        Mismatch: if every rank stored its own and there are other ranks now.
    """
    ranks = saved.own.get(name)
    if ranks is None:
        return "same"
    if ranks == world.size:
        return "own"
    raise Mismatch(
        [
            f"{saved.component}/{name}: each of {ranks} ranks stored its own, and there are {world.size} now; if all "
            "hold the same, save it as lg.Durable(…, ranks='same')"
        ]
    )


def _stage_numpy(
    saved: Saved, name: str, tensor: SavedTensor, world: World, kind: str
) -> tuple[Shard, Callable[[], Any]]:
    import numpy

    array = numpy.empty(tensor.shape, _memory.numpy_dtype(tensor.dtype))
    role = role_of(saved, name, world)
    target = whole(name, tensor.dtype, tensor.shape, _memory.of_numpy(array), role)

    # The tree says what jax arrays become of it.
    return target, lambda: array


class StatefulAdapter:
    """Objects with ``state_dict`` and ``load_state_dict``: loaders, schedulers, scalers, the user's own."""

    def __init__(self, name: str, obj: Any, ranks: str = "auto") -> None:
        self.name = name
        self.obj = obj
        self.role = "same" if ranks == "same" else "own"

    def capture(self, world: World, deferred: bool) -> Snapshot:
        encoded = _tree.encode(self.obj.state_dict(), self.name)
        snapshot = Snapshot(encoded.tree)
        role = self.role if world.size > 1 else "same"
        snapshot.add_arrays(encoded.arrays, self.name, role, deferred)
        return snapshot

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        before = _tree.encode(self.obj.state_dict(), self.name)
        staged = stage(saved, _tree.arrays_of(tree), world, before.arrays)

        def apply() -> None:
            self.obj.load_state_dict(_tree.decode(tree, staged.finish(), self.name))

        def undo() -> None:
            self.obj.load_state_dict(_tree.decode(before.tree, kept, self.name))

        kept = {name: _clone(array) for name, array in before.arrays.items()}
        return Loading(staged.targets, apply, undo)


def _clone(array: Any) -> Any:
    if _memory.is_torch(array):
        return array.detach().clone()
    return array if _memory.is_jax(array) else array.copy()


class ValueAdapter:
    """Plain values and nested containers of arrays. Dicts and lists are changed in place, and so are the torch
    tensors and numpy arrays in them; everything else is replaced in the container that holds it, at last in the
    mapping that was given to `lg.open`."""

    def __init__(self, name: str, state: MutableMapping[str, Any], declared: Durable) -> None:
        self.name = name
        self.state = state
        self.declared = declared
        self.role = "same" if declared.ranks == "same" else "own"

    def capture(self, world: World, deferred: bool) -> Snapshot:
        encoded = _tree.encode(self.declared.obj, self.name)
        snapshot = Snapshot(encoded.tree)
        role = self.role if world.size > 1 else "same"
        snapshot.add_arrays(encoded.arrays, self.name, role, deferred)
        return snapshot

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        if isinstance(tree, dict) and tree.get("$") == "jax.tree":
            # A value of Python at the start of a run may be a jax array later.
            from lastgood import jax as lg_jax

            return lg_jax.PytreeAdapter(self.name, self.state, self.declared).load(saved, world)
        live = _tree.encode(self.declared.obj, self.name)
        kinds = _tree.arrays_of(tree)
        self.check(saved, live, kinds)
        staged = stage(saved, kinds, world, live.arrays)
        kept = {name: _clone(array) for name, array in live.arrays.items()}

        def put(tree: _tree.Json, arrays: dict[str, Any]) -> None:
            merged = {n: _in_place(live.arrays.get(n), array) for n, array in arrays.items()}
            value = _tree.decode(tree, merged, self.name, self.declared.obj)
            self.replace(_refill(self.declared.obj, value))

        return Loading(
            staged.targets, lambda: put(tree, staged.finish()), lambda: put(live.tree, kept)
        )

    def check(self, saved: Saved, live: _tree.Encoded, kinds: dict[str, str]) -> None:
        problems = []
        for name, array in live.arrays.items():
            if name not in kinds:
                problems.append(f"{self.name}/{name} is not in the checkpoint")
                continue
            tensor = saved.tensors.get(name)
            if tensor is None:
                continue
            dtype, shape = stored_form(array, name)
            if shape != tensor.shape:
                problems.append(
                    f"{self.name}/{name} has shape {list(shape)}, in the checkpoint {list(tensor.shape)}"
                )
            elif dtype != tensor.dtype:
                problems.append(f"{self.name}/{name} is {dtype}, in the checkpoint {tensor.dtype}")
        extra = sorted(set(kinds) - set(live.arrays)) if live.arrays else []
        problems += [f"{self.name}/{name} is only in the checkpoint" for name in extra]
        if problems:
            raise Mismatch(problems)

    def replace(self, value: Any) -> None:
        if value is self.declared.obj:
            return
        self.declared.obj = value
        if self.state.get(self.name) is not self.declared:
            self.state[self.name] = value


def stored_form(array: Any, path: str) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape that an array is stored with."""
    if _memory.is_jax(array):
        from lastgood import jax as lg_jax

        return lg_jax.stored(array, path)
    if _memory.is_torch(array):
        if "dtype" in _memory.told(array):
            return "F64", (*array.shape, 2)
        return _memory.torch_dtype_name(array.dtype, path), tuple(array.shape)
    import numpy

    return _memory.numpy_dtype_name(numpy.dtype(array.dtype), path), tuple(array.shape)


def _in_place(live: Any, array: Any) -> Any:
    """``array``'s elements in ``live``, if they fit there; else ``array``."""
    if live is None or tuple(live.shape) != tuple(array.shape):
        return array
    if _memory.is_torch(live) and _memory.is_torch(array):
        from lastgood.torch import _tensors

        _tensors.fill(live, array)
        return live
    if _memory.is_numpy(live) and hasattr(live, "setflags") and live.shape and live.flags.writeable:
        live[...] = array
        return live
    return array


def _refill(live: Any, value: Any) -> Any:
    """``value`` in the containers of ``live`` where they are of its type, since others may hold them too."""
    if type(live) is not type(value):
        return value
    if isinstance(live, dict):
        merged = {k: _refill(live.get(k), v) for k, v in value.items()}
        live.clear()
        live.update(merged)
        return live
    if isinstance(live, list):
        old = [*live, *([None] * (len(value) - len(live)))]
        live[:] = [_refill(o, v) for o, v in zip(old, value, strict=False)]
        return live
    return value


def stored_tree(tree: _tree.Json) -> bytes:
    """The bytes of a tree."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
