"""torchdata's `StatefulDataLoader` as a component, with what its own state leaves out.

Its iterator is hooked, because three things can only be put right while one is made: its constructor draws numbers from
the generators that its state was to restore, it is where an epoch begins, and nothing else comes between a load and the
first batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import lastgood as lg

from .counting import WorkersRng, check_workers, hook_iterator, same_torch_rng
from .place import place
from .sampler import Sampler
from .seeding import Seeded

KIND = "torchdata.StatefulDataLoader"

_FIELDS = ("kind", "num_workers", "length", "rank", "world_size", "epoch", "generators", "loader")
# Fields of torchdata's own state, without which its iterator dies in an assertion at the first batch.
_LOADER_FIELDS = {
    False: ("_num_yielded", "_sampler_iter_yielded", "_sampler_iter_state", "_iterator_finished"),
    True: ("_snapshot", "_steps_since_snapshot", "_iterator_finished"),
}


class StatefulLoader:
    """`state_dict` and `load_state_dict` of a `StatefulDataLoader` that resume it exactly.

    Its generators continue as in the undisturbed run, also in the next epoch; another number of workers, ranks or
    samples is `lg.Incompatible` before anything changes; reading the state does not start workers or draw numbers.

    Raises `lg.Invalid` if worker processes would draw random numbers that no state holds, and for `in_order=False`.
    """

    def __init__(self, loader: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        _check(loader, workers_rng)
        self._loader = loader
        # The whole state between a load and the iterator that takes it up.
        self._pending: dict[str, Any] | None = None
        self._epoch = _epoch_before(loader)
        hook_iterator(loader, self._begin)

    @property
    def epoch(self) -> int:
        """The epoch of the current iterator, from 0; -1 before the first."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader, of its generators, and what it must be loaded into."""
        if self._pending is not None:
            return dict(self._pending)
        loader = self._loader
        rank, world_size = place()
        return {
            "kind": KIND,
            "num_workers": loader.num_workers,
            "length": _length(loader.dataset),
            "rank": rank,
            "world_size": world_size,
            "epoch": self._epoch,
            "generators": [
                None if generator is None else generator.get_state()
                for generator in _generators(loader)
            ],
            # Asked before the first batch, torchdata would make an iterator: start workers and draw numbers. A save must
            # not change the run, so a loader that has not begun is saved as that.
            "loader": None if loader._iterator is None else loader.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the state at the next iteration.

        Raises `lg.Incompatible` or `lg.Invalid` with the loader as it was.
        """
        loader = self._loader
        state = dict(state_dict)
        _check_state(loader, state)
        loader.load_state_dict(state["loader"] or {})
        if state["loader"] is None:
            self._epoch = state["epoch"]
            self._pending = None
            _put(loader, state["generators"])
        else:
            self._pending = state

    def _begin(self, stock: Callable[[], Any]) -> Any:
        """Makes the loader's next iterator."""
        loader = self._loader
        pending, resumes = self._pending, loader.next_iter_state is not None
        if pending is not None and resumes:
            self._set_epoch(pending["epoch"])
            with same_torch_rng(loader):
                iterator = stock()
            _put(loader, pending["generators"])
            self._pending = None
        else:
            self._set_epoch(self._epoch + 1)
            iterator = stock()
        if loader.persistent_workers:
            self._hook_reset(iterator)
        return iterator

    def _hook_reset(self, iterator: Any) -> None:
        # Persistent workers keep their iterator, and an epoch begins with its reset.
        stock, this, adapter = type(iterator)._reset, weakref.ref(iterator), weakref.ref(self)

        def reset(*arguments: Any, **options: Any) -> None:
            keeper = adapter()
            if keeper is not None:
                keeper._set_epoch(keeper._epoch + 1)
            stock(this(), *arguments, **options)

        iterator._reset = reset

    def _set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        dataset = self._loader.dataset
        if isinstance(dataset, Seeded):
            dataset.epoch = epoch


def _check(loader: Any, workers_rng: WorkersRng) -> None:
    if isinstance(loader.batch_sampler, Sampler):
        raise lg.Invalid(
            "This StatefulDataLoader has a lg.data.Sampler, which counts what the training loop consumes: iterate over "
            "lg.data.loader(dataloader), and give that as the component."
        )
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise lg.Invalid(
            "StatefulDataLoader: with in_order=False its state does not say which batches were consumed. Use "
            "in_order=True."
        )
    check_workers(loader, workers_rng)
    if isinstance(loader.dataset, Seeded) and loader.dataset.seed is None:
        raise lg.Invalid(
            "StatefulDataLoader gives plain indices, which carry no seed: use lg.data.seeded(dataset, seed=...)."
        )


def _check_state(loader: Any, state: dict[str, Any]) -> None:
    if state.get("kind") != KIND or set(state) != set(_FIELDS):
        raise lg.Invalid(
            f"StatefulDataLoader: expected a state of kind {KIND} with the fields {sorted(_FIELDS)}, found kind "
            f"{state.get('kind')!r} with {sorted(map(str, state))}."
        )
    rank, world_size = place()
    here = {
        "num_workers": loader.num_workers,
        "length": _length(loader.dataset),
        "world_size": world_size,
        "rank": rank,
    }
    for field, value in here.items():
        if state[field] != value:
            raise lg.Incompatible(
                f"StatefulDataLoader: saved with {field}={state[field]}, and now has {field}={value}; torchdata cannot "
                f"continue its epoch so. Use {field}={state[field]}, or a lg.data.Sampler, which may change it."
            )
    if type(state["epoch"]) is not int or state["epoch"] < -1:
        raise lg.Invalid(f"StatefulDataLoader: epoch must be an int from -1, found {state['epoch']!r}.")
    saved, now = state["generators"], _generators(loader)
    if len(saved) != len(now) or any((a is None) != (b is None) for a, b in zip(saved, now, strict=True)):
        raise lg.Incompatible(
            "StatefulDataLoader: saved with another set of generators: expected "
            f"{[generator is not None for generator in now]} for (generator=, shuffling sampler's), found "
            f"{[generator is not None for generator in saved]}. Use the same generator= and shuffle= as the run that saved."
        )
    if state["loader"] is not None:
        missing = [field for field in _LOADER_FIELDS[bool(loader.num_workers)] if field not in state["loader"]]
        if missing:
            raise lg.Invalid(f"StatefulDataLoader: the state lacks torchdata's {missing}; another version wrote it.")


def _epoch_before(loader: Any) -> int:
    """The epoch before the one that the next iterator begins."""
    set_by_user = loader.dataset.epoch if isinstance(loader.dataset, Seeded) else None
    begun = loader._iterator is not None
    return (set_by_user or 0) - (0 if begun else 1)


def _generators(loader: Any) -> list[Any]:
    return [loader.generator, getattr(loader.sampler, "generator", None)]


def _put(loader: Any, states: list[Any]) -> None:
    for generator, state in zip(_generators(loader), states, strict=True):
        if generator is not None:
            generator.set_state(state)


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None
