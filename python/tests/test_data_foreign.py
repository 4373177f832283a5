"""Loaders of others: each gap of the stock tool is shown, then that its adapter closes it."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import weakref
from typing import Any

import lastgood as lg
import pytest
import torch
from lastgood.data import Sampler, adapt, loader, seeded
from torch.utils.data import DataLoader, Dataset, IterableDataset

torchdata = pytest.importorskip("torchdata.stateful_dataloader")

LENGTH, BATCH, STEPS = 12, 3, 4


class Numbers(Dataset[Any]):
    """Sample i is i, with noise if asked."""

    def __init__(self, noise: bool = False, length: int = LENGTH) -> None:
        self.noise = noise
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        return int(index), random.random() if self.noise else 0.0


def raw(batch: Any) -> Any:
    """A collate function that changes nothing."""
    return batch


def stateful(
    workers: int = 0,
    *,
    data: Any = None,
    generator: bool = True,
    persistent: bool = False,
    **options: Any,
) -> Any:
    """A fresh process's StatefulDataLoader: same seeds, same arguments."""
    torch.manual_seed(3)
    random.seed(3)
    return torchdata.StatefulDataLoader(
        Numbers() if data is None else data,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=raw,
        generator=torch.Generator().manual_seed(9) if generator else None,
        persistent_workers=persistent,
        **options,
    )


def training(steps: Any, epochs: int = 1) -> list[Any]:
    """What a loop sees: each batch, and what its step draws from torch's global generator."""
    return [[(batch, float(torch.rand(1))) for batch in steps] for _ in range(epochs)]


