"""orbax's arguments as components and back."""

from __future__ import annotations

import datetime
import json
from typing import Any

import jax
import numpy
import orbax.checkpoint as ocp

from lastgood import _memory, _state
from lastgood._lastgood import Invalid
from lastgood.jax import Abstract, _pytree
from lastgood.jax._pytree import Tree

_abstract: Any = jax.ShapeDtypeStruct

#: The component of an item that has no name.
SINGLE = "default"

_SAVES = {
    ocp.args.StandardSave: "tree",
    ocp.args.PyTreeSave: "tree",
    ocp.args.ArraySave: "tree",
    ocp.args.JaxRandomKeySave: "tree",
    ocp.args.NumpyRandomKeySave: "numpy_key",
    ocp.args.JsonSave: "json",
}
_RESTORES = {
    ocp.args.StandardRestore: "tree",
    ocp.args.PyTreeRestore: "tree",
    ocp.args.ArrayRestore: "tree",
    ocp.args.JaxRandomKeyRestore: "tree",
    ocp.args.NumpyRandomKeyRestore: "numpy_key",
    ocp.args.JsonRestore: "json",
}


def component_of(name: str, args: Any) -> tuple[_state.Durable, dict[str, str]]:
    """What an item is saved as, and what is told of it.

    Raises:
        Invalid: for arguments of a handler that only orbax knows.
    """
    kind = _SAVES.get(type(args))
    if kind is None:
        raise Invalid(
            f"item {name!r} has arguments of {type(args).__name__}, which need orbax's own handler; give a pytree by "
            "StandardSave or plain values by JsonSave"
        )
    if getattr(args, "save_args", None) is not None:
        raise Invalid(
            f"item {name!r} has save_args, which say how orbax writes files; leave them out"
        )
    item = args.item
    if kind == "json":
        item = {"json": json.dumps(item)}
    handler = ocp.args.get_registered_handler_cls(args)
    told = {"kind": kind, "handler": f"{handler.__module__}.{handler.__qualname__}"}
    return _state.Durable(Tree(item), owner="orbax"), told


def template_of(name: str, kind: str, args: Any) -> Abstract:
    """What an item is restored into.

    Raises:
        Invalid: if the arguments are of another kind than those that saved it, or ask for what is not done.
    """
    if args is None:
        return Abstract(name)
    if type(args) not in _RESTORES or _RESTORES[type(args)] != kind:
        raise Invalid(
            f"item {name!r} was saved as {kind} and cannot be restored by {type(args).__name__}"
        )
    if getattr(args, "transforms", None) or getattr(args, "legacy_transform_fn", None):
        raise Invalid(
            f"item {name!r}: transforms are not done in a restore; change the tree after it"
        )
    item = getattr(args, "item", None) if kind == "tree" else None
    how = getattr(args, "restore_args", None)
    if how is not None and item is not None:
        item = jax.tree.map(
            _asked, how, item, is_leaf=lambda leaf: isinstance(leaf, ocp.RestoreArgs)
        )
    elif how is not None and any(
        getattr(leaf, "sharding", None) is not None for leaf in jax.tree.leaves(how)
    ):
        raise Invalid(
            f"item {name!r}: restore_args with shardings need item=, the abstract tree, beside them"
        )
    if item is not None and hasattr(item, "use_zarr3"):
        item = item.tree
    if item is not None:
        item = jax.tree.map(
            _leaf, item, is_leaf=lambda leaf: isinstance(leaf, ocp.metadata.Metadata)
        )
    return Abstract(name, item, partial=bool(getattr(args, "partial_restore", False)))


def _asked(how: Any, leaf: Any) -> Any:
    """A leaf of an abstract tree with the sharding that orbax's ``ArrayRestoreArgs`` ask for."""
    sharding = getattr(how, "sharding", None)
    if sharding is None and getattr(how, "mesh", None) is not None:
        sharding = jax.sharding.NamedSharding(how.mesh, how.mesh_axes)
    if sharding is None or not hasattr(leaf, "shape"):
        return leaf
    sharding = sharding.to_jax_sharding() if hasattr(sharding, "to_jax_sharding") else sharding
    dtype = how.dtype or leaf.dtype
    return _abstract(leaf.shape, dtype, sharding=sharding)


