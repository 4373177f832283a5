"""Saving and restoring pytrees of jax arrays, sharded over any number of devices and processes.

In a training loop, give the trees to `lastgood.open`; `save` and `restore` here are for one tree at a time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

from lastgood import _lastgood, _open, _run, _state, _world
from lastgood._lastgood import Corrupt, NotFound
from lastgood._restore import Plan
from lastgood._state import Durable, Loading, Saved, Snapshot, World
from lastgood.jax import _pytree
from lastgood.jax._arrays import from_numpy as from_numpy
from lastgood.jax._arrays import node_of as node_of
from lastgood.jax._arrays import shards_of as shards_of
from lastgood.jax._arrays import stored as stored
from lastgood.jax._pytree import PytreeAdapter as PytreeAdapter
from lastgood.jax._pytree import Tree as Tree
from lastgood.jax._pytree import adapter_for as adapter_for

__all__ = ["restore", "save", "steps"]

#: The component that `save` writes.
COMPONENT = "tree"
_ORDER = {"good": 0, "verified": 1, "committed": 2}


class Abstract:
    """Restores a tree that does not exist yet: onto the shapes, dtypes and shardings of ``template``, or without one
    into dicts and lists. ``partial``: the checkpoint may hold more than the template."""

    def __init__(self, name: str, template: Any = None, *, partial: bool = False) -> None:
        self.name = name
        self.template = template
        self.partial = partial
        self.value: Any = None

    def capture(self, world: World, deferred: bool) -> Snapshot:
        """Nothing is captured through a template."""
        raise _lastgood.Invalid(f"{self.name} is a template, which has no values to save")

    def load(self, saved: Saved, world: World) -> Loading:
        """Plans the restore.

        Raises:
            Mismatch: naming everything that does not fit the template.
        """
        tree = saved.tree(world)
        if not _pytree.is_tree(tree):
            tree = _pytree.from_plain(tree)
        there = _pytree.named(tree)
        live = None
        if self.template is not None:
            live = _pytree.leaves_of(self.template)
            problems = self._problems(saved, live, there)
            if problems:
                raise _state.Mismatch(problems)
            there = {name: there[name] for name in live.names}
        restoring = _pytree.Restoring(saved, there, world, live.values if live else {})

        def apply() -> None:
            values = restoring.finish()
            self.value = live.build(values) if live else _pytree.nested(tree, values)

        return Loading(restoring.targets, apply, lambda: None)

    def _problems(self, saved: Saved, live: Any, there: dict[str, Any]) -> list[str]:
        problems = []
        for name, value in live.values.items():
            if name not in there:
                problems.append(f"{self.name}/{name} is not in the checkpoint")
            elif problem := _pytree.unfit(saved, name, value, there[name]):
                problems.append(f"{self.name}/{name} {problem}")
        extra = [] if self.partial else sorted(set(there) - set(live.values))
        return problems + [f"{self.name}/{name} is only in the checkpoint" for name in extra]


def save(
    store: str | os.PathLike[str], step: int, tree: Any, *, run: str | None = None, **settings: Any
) -> str:
    """Saves a pytree as the checkpoint of ``step``, and gives its id, 64 hexadecimal digits, once it is durable.

    Args:
        store: as for `lastgood.open`.
        step: at least 0.
        tree: any pytree: jax arrays of any sharding, over several processes too (each of them calls this), with any
            dtype but ``float0``; typed and raw random keys; numpy arrays; numbers and strings. A function in it is
            not stored.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``. The call is an attempt of its own, and
            fences a trainer that has the same run open: give each its own.
        settings: as for `lastgood.open`.

    Raises:
        Invalid: if something in it cannot be stored; nothing is saved then.
        Fenced: if another attempt of the run began meanwhile.
        Unavailable, Denied, Corrupt, Incompatible: as the store and the run say.

    Example:
        >>> import lastgood as lg, jax.numpy as jnp, tempfile
        >>> store = tempfile.mkdtemp()
        >>> len(lg.jax.save(store, 1, {"w": jnp.arange(3.0)}))
        64
        >>> lg.jax.restore(store)["w"]
        Array([0., 1., 2.], dtype=float32)
    """
    state = {COMPONENT: Durable(Tree(tree))}
    with _open.open(store, state, run=run, rng=False, overlap=False, **settings) as opened:
        found: str = opened.save(step, block=True).durable.result()
    return found


def restore(
    store: str | os.PathLike[str],
    abstract_tree: Any = None,
    *,
    run: str | None = None,
    at: str | int | None = None,
    component: str = COMPONENT,
    partial: bool = False,
) -> Any:
    """Restores a pytree, and reads only the shards that this process needs. Nothing is written, and a trainer that
    has the run open is not disturbed.

    Args:
        store: as for `lastgood.open`; it must be there.
        abstract_tree: the structure, with arrays or ``jax.ShapeDtypeStruct`` as leaves: shapes and dtypes must be
            those that were saved; an array is put onto the ``sharding`` of its leaf, on any number of devices. None
            gives dicts and lists, with jax arrays on the default device. Objects of flax.nnx in it are updated.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        at: a step, ``last-good``, ``latest``, or at least 8 digits of an id. Default: the last good checkpoint, and
            if that is damaged the one before it, with a warning.
        component: what to restore of a run that `lastgood.open` wrote.
        partial: the checkpoint may hold more leaves than ``abstract_tree``.

    Raises:
        NotFound: if there is no such checkpoint or component.
        Incompatible: if leaves are missing, left over, or of another shape or dtype: each is named.
        Corrupt: if it is damaged, and there is nothing to go back to.

    Example:
        >>> import lastgood as lg, jax, jax.numpy as jnp, tempfile
        >>> store = tempfile.mkdtemp()
        >>> _ = lg.jax.save(store, 1, {"w": jnp.arange(3.0), "step": 1})
        >>> lg.jax.restore(store, {"w": jax.ShapeDtypeStruct((3,), "float32"), "step": 0}, at=1)
        {'step': 1, 'w': Array([0., 1., 2.], dtype=float32)}
    """
    reader, world = open_reader(store, run)
    template = Abstract(component, abstract_tree, partial=partial)
    if at is not None:
        return read_into(reader, world, str(at), {component: template})[component]
    damaged: Corrupt | None = None
    for selector in good_first(reader):
        try:
            found = read_into(reader, world, selector, {component: template})[component]
        except Corrupt as error:
            damaged = damaged or error
            continue
        if damaged is not None:
            warnings.warn(
                f"lastgood: went back to an older checkpoint: {damaged}",
                _run.SaveWarning,
                stacklevel=2,
            )
        return found
    if damaged is not None:
        raise damaged
    raise NotFound(f"{os.fspath(store)} has no checkpoint to restore; was the run given by name?")


def steps(store: str | os.PathLike[str], *, run: str | None = None) -> list[int]:
    """The steps that can be restored, in ascending order: neither marked bad nor expired.

    Raises:
        NotFound: if the store is no repository.

    Example:
        >>> import lastgood as lg, tempfile
        >>> store = tempfile.mkdtemp()
        >>> _ = lg.jax.save(store, 3, {"x": 1})
        >>> lg.jax.steps(store)
        [3]
    """
    reader, _ = open_reader(store, run)
    return sorted({row["step"] for row in usable(reader.history())})


def open_reader(store: str | os.PathLike[str], run: str | None) -> tuple[Any, World]:
    """What reads the checkpoints of a run, and this process among all."""
    world = _world.find_world()
    name = run if run is not None else os.environ.get("LASTGOOD_RUN", "default")
    options = _world.store_options()
    return _lastgood.Reader(os.fspath(store), options, name, world.rank, world.size), world


def usable(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The checkpoints that may be restored, oldest first."""
    return [row for row in history if not row["expired"] and row["standing"] in _ORDER]


def good_first(reader: Any) -> Iterator[str]:
    """Selectors of checkpoints in the order in which a recovery takes them: good ones, verified ones, others, the
    newest of each first."""
    rows = list(reversed(usable(reader.history())))
    for row in sorted(rows, key=lambda row: _ORDER[row["standing"]]):
        yield f"id:{row['id']}"


def read_into(
    reader: Any, world: World, selector: str, components: dict[str, Abstract]
) -> dict[str, Any]:
    """Restores ``components`` from one checkpoint.

    Raises:
        NotFound, Incompatible, Corrupt: as `restore`.
    """
    adapters: Any = {name: (Durable(None), adapter) for name, adapter in components.items()}
    plan = Plan(reader, reader.find(selector), adapters, world, partial=True)
    plan.check()
    plan.read()
    plan.apply()
    return {name: adapter.value for name, adapter in components.items()}
