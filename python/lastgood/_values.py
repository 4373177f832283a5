"""One nested value as a whole checkpoint, for libraries that hand over a dict and want it back without having one."""

from __future__ import annotations

import json
from typing import Any

from lastgood import _lastgood, _state, _tree
from lastgood._handle import SaveHandle
from lastgood._lastgood import Incompatible, Invalid
from lastgood._run import Run
from lastgood._state import Saved, SavedTensor, World


def save(run: Run, step: int, component: str, owner: str, value: Any) -> SaveHandle:
    """Saves ``value``; its arrays are copied in the call.

    Raises:
        Invalid: naming what cannot be stored without pickle, or could not be made again, with the remedy.
        Overloaded, Fenced, Conflict, Closed: as `Run.save`.
    """
    encoded = _tree.encode(value, component)
    _refuse_named_tuples(encoded.tree, component)
    capture = _lastgood.Capture()
    number = capture.component(component, owner, "durable")
    snapshot = _state.Snapshot(encoded.tree)
    snapshot.add_arrays(encoded.arrays, component, "same", deferred=False)
    snapshot.declare(capture, number, run.rank)
    capture.metadata("lastgood.python", _lastgood.__version__)
    # What led to the checkpoint is recorded before it.
    run._recorder_flush()
    return SaveHandle(run, run._native.save(step, capture, False))


def _refuse_named_tuples(tree: Any, path: str) -> None:
    """There is nothing to take a named tuple's class from when the value is read."""
    stack = [(tree, path)]
    while stack:
        node, path = stack.pop()
        if isinstance(node, list):
            stack += [(item, f"{path}[{i}]") for i, item in enumerate(node)]
        elif isinstance(node, dict):
            if node.get("$") == "namedtuple":
                raise Invalid(
                    f"{path} is a named tuple {node['n']}: keep a dict or a plain tuple in its place"
                )
            stack += [(item, f"{path}[{key!r}]") for key, item in node.items()]


def load(source: Any, checkpoint: Any, component: str) -> Any:
    """The value that was saved in ``checkpoint``. ``source`` reads: a native ``Run`` or ``Reader``.

    Raises:
        Corrupt: if a byte is not what was saved.
        Incompatible: if it holds no such value, or what this process does not know.
    """
    if component not in {name for name, _, _ in checkpoint.components()}:
        raise Incompatible(
            f"checkpoint {checkpoint.id[:16]} of step {checkpoint.step} holds no {component!r}: another library saved "
            "to this run; give each a run of its own"
        )
    first = _lastgood.Targets()
    number = first.blob(component, f"{_state.TREE}@rank0")
    source.read(checkpoint, first)
    try:
        tree = json.loads(first.take(number))["tree"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Incompatible(
            f"{component} of checkpoint {checkpoint.id[:16]} has no tree: {error!r}"
        ) from None
    tensors = {
        name: SavedTensor(dtype, tuple(shape))
        for of, name, dtype, shape, _ in checkpoint.tensors()
        if of == component and dtype != "BLOB"
    }
    world = World()
    saved = Saved(component, 1, {0: tree}, tensors, {})
    try:
        staged = _state.stage(saved, _tree.arrays_of(tree), world, {})
    except _state.Mismatch as mismatch:
        raise Incompatible(f"checkpoint {checkpoint.id[:16]}: {mismatch}") from None
    targets = _lastgood.Targets()
    for target in staged.targets:
        _state.ask(targets, component, target.name, target)
    source.read(checkpoint, targets)
    return _tree.decode(tree, staged.finish(), component)