def _leaf(leaf: Any) -> Any:
    """A leaf of orbax's metadata as one of jax."""
    if isinstance(leaf, ocp.metadata.ScalarMetadata):
        return 0
    if isinstance(leaf, ocp.metadata.ArrayMetadata):
        sharding = leaf.sharding.to_jax_sharding() if leaf.sharding is not None else None
        return _abstract(leaf.shape, leaf.dtype, sharding=sharding)
    return "" if isinstance(leaf, ocp.metadata.Metadata) else leaf


def value_of(kind: str, value: Any) -> Any:
    """A restored item as orbax gives it."""
    if kind == "json":
        return json.loads(value["json"])
    return tuple(value) if kind == "numpy_key" and isinstance(value, list) else value


def metadata_of(directory: Any, name: str, checkpoint: Any, tree: Any) -> Any:
    """orbax's metadata of a tree: shapes and dtypes in dicts and lists."""
    shapes = {
        tensor: tuple(shape) for of, tensor, _, shape, _ in checkpoint.tensors() if of == name
    }
    dtypes = {tensor: dtype for of, tensor, dtype, _, _ in checkpoint.tensors() if of == name}

    def entry(path: str, found: Any) -> Any:
        told: dict[str, Any] = {"name": path, "directory": directory}
        if isinstance(found, dict) and found.get("$") in ("jax", "numpy"):
            if "key" in found:
                key = jax.eval_shape(lambda: jax.random.key(0, impl=found["key"]))
                dtype, shape = key.dtype, shapes[found["n"]][:-1]
            else:
                dtype = _memory.numpy_dtype_called(
                    found.get("dtype") or _memory.numpy_dtype(dtypes[found["n"]]).name
                )
                shape = (
                    shapes[found["n"]][:-1] if dtype.name == "complex128" else shapes[found["n"]]
                )
            return ocp.metadata.ArrayMetadata(shape=shape, sharding=None, dtype=dtype, **told)
        if isinstance(found, str):
            return ocp.metadata.StringMetadata(**told)
        if isinstance(found, (bool, int, float)):
            return ocp.metadata.ScalarMetadata(dtype=numpy.asarray(found).dtype, **told)
        return {} if found == {} else [] if found == [] else None

    values = {path: entry(path, found) for path, found in _pytree.named(tree).items()}
    plain = _pytree.nested(tree, values)
    try:
        from orbax.checkpoint._src.metadata.tree import build_default_tree_metadata
    except ImportError:
        return plain
    return build_default_tree_metadata(plain)


def step_metadata(told: dict[str, Any], items: dict[str, Any], committed: datetime.datetime) -> Any:
    """orbax's ``StepMetadata``: of ``items`` what `metadata_of` gives, and what was told with the save."""
    started = datetime.datetime.fromisoformat(told["started"])
    return ocp.metadata.StepMetadata(
        item_handlers={name: item["handler"] for name, item in told["items"].items()},
        item_metadata=items[SINGLE] if told["single"] else ocp.args.Composite(**items),
        metrics=told["metrics"] or {},
        init_timestamp_nsecs=int(started.timestamp() * 1e9),
        commit_timestamp_nsecs=int(committed.timestamp() * 1e9),
        custom_metadata=told["custom"],
    )


class Told:
    """Takes the stored tree of a component, and none of its bytes."""

    def __init__(self) -> None:
        self.value: Any = None

    def capture(self, world: _state.World, deferred: bool) -> _state.Snapshot:
        raise Invalid("there is nothing to save in a description")

    def load(self, saved: _state.Saved, world: _state.World) -> _state.Loading:
        self.value = saved.tree(world)
        return _state.Loading([], lambda: None, lambda: None)
