"""Counts batches as consumed where they are consumed: in the training loop."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lastgood as lg

from .sampler import Sampler
from .seeding import Seeded

WorkersRng = Literal["refuse", "none"]


def loader(source: Any, *, workers_rng: WorkersRng = "refuse") -> Loader:
    """Iterates like `source` and counts each batch as consumed when the training loop gets it.

    `source` is a torch `DataLoader(dataset, batch_sampler=lg.data.Sampler(...))`, or the Sampler alone. Give what this
    returns (or the Sampler) to `lg.open` as a component. Batches that workers have prefetched and the loop has not seen
    are not counted, and are loaded again after a resume.

    A save in the body of the loop contains the batch that the body has. A save in the last body of an epoch resumes
    with an empty rest of that epoch, so that what the loop does at the end of an epoch is done.

    Beginning an iteration leaves torch's global generator as it was, which a plain DataLoader does not: otherwise a
    resume in the middle of an epoch would draw one number more than the undisturbed run.

    `workers_rng="none"` says that the dataset draws no random numbers in worker processes. Their generators cannot
    be saved, so that worker processes are refused otherwise, unless the dataset is `lg.data.seeded(dataset)`.

    Raises `lg.Invalid` for a source without a `lg.data.Sampler` as its batch_sampler, for `in_order=False`, for a dataset of
    another length, and for worker processes as said above.

    >>> batches = loader(Sampler(6, seed=7, batch_size=4, rank=0, world_size=1))
    >>> for batch in batches:
    ...     print(len(batch), batches.state_dict()["position"])
    4 4
    2 6
    """
    return Loader(source, workers_rng=workers_rng)


class Loader(Iterable[Any]):
    """What `lg.data.loader` returns: the DataLoader, counted."""

    def __init__(self, source: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        self.source = source
        self.sampler = source if isinstance(source, Sampler) else _sampler_of(source)
        if self.sampler is not source:
            check_order(source, self.sampler)
            check_workers(source, workers_rng)
        if self.sampler._keeper is not None:
            raise lg.Invalid("lg.data.loader: this Sampler has a loader already; two would count each batch twice.")
        self.sampler._keeper_ref = weakref.ref(self)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.sampler.epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the epoch.

        Raises `lg.Invalid` if the state was loaded, or another iteration begun, after this one.
        """
        sampler = self.sampler
        before = sampler._pass
        sampler._keeper_asks = True
        try:
            with same_torch_rng(self.source):
                batches = iter(self.source)
        finally:
            sampler._keeper_asks = False
        this = sampler._pass
        if this == before:
            raise lg.Invalid(
                f"lg.data.loader: {type(self.source).__name__} began an iteration without asking its batch_sampler for "
                "one, so that its batches cannot be counted."
            )
        for batch in batches:
            if sampler._pass != this:
                raise lg.Invalid(
                    "lg.data.loader: a state was loaded, batch_size was set or another iteration was begun after this "
                    "one. Restore first, then iterate."
                )
            sampler._count()
            yield batch
        if sampler._pass == this:
            self._end()

    def state_dict(self) -> dict[str, Any]:
        """The state of the Sampler."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state of the Sampler. Raises what `Sampler.load_state_dict` raises."""
        self.sampler.load_state_dict(state_dict)

    def _end(self) -> None:
        left = self.sampler.steps_left
        if left:
            raise lg.Invalid(
                f"lg.data.loader: {type(self.source).__name__} ended {left} batches before the end of epoch "
                f"{self.sampler.epoch}; they would be lost."
            )
        self.sampler._next_epoch()
        self.sampler._forget_pass()


def check_workers(dataloader: Any, workers_rng: WorkersRng) -> None:
    """Raises `lg.Invalid` if random numbers drawn in worker processes would not survive a resume."""
    if workers_rng not in ("refuse", "none"):
        raise lg.Invalid(f'workers_rng must be "refuse" or "none", found {workers_rng!r}.')
    workers = dataloader.num_workers
    if workers and workers_rng == "refuse" and not isinstance(dataloader.dataset, Seeded):
        raise lg.Invalid(
            f"{type(dataloader).__name__} has {workers} worker processes, whose random numbers cannot be saved: after a "
            "resume augmentations would differ. Use lg.data.seeded(dataset); or, if the dataset draws no random "
            'numbers, say workers_rng="none".'
        )


@contextmanager
def same_torch_rng(source: Any) -> Iterator[None]:
    """Puts torch's global generator and the one of `source` back to where they were.

    Every new iterator of a DataLoader draws the seed of its workers from one of them. An undisturbed run does that at
    the beginning of an epoch, a resumed one also in its middle.
    """
    torch = sys.modules.get("torch")
    generators = [getattr(torch, "default_generator", None), getattr(source, "generator", None)]
    states = [generator.get_state() for generator in generators if generator is not None]
    try:
        yield
    finally:
        for generator in reversed([generator for generator in generators if generator is not None]):
            generator.set_state(states.pop())


def hook_iterator(loader: Any, begin: Callable[[Callable[[], Any]], Any]) -> None:
    """Lets `begin` make each new iterator of a DataLoader, given the function with which it makes one itself."""
    # Weak, so that a loader does not keep its workers alive in a cycle, and is torchdata's own again without its adapter.
    stock, this, begins = type(loader)._get_iterator, weakref.ref(loader), weakref.WeakMethod(begin)

    def get_iterator() -> Any:
        make, begin = (lambda: stock(this())), begins()
        return make() if begin is None else begin(make)

    loader._get_iterator = get_iterator


def _sampler_of(source: Any) -> Sampler:
    sampler = getattr(source, "batch_sampler", None)
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(getattr(source, "sampler", None), Sampler):
        raise lg.Invalid(
            "lg.data.loader: lg.data.Sampler gives batches: DataLoader(dataset, batch_sampler=sampler), not sampler=."
        )
    raise lg.Invalid(
        f"lg.data.loader: expected a DataLoader whose batch_sampler is a lg.data.Sampler, found {type(source).__name__} "
        f"with batch_sampler {type(sampler).__name__}. Use DataLoader(dataset, batch_sampler=lg.data.Sampler(dataset, ...))."
    )


def check_order(source: Any, sampler: Sampler) -> None:
    """Raises `lg.Invalid` if the batches of `source` are not those of `sampler`, in its order."""
    if not getattr(source, "in_order", True):
        raise lg.Invalid(
            "lg.data.loader: with in_order=False batches come in the order of the workers' speed, so that what was "
            "consumed is not known. Use in_order=True."
        )
    if len(source.dataset) != sampler.length:
        raise lg.Invalid(
            f"lg.data.loader: the dataset has {len(source.dataset)} samples and the Sampler has {sampler.length}. Give "
            "the Sampler the dataset: lg.data.Sampler(dataset, ...)."
        )
