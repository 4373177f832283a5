"""Pytrees that hold jax arrays, as components: named leaves, whatever the containers are.

What is stored is a list of leaves, each with its path, so that the containers themselves (dataclasses, named tuples,
modules) need no name in the checkpoint: a restore takes the live ones, and puts the stored leaves in their places.
"""

from __future__ import annotations

import json
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy

from lastgood import _memory, _state, _tree
from lastgood._lastgood import Invalid
from lastgood._state import Durable, Loading, Mismatch, Saved, Shard, Snapshot, World
from lastgood.jax import _arrays

#: What a stored tree of this file is tagged with.
TAG = "jax.tree"

#: A path in a tree: ``k`` and a key of a dict, ``i`` and a place in a sequence, ``a`` and an attribute.
Path = list[list[Any]]


def nnx() -> Any:
    """flax.nnx if the program has loaded it."""
    return sys.modules.get("flax.nnx")


def is_nnx(value: Any) -> bool:
    """True for a module, an optimizer, a metric or another stateful object of flax.nnx."""
    loaded = nnx()
    return loaded is not None and isinstance(value, (loaded.Pytree, loaded.Object))


def _is_leaf(value: Any) -> bool:
    """True for what is stored as a whole: leaves, what has none below it (None, ``{}``, ``EmptyState()``), and objects
    of flax.nnx, which are opened by flax."""
    return is_nnx(value) or not jax.tree_util.tree_leaves(value)


def _path(keys: Any) -> Path:
    path: Path = []
    for key in keys:
        if isinstance(key, jax.tree_util.SequenceKey):
            path.append(["i", key.idx])
        elif isinstance(key, jax.tree_util.GetAttrKey):
            path.append(["a", key.name])
        else:
            found = getattr(key, "key", key)
            path.append(["k", found if isinstance(found, (str, int)) else str(found)])
    return path


@dataclass
class Leaves:
    """The leaves of a tree by name, and how they become a tree again."""

    treedef: Any
    names: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    #: For each place of the tree its leaf's name, or the object of flax.nnx there, its state's treedef and names.
    slots: list[str | tuple[Any, Any, list[str]]] = field(default_factory=list)

    def add(self, path: Path, value: Any) -> str:
        name = ".".join(str(key) for _, key in path) or "value"
        while name in self.values:
            name += "'"
        self.names.append(name)
        self.values[name] = value
        self.paths[name] = path
        return name

    def build(self, values: dict[str, Any]) -> Any:
        """The tree with other leaves; objects of flax.nnx are updated in place."""
        leaves: list[Any] = []
        for slot in self.slots:
            if isinstance(slot, str):
                leaves.append(values[slot])
                continue
            module, treedef, names = slot
            nnx().update(module, jax.tree_util.tree_unflatten(treedef, [values[n] for n in names]))
            leaves.append(module)
        return jax.tree_util.tree_unflatten(self.treedef, leaves)


def leaves_of(tree: Any) -> Leaves:
    """The leaves of ``tree``."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)
    found = Leaves(treedef)
    for keys, value in pairs:
        path = _path(keys)
        if not is_nnx(value):
            found.slots.append(found.add(path, value))
            continue
        inner, inner_def = jax.tree_util.tree_flatten_with_path(nnx().state(value))
        names = []
        for inner_keys, leaf in inner:
            below = _path(inner_keys)
            # The last step is from a Variable to its value, which says nothing to a reader.
            below = below[:-1] if below and below[-1][0] == "a" else below
            names.append(found.add(path + below, leaf))
        found.slots.append((value, inner_def, names))
    return found


def _is_code(value: Any) -> bool:
    return callable(value) and not hasattr(value, "dtype")


def _is_empty(value: Any) -> bool:
    """True for a container of its own kind without leaves: there is nothing to store in it."""
    plain = value is None or type(value) in (dict, list, tuple)
    return not plain and not jax.tree_util.tree_leaves(value)


def node(encoder: Any, name: str, value: Any) -> Any:
    """What the tree tells of leaf ``name``; arrays go to the encoder's."""
    if _is_empty(value):
        return {"$": "empty"}
    if _is_code(value):
        return {"$": "code"}
    return encoder.node(value, (name,), 0)