class Stock:
    """torchdata as it is."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def state_dict(self) -> Any:
        return self.source.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.source.load_state_dict(state)


def undisturbed_run(make: Any, component: Any, epochs: int = 3) -> list[Any]:
    """All steps of an undisturbed run; None ends an epoch."""
    whole = make()
    kept = component(whole)
    steps = [one for epoch in training(whole, epochs) for one in [*epoch, None]]
    assert kept is not None
    return steps


def resumed_run(make: Any, component: Any, steps: list[Any], done: int) -> list[Any]:
    """What a run does that was saved behind step `done` of `steps` and resumed in fresh objects."""
    first = make()
    saved = component(first)
    iteration, seen = iter(first), []
    for _ in range(done):
        one = next(iteration, None)
        seen.append(None if one is None else (one, float(torch.rand(1))))
        if one is None:
            iteration = iter(first)
    assert seen == steps[:done], "saving had changed the run already"
    state = copy.deepcopy(saved.state_dict())
    generators = torch.get_rng_state(), random.getstate()

    second = make()
    resumed = component(second)
    resumed.load_state_dict(state)
    torch.set_rng_state(generators[0])
    random.setstate(generators[1])
    rest: list[Any] = []
    while len(rest) < len(steps) - done:
        rest += [*training(second)[0], None]
    return rest


def cut(make: Any, component: Any, done: int) -> tuple[list[Any], list[Any]]:
    """Both behind step `done`."""
    steps = undisturbed_run(make, component)
    return steps[done:], resumed_run(make, component, steps, done)


def order(steps: list[Any]) -> list[Any]:
    """The sample numbers alone."""
    return [None if one is None else [index for index, _ in one[0]] for one in steps]


# --- gap (a): the generators --------------------------------------------------------------------


def test_stock_shuffles_the_next_epoch_otherwise_after_a_resume() -> None:
    # Without workers; with them its iterator draws the order last, and the next epoch is right.
    undisturbed, resumed = cut(stateful, Stock, done=2)
    left = STEPS - 2
    assert order(resumed)[:left] == order(undisturbed)[:left]
    assert order(resumed)[left + 1 :] != order(undisturbed)[left + 1 :]


def test_stock_draws_from_the_global_generator_when_it_is_resumed() -> None:
    undisturbed, resumed = cut(lambda: stateful(generator=False), Stock, done=2)
    assert order(resumed) == order(undisturbed)
    assert resumed != undisturbed


def test_stock_changes_the_run_when_its_state_is_read_before_the_first_batch() -> None:
    asked, left_alone = stateful(generator=False), stateful(generator=False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked.state_dict()
    assert not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    adapted: Any = adapt(left_alone)
    adapted.state_dict()
    assert torch.equal(before, torch.get_rng_state()) and left_alone._iterator is None


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_resume_at_every_step_is_exact(workers: int, persistent: bool, generator: bool) -> None:
    def make() -> Any:
        data = seeded(Numbers(noise=True), seed=1) if workers else Numbers(noise=True)
        return stateful(workers, data=data, generator=generator, persistent=persistent)

    steps = undisturbed_run(make, adapt, epochs=2)
    for done in range(2 * STEPS + 1) if workers == 0 else (0, 1, 3, 4, 7):
        assert resumed_run(make, adapt, steps, done) == steps[done:], done


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_resume_between_two_epochs_is_exact(
    workers: int, persistent: bool, generator: bool
) -> None:
    def make() -> tuple[Any, Any]:
        data = seeded(Numbers(noise=True), seed=1)
        source = stateful(workers, data=data, persistent=persistent, generator=generator)
        return source, adapt(source)

    whole, _kept = make()
    expected = training(whole, 3)

    first, saved = make()
    assert training(first) == expected[:1]
    state, rng = copy.deepcopy(saved.state_dict()), torch.get_rng_state()

    second, resumed = make()
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    assert training(second, 2) == expected[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_adapter_changes_nothing_of_an_undisturbed_run(workers: int) -> None:
    alone = training(stateful(workers, generator=False), 2)
    source = stateful(workers, generator=False)
    component: Any = adapt(source, workers_rng="none")
    component.state_dict()
    assert training(source, 2) == alone


def test_a_state_that_was_loaded_and_not_begun_can_be_saved_again() -> None:
    first = stateful()
    saved: Any = adapt(first)
    list(itertools.islice(first, 2))
    state = saved.state_dict()
    second: Any = adapt(stateful())
    second.load_state_dict(state)
    assert second.state_dict() == state


# --- gap (b): the generators of worker processes ------------------------------------------------


def test_stock_loses_the_random_numbers_of_its_workers() -> None:
    undisturbed, resumed = cut(lambda: stateful(2, data=Numbers(noise=True)), Stock, done=2)
    assert order(resumed)[:2] == order(undisturbed)[:2]
    assert [one[0] for one in resumed[:2]] != [one[0] for one in undisturbed[:2]]


def test_workers_are_refused_unless_seeded_or_said_to_draw_nothing() -> None:
    with pytest.raises(lg.Invalid, match=r"2 worker processes, .* lg.data.seeded\(dataset\)"):
        adapt(stateful(2))
    assert adapt(stateful(2), workers_rng="none") is not None
    assert adapt(stateful(2, data=seeded(Numbers(), seed=1))) is not None
    with pytest.raises(lg.Invalid, match=r"seeded\(dataset, seed="):
        adapt(stateful(2, data=seeded(Numbers())))


def test_seeded_noise_differs_by_epoch_under_torchdata() -> None:
    source = stateful(2, data=seeded(Numbers(noise=True), seed=1), persistent=True)
    keep = adapt(source)
    noise = [value for _ in range(3) for batch in source for _, value in batch]
    assert keep is not None and len(set(noise)) == 3 * LENGTH


# --- gap (c): another number of workers ---------------------------------------------------------


def test_stock_dies_in_an_assertion_with_another_number_of_workers() -> None:
    first = stateful(2)
    iteration = iter(first)
    next(iteration)
    state = first.state_dict()
    del iteration
    second = stateful(3)
    second.load_state_dict(state)
    with pytest.raises(AssertionError):
        next(iter(second))


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        ({"workers": 2}, {"workers": 3}, r"num_workers=2, and now has num_workers=3"),
        ({"workers": 2}, {"workers": 0}, r"num_workers=2, and now has num_workers=0"),
        ({"workers": 0}, {"workers": 2}, r"num_workers=0, and now has num_workers=2"),
        ({}, {"data": Numbers(length=13)}, r"length=12, and now has length=13"),
        ({}, {"generator": False}, r"another set of generators"),
    ],
)
def test_another_loader_is_an_error_before_anything_changes(
    there: dict[str, Any], here: dict[str, Any], text: str
) -> None:
    first = stateful(**there)
    saved: Any = adapt(first, workers_rng="none")
    list(itertools.islice(first, 2))
    state = saved.state_dict()

    second, untouched = stateful(**here), stateful(**here)
    resumed: Any = adapt(second, workers_rng="none")
    with pytest.raises(lg.Incompatible, match=text):
        resumed.load_state_dict(state)
    assert second.next_iter_state is None
    assert order(training(second)[0]) == order(training(untouched)[0])


def test_another_rank_or_world_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    component: Any = adapt(stateful())
    state = component.state_dict()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        lg.Incompatible, match=r"world_size=1, and now has world_size=2; .* lg.data.Sampler"
    ):
        component.load_state_dict(state)


def test_hostile_states() -> None:
    source = stateful()
    component: Any = adapt(source)
    next(iter(source))
    state = component.state_dict()
    for change in (
        {"kind": "grain"},
        {"epoch": -2},
        {"epoch": 0.0},
        {"loader": {"a": 1}},
        {"more": 1},
    ):
        with pytest.raises(lg.Invalid):
            component.load_state_dict(state | change)
        assert source.next_iter_state is None
    for missing in state:
        with pytest.raises(lg.Invalid):
            component.load_state_dict({k: v for k, v in state.items() if k != missing})


def test_adapters_share_what_they_know_and_make_no_cycle() -> None:
    # `lg.open` adapts a component anew for every save and restore.
    source = stateful(2, data=seeded(Numbers(noise=True), seed=1), persistent=True)
    first: Any = adapt(source)
    assert adapt(first) is first
    list(source)
    assert (first.epoch, adapt(source).epoch) == (0, 0)  # type: ignore[union-attr]
    state = first.state_dict()
    first.load_state_dict(state)
    assert adapt(source).state_dict() == state  # type: ignore[union-attr]
    list(source)
    assert first.epoch == 1
    gone = weakref.ref(source)
    gc.disable()
    try:
        del source, first
        assert gone() is None
    finally:
        gc.enable()


def test_a_stateful_loader_with_our_sampler() -> None:
    def make() -> Any:
        sampler = Sampler(LENGTH, seed=5, batch_size=BATCH, rank=0, world_size=1)
        return torchdata.StatefulDataLoader(
            seeded(Numbers(noise=True)), batch_sampler=sampler, num_workers=2, collate_fn=raw
        )

    bare = make()
    with pytest.raises(lg.Invalid, match=r"iterate over lg.data.loader\(dataloader\)"):
        adapt(bare)
    expected = [list(one) for one in [loader(make())] for _ in range(2)]
    first = loader(make())
    seen = list(itertools.islice(first, 2))
    second = loader(make())
    second.load_state_dict(first.state_dict())
    assert [seen + list(second), list(second)] == [*expected[:1], *expected[1:]]


# --- what adapt takes and refuses ---------------------------------------------------------------


def test_adapt_of_torch_and_of_others() -> None:
    sampler: Any = Sampler(LENGTH, seed=5, batch_size=BATCH, rank=0, world_size=1)
    plain = DataLoader(Numbers(), batch_sampler=sampler)
    assert adapt(plain) is sampler and adapt(sampler) is sampler
    counted = loader(plain)
    assert adapt(counted) is counted and adapt(plain) is sampler
    with pytest.raises(lg.Invalid, match=r"no state of its own. .*lg.data.Sampler"):
        adapt(DataLoader(Numbers()))
    for other in (None, 3, "text", [1], torch.zeros(1), Numbers()):
        assert adapt(other) is None


def test_an_iterable_dataset_is_told_what_it_can_do() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(LENGTH))

    source = torchdata.StatefulDataLoader(Stream(), batch_size=BATCH, num_workers=1)
    with pytest.raises(lg.Invalid, match=r'workers_rng="none"'):
        adapt(source)
    with pytest.raises(lg.Invalid, match=r"a Stream is no map-style"):
        seeded(Stream())


# --- Grain --------------------------------------------------------------------------------------


def grain_loader(length: int = LENGTH) -> Any:
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(length, shuffle=True, seed=4, num_epochs=2)
    return iter(grain.DataLoader(data_source=range(length), sampler=sampler, worker_count=0))


def grain_dataset() -> Any:
    grain = pytest.importorskip("grain")
    data = (
        grain.MapDataset.range(LENGTH)
        .shuffle(seed=4)
        .repeat(2)
        .batch(BATCH)
        .map(lambda x: x.tolist())
    )
    return iter(data.to_iter_dataset())


@pytest.mark.parametrize("make", [grain_loader, grain_dataset])
def test_grain_goes_on_exactly(make: Any) -> None:
    expected = list(make())
    for done in range(0, len(expected) + 1, 4):
        first = make()
        seen = [next(first) for _ in range(done)]
        state: Any = adapt(first)
        second = make()
        resumed: Any = adapt(second)
        resumed.load_state_dict(copy.deepcopy(state.state_dict()))
        assert seen + list(second) == expected, done


@pytest.mark.parametrize("make", [grain_loader, grain_dataset])
def test_a_foreign_grain_state_changes_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make()
    component: Any = adapt(source)
    next(source)
    state = component.state_dict()
    for change, error in (
        ({"kind": "other"}, lg.Incompatible),
        ({"iterator": "other"}, lg.Incompatible),
        ({"state": b'{"nonsense": 1}'}, lg.Incompatible),
        ({"state": b"not json"}, lg.Incompatible),
        ({"more": 1}, lg.Invalid),
    ):
        with pytest.raises(error):
            component.load_state_dict(state | change)
        assert component.state_dict() == state
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(lg.Incompatible, match=r"world_size=1, and now has world_size=2"):
        component.load_state_dict(state)
    monkeypatch.undo()
    assert next(source) == list(make())[1]


def test_grain_over_another_source_is_refused() -> None:
    state: Any = adapt(grain_loader(13))
    component: Any = adapt(grain_loader())
    with pytest.raises(lg.Incompatible, match=r"Grain refuses"):
        component.load_state_dict(state.state_dict())


def test_grain_without_position_is_told_to_give_the_iterator() -> None:
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.range(4)
    for source in (data, data.to_iter_dataset()):
        with pytest.raises(lg.Invalid, match=r"give "):
            adapt(source)
