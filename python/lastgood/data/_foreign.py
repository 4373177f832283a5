"""Loaders of others as components: which adapter fits, and those that need little."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lastgood import _world
from lastgood._lastgood import Incompatible, Invalid
from lastgood.data._counting import (
    Loader,
    WorkersRng,
    check_order,
    check_workers,
    hook_iterator,
    same_torch_rng,
)
from lastgood.data._sampler import Sampler
from lastgood.data._torchdata import StatefulLoader


class Stateful(Protocol):
    """What a component must have: its state as plain values, and the way back.

    Example:
        >>> import lastgood as lg
        >>> isinstance(lg.data.Sampler(6, seed=7, batch_size=4).state_dict(), dict)
        True
    """

    def state_dict(self) -> dict[str, Any]:
        """The state: nested dicts, lists, numbers, strings, bytes, tensors and arrays."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Continues from a state, or raises and leaves the object as it was."""
        ...


def adapt(obj: Any, *, workers_rng: WorkersRng = "refuse") -> Stateful | None:
    """The state of a data loader as a component; None if ``obj`` is not a data loader.

    Knows torchdata's ``StatefulDataLoader``, Grain's ``DataLoaderIterator`` and
    ``DatasetIterator``, MosaicML's ``StreamingDataLoader``, and torch's ``DataLoader`` with a
    `lg.data.Sampler`. `lg.open` calls it for every component; it is called by hand only to say
    ``workers_rng``.

    Args:
        obj: anything.
        workers_rng: ``none`` says that the dataset draws no random numbers in worker processes;
            ``refuse`` (the default) refuses worker processes unless the dataset is
            `lg.data.seeded`.

    Raises:
        Invalid: for a loader whose state cannot be had, naming what can be used instead.

    Example:
        >>> import lastgood as lg
        >>> lg.data.adapt({"not": "a loader"}) is None
        True
    """
    if isinstance(obj, (Sampler, Loader, StatefulLoader, GrainIterator, StreamingLoader)):
        return obj
    if _is(obj, "torchdata.stateful_dataloader", "StatefulDataLoader"):
        return StatefulLoader(obj, workers_rng=workers_rng)
    if _is(obj, "streaming", "StreamingDataLoader"):
        return StreamingLoader(obj, workers_rng=workers_rng)
    if _is(obj, "grain", "DataLoaderIterator") or _is(obj, "grain", "DatasetIterator"):
        return GrainIterator(obj)
    if _is(obj, "torch.utils.data", "DataLoader"):
        return _torch(obj, workers_rng)
    for module, name, remedy in _NO_STATE:
        if _is(obj, module, name):
            raise Invalid(f"a {module}.{name} does not know what was consumed: {remedy}")
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


def _torch(loader: Any, workers_rng: WorkersRng) -> Stateful:
    sampler = loader.batch_sampler
    if not isinstance(sampler, Sampler):
        raise Invalid(
            "a torch DataLoader has no state of its own: use DataLoader(dataset, batch_sampler="
            "lg.data.Sampler(dataset, …)) and iterate over lg.data.loader(dataloader), or "
            "torchdata's StatefulDataLoader"
        )
    if not sampler.counted_by_loader:
        check_order(loader, sampler)
        check_workers(loader, workers_rng)
    return sampler


class GrainIterator:
    """`state_dict` and `load_state_dict` of a Grain iterator.

    Its state belongs to one rank of one world size, which Grain does not check itself; only an
    ``ElasticIterator`` may change them.
    """

    KIND = "grain"

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._elastic = "Elastic" in type(iterator).__name__

    def state_dict(self) -> dict[str, Any]:
        """Grain's state, in the JSON that its own checkpoints hold."""
        state = self._iterator.get_state()
        world = _world.find_world()
        return {
            "kind": self.KIND,
            "iterator": type(self._iterator).__name__,
            "rank": world.rank,
            "world_size": world.size,
            "state": state if isinstance(state, bytes) else json.dumps(state).encode(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from the state.

        Raises:
            Incompatible: if it belongs to another iterator, rank or world size, or if Grain
                refuses it. The iterator is then as it was.
            Invalid: if it is no such state.
        """
        world = _world.find_world()
        here: dict[str, Any] = {"kind": self.KIND, "iterator": type(self._iterator).__name__}
        if not self._elastic:
            here |= {"world_size": world.size, "rank": world.rank}
        _expect("Grain", here, state_dict, {"state", "rank", "world_size"})
        before = self._iterator.get_state()
        state = bytes(state_dict["state"])
        try:
            self._iterator.set_state(state if isinstance(before, bytes) else json.loads(state))
        except Exception as error:
            self._iterator.set_state(before)
            raise Incompatible(f"Grain refuses the state of its iterator: {error}") from error


class StreamingLoader:
    """`state_dict` and `load_state_dict` of a `StreamingDataLoader`; its ranks may change.

    Raises:
        Invalid: if worker processes would draw random numbers that no state holds.
    """

    KIND = "streaming.StreamingDataLoader"

    def __init__(self, loader: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        check_workers(loader, workers_rng)
        self._loader = loader
        if getattr(loader, "_lastgood", None) is None:
            loader._lastgood = _Loaded()
            hook_iterator(loader, loader._lastgood.begin)

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the samples of it that all ranks consumed, as Streaming counts them."""
        state = self._loader.state_dict()
        if state is None:
            raise Invalid("a StreamingDataLoader over no StreamingDataset has no state")
        return {"kind": self.KIND, "length": self._loader.dataset.size, "state": dict(state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from the state at the next iteration.

        Raises:
            Incompatible: if it was saved over another number of samples.
            Invalid: if it is no such state. The loader is then as it was.
        """
        loader, dataset = self._loader, self._loader.dataset
        here = {"kind": self.KIND, "length": dataset.size}
        _expect("StreamingDataLoader", here, state_dict, {"state"})
        state = dict(state_dict["state"])
        for field, least in _STREAMING_FIELDS.items():
            found = state.get(field)
            if type(found) is not int or found < least:
                raise Invalid(
                    f"StreamingDataLoader: {field} must be an int from {least}, found {found!r}"
                )
        loader.load_state_dict(state)
        # Streaming ignores a state of an earlier epoch than the one it is in, and would go on
        # without a word where it is instead of where it was told to.
        dataset.next_epoch = max(state["epoch"], 0)
        loader.num_samples_yielded = 0
        loader._lastgood.loaded = True


_STREAMING_FIELDS = {
    # -1 is what Streaming says before its first iteration.
    "epoch": -1,
    "sample_in_epoch": 0,
    "num_canonical_nodes": 1,
    "shuffle_seed": 0,
}


class _Loaded:
    """Whether a state waits for the next iterator."""

    loaded = False

    def begin(self, loader: Any, stock: Callable[[], Any]) -> Any:
        """Makes the next iterator; the one that takes up a state draws no numbers for it."""
        if not self.loaded:
            return stock()
        self.loaded = False
        with same_torch_rng(loader):
            return stock()


def _expect(what: str, here: Mapping[str, Any], found: Mapping[str, Any], others: set[str]) -> None:
    wrong = {*here, *others} ^ set(found)
    if wrong:
        raise Invalid(
            f"{what}: no state of this loader: {sorted(map(str, wrong))} are missing or unknown"
        )
    for field, value in here.items():
        if found[field] != value:
            raise Incompatible(
                f"{what}: saved with {field}={found[field]!r}, and now has {field}={value!r}, so "
                "that samples would be lost or repeated; use what was saved, or a lg.data.Sampler, "
                "which may change workers and ranks"
            )