class PytreeAdapter(_state.ValueAdapter):
    """A pytree that holds jax arrays. Dicts, lists, and objects of flax.nnx are changed in place; any other tree is
    replaced in the mapping that was given to `lg.open`, since jax arrays cannot be changed."""

    def capture(self, world: World, deferred: bool) -> Snapshot:
        leaves = leaves_of(self.declared.obj)
        arrays: dict[str, Any] = {}
        encoder = _tree.Encoder(arrays, self.name)
        nodes = [[leaves.paths[n], node(encoder, n, leaves.values[n])] for n in leaves.names]
        role = self.role if world.size > 1 else "same"
        snapshot = Snapshot({"$": TAG, "v": nodes})
        plain = {}
        for name, array in arrays.items():
            if not _memory.is_jax(array):
                plain[name] = array
                continue
            where = f"{self.name}[{name!r}]"
            parts = world.size == 1
            snapshot.shards += _arrays.shards_of(
                name, array, where, role, copy=deferred, parts=parts
            )
        snapshot.add_arrays(plain, self.name, role, deferred)
        return snapshot

    def load(self, saved: Saved, world: World) -> Loading:
        tree = saved.tree(world)
        live = leaves_of(self.declared.obj)
        there = named(tree if is_tree(tree) else from_plain(tree))
        problems = self._compare(saved, live, there)
        if problems:
            raise Mismatch(problems)
        staged = Restoring(saved, there, world, live.values)
        kept = {n: _state._clone(v) if _is_host(v) else v for n, v in live.values.items()}

        def put(values: dict[str, Any]) -> None:
            merged = {
                n: _state._in_place(live.values[n], v) if _is_host(v) else v
                for n, v in values.items()
            }
            self.replace(_refill(self.declared.obj, live.build(merged)))

        return Loading(staged.targets, lambda: put(staged.finish()), lambda: put(kept))

    def _compare(self, saved: Saved, live: Leaves, there: dict[str, Any]) -> list[str]:
        problems = []
        for name, value in live.values.items():
            if name not in there:
                problems.append(f"{self.name}/{name} is not in the checkpoint")
                continue
            problem = unfit(saved, name, value, there[name])
            problems += [f"{self.name}/{name} {problem}"] if problem else []
        extra = [name for name in there if name not in live.values]
        return problems + [
            f"{self.name}/{name} is only in the checkpoint" for name in sorted(extra)
        ]


def _is_host(value: Any) -> bool:
    return _memory.is_numpy(value) or _memory.is_torch(value)


def is_tree(tree: Any) -> bool:
    """True for a stored tree of this file."""
    return isinstance(tree, dict) and tree.get("$") == TAG


def named(tree: Any) -> dict[str, Any]:
    """The nodes of a stored tree by the leaf's name, which is made from its path as when it was saved."""
    names = Leaves(None)
    return {names.add(path, None): found for path, found in tree["v"]}


def from_plain(tree: Any) -> Any:
    """The stored tree of a value that held no jax array when it was saved, as one of this file."""
    leaves: list[Any] = []

    def walk(path: Path, found: Any) -> None:
        kind = found.get("$") if isinstance(found, dict) else None
        inside = found if kind is None else found.get("v")
        steps: list[tuple[list[Any], Any]] = []
        if isinstance(found, dict) and kind in (None, "namedtuple"):
            steps = [(["k" if kind is None else "a", key], value) for key, value in inside.items()]
        elif isinstance(found, list) or kind == "tuple":
            steps = [(["i", i], value) for i, value in enumerate(inside)]
        if not steps:
            leaves.append([path, found])
        for step, value in steps:
            walk([*path, step], value)

    walk([], tree)
    return {"$": TAG, "v": leaves}


def unfit(saved: Saved, name: str, value: Any, found: Any) -> str | None:
    """Why leaf ``found`` of a checkpoint does not fit where ``value`` is, or None."""
    kind = found.get("$") if isinstance(found, dict) else None
    if kind in ("jax", "numpy", "torch"):
        tensor = saved.tensors.get(found["n"])
        if tensor is None:
            return "is missing in the checkpoint"
        shape = list(getattr(value, "shape", ())) if hasattr(value, "dtype") else None
        if shape is None:
            number = isinstance(value, (bool, int, float, complex)) and tensor.shape == ()
            return None if number else f"is a {type(value).__name__}, in the checkpoint an array"
        if "key" in found or (kind == "jax" and _memory.is_jax(value) and _arrays.is_key(value)):
            return _unfit_key(value, found)
        if _memory.is_torch(value) or kind == "torch":
            return None
        dtype = found.get("dtype") or _memory.numpy_dtype(tensor.dtype).name
        stored = list(tensor.shape[:-1]) if dtype == "complex128" else list(tensor.shape)
        if shape != stored:
            return f"has shape {shape}, in the checkpoint {stored}"
        here = numpy.dtype(value.dtype).name
        return None if here == dtype else f"is {here}, in the checkpoint {dtype}"
    if kind in ("code", "empty"):
        same = _is_code(value) if kind == "code" else _is_empty(value)
        return None if same else f"is a {type(value).__name__}, in the checkpoint {kind}"
    if hasattr(value, "dtype") and getattr(value, "shape", None) != ():
        return "is an array, in the checkpoint a plain value"
    if isinstance(found, (dict, list)) and kind is None and type(found) is not type(value):
        return f"is a {type(value).__name__}, in the checkpoint an empty {type(found).__name__}"
    if (found is None) != (value is None) or _is_code(value) or _is_empty(value):
        return f"is {type(value).__name__}, in the checkpoint {json.dumps(found)[:40]}"
    return None


