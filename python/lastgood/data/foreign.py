"""Loaders of others as components: which adapter fits, and those that need little."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lastgood as lg

from .counting import (
    Loader,
    WorkersRng,
    check_order,
    check_workers,
    hook_iterator,
    same_torch_rng,
)
from .place import place
from .sampler import Sampler
from .stateful import StatefulLoader


class Stateful(Protocol):
    """What a component must have: its state as plain values, and the way back."""

    def state_dict(self) -> dict[str, Any]:
        """The state: nested dicts, lists, numbers, strings, bytes, tensors and arrays."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a state, or raises and leaves the object as it was."""
        ...


def adapt(obj: Any, *, workers_rng: WorkersRng = "refuse") -> Stateful | None:
    """The state of a data loader made by others, as a component; None if `obj` is not a data loader.

    Knows torchdata's `StatefulDataLoader`, Grain's `DataLoaderIterator` and `DatasetIterator`, MosaicML's
    `StreamingDataLoader`, and torch's `DataLoader` with a `lg.data.Sampler`. `lg.open` calls it for each component; call
    it yourself to say `workers_rng="none"`: the dataset draws no random numbers in worker processes.

    Raises `lg.Invalid` for a loader whose state cannot be had, naming what can be used instead.

    >>> adapt(3) is None
    True
    """
    if isinstance(obj, (Sampler, Loader)):
        return obj
    if _is(obj, "torchdata.stateful_dataloader", "StatefulDataLoader"):
        return _only_one(obj, lambda: StatefulLoader(obj, workers_rng=workers_rng))
    if _is(obj, "streaming", "StreamingDataLoader"):
        return _only_one(obj, lambda: StreamingLoader(obj, workers_rng=workers_rng))
    if _is(obj, "grain", "DataLoaderIterator") or _is(obj, "grain", "DatasetIterator"):
        return GrainIterator(obj)
    if _is(obj, "torch.utils.data", "DataLoader"):
        return _torch(obj, workers_rng)
    for module, name, use in _NO_STATE:
        if _is(obj, module, name):
            raise lg.Invalid(f"A {module}.{name} does not know what was consumed: {use}.")
    return None


_NO_STATE = (
    ("streaming", "StreamingDataset", "give the StreamingDataLoader that iterates over it"),
    ("grain", "DataLoader", "give its iterator, iter(loader), and iterate over that"),
    ("grain", "IterDataset", "give its iterator, iter(dataset), and iterate over that"),
    ("grain", "MapDataset", "give iter(dataset.to_iter_dataset()), and iterate over that"),
)


def _is(obj: Any, module: str, name: str) -> bool:
    # Whoever made such an object has imported its package; nothing is imported to find out.
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(obj, kind)


def _only_one(loader: Any, make: Callable[[], Stateful]) -> Stateful:
    """One adapter for one loader, because an adapter hooks it."""
    adapter: Stateful | None = getattr(loader, "_lastgood", lambda: None)()
    if adapter is None:
        adapter = make()
        loader._lastgood = weakref.ref(adapter)
    return adapter


def _torch(loader: Any, workers_rng: WorkersRng) -> Stateful:
    sampler = loader.batch_sampler
    if not isinstance(sampler, Sampler):
        raise lg.Invalid(
            "A torch DataLoader has no state of its own. Use DataLoader(dataset, batch_sampler=lg.data.Sampler(dataset, "
            "...)) and iterate over lg.data.loader(dataloader); or torchdata's StatefulDataLoader."
        )
    if sampler._keeper is None:
        check_order(loader, sampler)
        check_workers(loader, workers_rng)
    return sampler


class GrainIterator:
    """`state_dict` and `load_state_dict` of a Grain iterator.

    The state belongs to one rank of one world size, which Grain itself does not check; `ElasticIterator` may change it.
    """

    KIND = "grain"

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._elastic = "Elastic" in type(iterator).__name__

    def state_dict(self) -> dict[str, Any]:
        """Grain's state, in the JSON that its own checkpoints hold."""
        state = self._iterator.get_state()
        rank, world_size = place()
        return {
            "kind": self.KIND,
            "iterator": type(self._iterator).__name__,
            "rank": rank,
            "world_size": world_size,
            "state": state if isinstance(state, bytes) else json.dumps(state).encode(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from the state. Raises `lg.Incompatible` with the iterator as it was."""
        here = {"kind": self.KIND, "iterator": type(self._iterator).__name__}
        if not self._elastic:
            here |= dict(zip(("rank", "world_size"), place(), strict=True))
        _expect("Grain", here, state_dict, {"state", "rank", "world_size"})
        before = self._iterator.get_state()
        state = bytes(state_dict["state"])
        try:
            self._iterator.set_state(state if isinstance(before, bytes) else json.loads(state))
        except Exception as error:
            self._iterator.set_state(before)
            raise lg.Incompatible(f"Grain refuses the state of its iterator: {error}") from error


class StreamingLoader:
    """`state_dict` and `load_state_dict` of a `StreamingDataLoader`, which may change its number of ranks."""

    KIND = "streaming.StreamingDataLoader"

    def __init__(self, loader: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        check_workers(loader, workers_rng)
        self._loader = loader
        self._loaded = False
        hook_iterator(loader, self._begin)

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the samples that all ranks together have consumed of it, as Streaming counts them."""
        state = self._loader.state_dict()
        if state is None:
            raise lg.Invalid("A StreamingDataLoader over another dataset than a StreamingDataset has no state.")
        return {"kind": self.KIND, "state": dict(state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from the state at the next iteration. Raises `lg.Incompatible` with the loader as it was."""
        _expect("StreamingDataLoader", {"kind": self.KIND}, state_dict, {"state"})
        self._loader.load_state_dict(dict(state_dict["state"]))
        self._loaded = True

    def _begin(self, stock: Callable[[], Any]) -> Any:
        if not self._loaded:
            return stock()
        self._loaded = False
        with same_torch_rng(self._loader):
            return stock()


def _expect(what: str, here: Mapping[str, Any], found: Mapping[str, Any], others: set[str]) -> None:
    missing = {*here, *others} ^ set(found)
    if missing:
        raise lg.Invalid(f"{what}: not a state of this loader: {sorted(map(str, missing))} are missing or unknown.")
    for field, value in here.items():
        if found[field] != value:
            raise lg.Incompatible(
                f"{what}: saved with {field}={found[field]!r}, and now has {field}={value!r}, so that samples would be "
                "lost or repeated. Use what was saved, or a lg.data.Sampler, which may change its ranks and workers."
            )
