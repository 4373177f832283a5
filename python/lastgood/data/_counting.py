"""Counts batches as consumed where they are consumed: in the training loop."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from lastgood._lastgood import Invalid
from lastgood.data._sampler import Sampler
from lastgood.data._seeding import Seeded

WorkersRng = Literal["refuse", "none"]


def loader(source: Any, *, workers_rng: WorkersRng = "refuse") -> Loader:
    """Iterates like ``source``, and counts each batch as consumed when the training loop gets it.

    Give what this returns (or the Sampler) to `lg.open` as a component. Batches that workers have
    prefetched and the loop has not seen are not counted, and are loaded again after a resume. A
    save in the body of the loop contains the batch that the body has. A save in the last body of
    an epoch resumes with an empty rest of that epoch, so that what the loop does at the end of an
    epoch is done. A loop that is left in the middle of an epoch goes on there.

    Beginning an iteration leaves torch's global generator as it was, which a plain DataLoader does
    not: otherwise a resume in the middle of an epoch would draw one number more than the
    undisturbed run.

    Args:
        source: a torch ``DataLoader(dataset, batch_sampler=lg.data.Sampler(…))`` or a subclass of
            it, or the Sampler alone.
        workers_rng: ``none`` says that the dataset draws no random numbers in worker processes.
            Their generators cannot be saved, so that ``refuse`` (the default) refuses worker
            processes unless the dataset is `lg.data.seeded`.

    Raises:
        Invalid: for a source without a `lg.data.Sampler` as its batch_sampler, for
            ``in_order=False``, for a dataset of another length, and for worker processes as said.

    Example:
        >>> import lastgood as lg
        >>> batches = lg.data.loader(lg.data.Sampler(6, seed=7, batch_size=4))
        >>> for batch in batches:
        ...     print(len(batch), batches.state_dict()["position"])
        4 4
        2 6
    """
    return Loader(source, workers_rng=workers_rng)


class Loader(Iterable[Any]):
    """What `lg.data.loader` returns: the DataLoader, counted.

    Raises:
        Invalid: as `lg.data.loader`.

    Example:
        >>> import lastgood as lg
        >>> batches = lg.data.loader(lg.data.Sampler(6, seed=7, batch_size=4))
        >>> [len(batch) for batch in batches]
        [4, 2]
    """

    def __init__(self, source: Any, *, workers_rng: WorkersRng = "refuse") -> None:
        self.source = source
        self.sampler = source if isinstance(source, Sampler) else _sampler_of(source)
        if self.sampler is not source:
            check_order(source, self.sampler)
            check_workers(source, workers_rng)
        self.sampler._entrust(self)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.sampler.epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """The rest of the epoch.

        Raises:
            Invalid: if a state was loaded, or another iteration begun, after this one.
        """
        sampler = self.sampler
        before = sampler._pass
        with same_torch_rng(self.source), sampler._asked_by_loader():
            batches = iter(self.source)
        this = sampler._pass
        if this == before:
            raise Invalid(
                f"{type(self.source).__name__} began an iteration without asking its batch_sampler "
                "for one, so that its batches cannot be counted"
            )
        for batch in batches:
            if sampler._pass != this:
                raise Invalid(
                    "a state was loaded, batch_size was set or another iteration was begun after "
                    "this one; restore first, then iterate"
                )
            sampler._count()
            yield batch
        if sampler._pass == this:
            self._end()

    def state_dict(self) -> dict[str, Any]:
        """The state of the Sampler: the same on every rank."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues where the state was taken.

        Raises:
            Incompatible, Invalid: as `Sampler.load_state_dict`.
        """
        self.sampler.load_state_dict(state_dict)

    def _end(self) -> None:
        left = self.sampler.steps_left
        if left:
            raise Invalid(
                f"{type(self.source).__name__} ended {left} batches before the end of epoch "
                f"{self.sampler.epoch}; they would be lost"
            )
        self.sampler._next_epoch()
        self.sampler._forget_pass()


def check_workers(dataloader: Any, workers_rng: WorkersRng) -> None:
    """Refuses random numbers that are drawn in worker processes and would not survive a resume.

    Raises:
        Invalid: if there are workers and the dataset is not seeded.
    """
    if workers_rng not in ("refuse", "none"):
        raise Invalid(f"workers_rng is refuse or none, given {workers_rng!r}")
    workers = dataloader.num_workers
    if workers and workers_rng == "refuse" and not isinstance(dataloader.dataset, Seeded):
        raise Invalid(
            f"{type(dataloader).__name__} has {workers} worker processes, whose random numbers "
            "cannot be saved: after a resume augmentations would differ. Use "
            "lg.data.seeded(dataset); or, if the dataset draws no random numbers, say "
            'workers_rng="none" to lg.data.loader or lg.data.adapt'
        )


def check_order(source: Any, sampler: Sampler) -> None:
    """Refuses a DataLoader whose batches are not those of ``sampler``, in its order.

    Raises:
        Invalid: naming what is different.
    """
    if not getattr(source, "in_order", True):
        raise Invalid(
            "with in_order=False batches come in the order of the workers' speed, so that what was "
            "consumed is not known; use in_order=True"
        )
    if len(source.dataset) != sampler.length:
        raise Invalid(
            f"the dataset has {len(source.dataset)} samples and the Sampler has {sampler.length}; "
            "give the Sampler the dataset: lg.data.Sampler(dataset, …)"
        )


@contextmanager
def same_torch_rng(source: Any) -> Iterator[None]:
    """Puts torch's global generator and the one of ``source`` back to where they were.

    Every new iterator of a DataLoader draws the seed of its workers from one of them. An
    undisturbed run does that at the beginning of an epoch, a resumed one also in its middle.
    """
    torch = sys.modules.get("torch")
    generators = [getattr(torch, "default_generator", None), getattr(source, "generator", None)]
    states = [(one, one.get_state()) for one in generators if one is not None]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def hook_iterator(loader: Any, begin: Callable[[Any, Callable[[], Any]], Any]) -> None:
    """Lets ``begin`` make each new iterator of a DataLoader, given the loader and how it does."""
    # Weak: in a cycle with its iterator, a DataLoader is torn down in an order in which it waits
    # 5 s for each persistent worker.
    stock, this = type(loader)._get_iterator, weakref.ref(loader)

    def get_iterator() -> Any:
        return begin(this(), lambda: stock(this()))

    loader._get_iterator = get_iterator


def _sampler_of(source: Any) -> Sampler:
    sampler = getattr(source, "batch_sampler", None)
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(getattr(source, "sampler", None), Sampler):
        raise Invalid(
            "lg.data.Sampler gives batches: DataLoader(dataset, batch_sampler=sampler), not "
            "sampler="
        )
    raise Invalid(
        f"expected a DataLoader whose batch_sampler is a lg.data.Sampler, found a "
        f"{type(source).__name__} with batch_sampler {type(sampler).__name__}; use "
        "DataLoader(dataset, batch_sampler=lg.data.Sampler(dataset, …))"
    )