def _unfit_key(value: Any, found: Any) -> str | None:
    is_key = hasattr(value, "dtype") and _arrays.is_key(value)
    if "key" not in found or not is_key:
        here, there = (
            "random keys" if yes else "no random keys" for yes in (is_key, "key" in found)
        )
        return f"holds {here}, in the checkpoint {there}"
    impl = str(jax.random.key_impl(value)) if isinstance(value, jax.Array) else found["key"]
    return None if impl == found["key"] else f"has {impl} keys, in the checkpoint {found['key']}"


class Restoring:
    """Memory for the leaves of a stored tree, and what they are once it is filled. Where ``like`` has a jax array or
    a ``ShapeDtypeStruct`` under the same name, an array becomes one like it."""

    def __init__(
        self, saved: Saved, there: dict[str, Any], world: World, like: dict[str, Any]
    ) -> None:
        self.component = saved.component
        self.there = there
        self.like = like
        self.targets: list[Shard] = []
        self._jax: dict[str, _arrays.Staged] = {}
        kinds: dict[str, str] = {}
        problems: list[str] = []
        for name, found in there.items():
            if not (isinstance(found, dict) and found.get("$") in ("jax", "numpy")):
                kinds.update(_tree.arrays_of(found))
                continue
            if found["n"] not in saved.tensors:
                problems.append(f"{saved.component}/{name} is missing in the checkpoint")
                continue
            value = like.get(name)
            # Without a sharding a ShapeDtypeStruct says no more than that it is an array.
            plain = found["$"] == "numpy" and not _memory.is_jax(value)
            if plain and getattr(value, "sharding", None) is None:
                kinds[found["n"]] = "numpy"
                continue
            node = {"dtype": _memory.numpy_dtype(saved.tensors[found["n"]].dtype).name, **found}
            try:
                self._jax[name] = _arrays.stage(saved, found["n"], node, world, value)
            except Mismatch as mismatch:
                problems += mismatch.problems
        if problems:
            raise Mismatch(problems)
        self._other = _state.stage(saved, kinds, world, {})
        self.targets = [t for staged in self._jax.values() for t in staged.targets]
        self.targets += self._other.targets

    def finish(self) -> dict[str, Any]:
        """The leaves by name."""
        other = self._other.finish()
        values = {}
        for name, found in self.there.items():
            if name in self._jax:
                values[name] = self._jax[name].make()
            elif isinstance(found, dict) and found.get("$") in ("code", "empty"):
                values[name] = self.like.get(name)
            else:
                values[name] = _tree.decode(found, other, self.component, self.like.get(name))
        return values


def nested(tree: Any, values: dict[str, Any]) -> Any:
    """The leaves of a stored tree in dicts and lists: what a tree is without its own containers."""
    root: dict[Any, Any] = {}
    for (path, _), value in zip(tree["v"], values.values(), strict=True):
        at: Any = root
        for step in [["k", ""], *path][:-1]:
            at = at.setdefault(tuple(step), {})
        at[tuple((path or [["k", ""]])[-1])] = value
    if any(not path for path, _ in tree["v"]):
        return next(iter(values.values()))
    return _plain(root.get(("k", ""), {}))


def _plain(at: Any) -> Any:
    if not isinstance(at, dict) or not all(type(step) is tuple for step in at):
        return at
    if at and all(kind == "i" for kind, _ in at):
        return [_plain(value) for _, value in sorted(at.items())]
    return {key: _plain(value) for (_, key), value in at.items()}


def _refill(live: Any, value: Any) -> Any:
    """``value`` in the dicts and lists of ``live``, whose order and identity stay."""
    if type(live) is not type(value) or live is value:
        return value
    if isinstance(live, dict):
        for key in live:
            live[key] = _refill(live[key], value[key])
        return live
    if isinstance(live, list):
        live[:] = [_refill(old, new) for old, new in zip(live, value, strict=True)]
        return live
    return value


class Tree:
    """A pytree that is saved as one, whether or not it holds a jax array."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree


def adapter_for(name: str, state: MutableMapping[str, Any], obj: Any) -> PytreeAdapter | None:
    """The adapter for ``obj`` if it is a pytree that holds a jax array, else None.

    Raises:
        Invalid: for a ``ShapeDtypeStruct``, which has no values.
    """
    if isinstance(obj, Tree):
        return PytreeAdapter(name, {}, Durable(obj.tree))
    if is_nnx(obj):
        return PytreeAdapter(name, state, _declared(state, name, obj))
    leaves = jax.tree_util.tree_leaves(obj, is_leaf=is_nnx)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise Invalid(f"{name} holds a ShapeDtypeStruct, which has no values; give the arrays")
    if any(_memory.is_jax(leaf) or is_nnx(leaf) for leaf in leaves):
        return PytreeAdapter(name, state, _declared(state, name, obj))
    return None


def _declared(state: MutableMapping[str, Any], name: str, obj: Any) -> Durable:
    found = state.get(name)
    return found if isinstance(found, Durable) else Durable(obj)
