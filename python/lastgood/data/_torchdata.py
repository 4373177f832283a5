"""torchdata's `StatefulDataLoader` as a component, with what its own state leaves out.

Its iterator is hooked, because three things can only be put right while one is made: its
constructor draws numbers from the generators that its state was to restore, it is where an epoch
begins, and nothing else comes between a load and the first batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from lastgood import _world
from lastgood._lastgood import Incompatible, Invalid
from lastgood.data._counting import WorkersRng, check_workers, hook_iterator, same_torch_rng
from lastgood.data._sampler import Sampler
from lastgood.data._seeding import Seeded

KIND = "torchdata.StatefulDataLoader"

_FIELDS = ("epoch", "generators", "kind", "length", "loader", "num_workers", "rank", "world_size")
# Fields of torchdata's own state, without which its iterator dies in an assertion at the first
# batch.
_LOADER_FIELDS = {
    False: ("_num_yielded", "_sampler_iter_yielded", "_sampler_iter_state", "_iterator_finished"),
    True: ("_snapshot", "_steps_since_snapshot", "_iterator_finished"),
}


class StatefulLoader:
    """`state_dict` and `load_state_dict` of a `StatefulDataLoader` that resume it exactly.

    Its generators continue as in the undisturbed run, also in the next epoch; another number of
    workers, ranks or samples is an error before anything changes; reading the state neither
    starts workers nor draws numbers.

    Raises:
        Invalid: if worker processes would draw random numbers that no state holds, and for
            ``in_order=False``.
    """

    def __init__(self, loader: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        _check(loader, workers_rng)
        self._loader = loader
        progress = getattr(loader, "_lastgood", None)
        if progress is None:
            progress = _Progress(loader)
            loader._lastgood = progress
            hook_iterator(loader, progress.begin)
        self._progress: _Progress = progress

    @property
    def epoch(self) -> int:
        """The epoch of the current iterator, from 0; -1 before the first."""
        return self._progress.epoch

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader, of its generators, and what it must be loaded into."""
        loader = self._loader
        if self._progress.pending is not None:
            return dict(self._progress.pending)
        world = _world.find_world()
        return {
            "kind": KIND,
            "num_workers": loader.num_workers,
            "length": _length(loader.dataset),
            "rank": world.rank,
            "world_size": world.size,
            "epoch": self._progress.epoch,
            "generators": [
                None if generator is None else generator.get_state()
                for generator in _generators(loader)
            ],
            # Asked before the first batch, torchdata would make an iterator: start workers and
            # draw numbers. A save must not change the run.
            "loader": None if loader._iterator is None else loader.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the state at the next iteration.

        Raises:
            Incompatible: if it was saved with another number of workers, ranks or samples, or
                with other generators. The loader is then as it was.
            Invalid: if it is no state of this kind. The loader is then as it was.
        """
        loader, progress = self._loader, self._progress
        state = dict(state_dict)
        _check_state(loader, state)
        loader.load_state_dict(state["loader"] or {})
        if state["loader"] is None:
            progress.epoch = state["epoch"]
            progress.pending = None
            _put(loader, state["generators"])
        else:
            progress.pending = state


class _Progress:
    """What outlives an adapter: it is the loader's, and does not own it, so that there is no
    cycle."""

    def __init__(self, loader: Any) -> None:
        # The whole state between a load and the iterator that takes it up.
        self.pending: dict[str, Any] | None = None
        self.epoch = _epoch_before(loader)

    def begin(self, loader: Any, stock: Callable[[], Any]) -> Any:
        """Makes the loader's next iterator."""
        pending = self.pending
        if pending is not None and loader.next_iter_state is not None:
            self.enter(loader, pending["epoch"])
            with same_torch_rng(loader):
                iterator = stock()
            _put(loader, pending["generators"])
            self.pending = None
        else:
            self.enter(loader, self.epoch + 1)
            iterator = stock()
        if loader.persistent_workers:
            self.hook_reset(iterator)
        return iterator

    def hook_reset(self, iterator: Any) -> None:
        """Persistent workers keep their iterator, and an epoch begins with its reset."""
        stock, this = type(iterator)._reset, weakref.ref(iterator)

        def reset(loader: Any, *arguments: Any, **options: Any) -> None:
            self.enter(loader, self.epoch + 1)
            stock(this(), loader, *arguments, **options)

        iterator._reset = reset

    def enter(self, loader: Any, epoch: int) -> None:
        """Tells everybody which epoch it is."""
        self.epoch = epoch
        if isinstance(loader.dataset, Seeded):
            loader.dataset.epoch = epoch


def _check(loader: Any, workers_rng: WorkersRng) -> None:
    if isinstance(loader.batch_sampler, Sampler):
        raise Invalid(
            "this StatefulDataLoader has a lg.data.Sampler, which counts what the training loop "
            "consumes: iterate over lg.data.loader(dataloader), and give that as the component"
        )
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise Invalid(
            "StatefulDataLoader: with in_order=False its state does not say which batches were "
            "consumed; use in_order=True"
        )
    check_workers(loader, workers_rng)
    if isinstance(loader.dataset, Seeded) and loader.dataset.seed is None:
        raise Invalid(
            "StatefulDataLoader gives plain indices, which carry no seed: "
            "use lg.data.seeded(dataset, seed=…)"
        )


def _check_state(loader: Any, state: dict[str, Any]) -> None:
    if state.get("kind") != KIND or set(state) != set(_FIELDS):
        raise Invalid(
            f"StatefulDataLoader: expected a state of kind {KIND} with the fields {list(_FIELDS)}, "
            f"found kind {state.get('kind')!r} with {sorted(map(str, state))}"
        )
    world = _world.find_world()
    here = {
        "num_workers": loader.num_workers,
        "length": _length(loader.dataset),
        "world_size": world.size,
        "rank": world.rank,
    }
    for field, value in here.items():
        if state[field] != value:
            raise Incompatible(
                f"StatefulDataLoader: saved with {field}={state[field]}, and now has "
                f"{field}={value}; torchdata cannot continue its epoch so. Use "
                f"{field}={state[field]}, or a lg.data.Sampler, which may change workers and ranks"
            )
    if type(state["epoch"]) is not int or state["epoch"] < -1:
        raise Invalid(f"StatefulDataLoader: epoch must be an int from -1, found {state['epoch']!r}")
    saved = [generator is not None for generator in state["generators"]]
    now = [generator is not None for generator in _generators(loader)]
    if saved != now:
        raise Incompatible(
            f"StatefulDataLoader: saved with another set of generators: (generator=, shuffle=) was "
            f"{saved} and is {now}; use the same as the run that saved"
        )
    if state["loader"] is not None:
        fields = _LOADER_FIELDS[bool(loader.num_workers)]
        missing = [field for field in fields if field not in state["loader"]]
        if missing:
            raise Invalid(
                f"StatefulDataLoader: the state lacks torchdata's {missing}: "
                "another version of it wrote that"
            )


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
