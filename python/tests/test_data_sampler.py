"""`lg.data.Sampler` and `lg.data.loader`: every sample once, whatever changes in an epoch."""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
import torch
from lastgood.data import Index, Loader, Sampler, loader
from torch.utils.data import DataLoader, Dataset

LENGTH, BATCH, SEED = 26, 8, 11
WORLDS = (1, 2, 3, 4, 8)


class Numbers(Dataset[int]):
    """Sample i is i."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return int(index)


def make(world_size: int | None = 1, rank: int | None = 0, **options: Any) -> Sampler:
    options = {"seed": SEED, "batch_size": BATCH, "allow_empty": True} | options
    return Sampler(options.pop("length", LENGTH), rank=rank, world_size=world_size, **options)


def ints(batch: Any) -> list[int]:
    return [int(sample) for sample in batch]


def reference(epochs: int, drop_last: bool, shuffle: bool = True) -> list[list[list[int]]]:
    """The global batches of each epoch, from one undisturbed rank."""
    sampler = make(drop_last=drop_last, shuffle=shuffle)
    batches = loader(sampler)
    return [[ints(batch) for batch in batches] for _ in range(epochs)]


class Job:
    """All ranks of a job in lock-step: `step` gives the global batch, None ends an epoch."""

    def __init__(self, world_size: int, state: dict[str, Any] | None, **options: Any) -> None:
        self.loaders = [loader(make(world_size, rank, **options)) for rank in range(world_size)]
        for one in self.loaders:
            if state is not None:
                one.load_state_dict(copy.deepcopy(state))
        self.passes: list[Iterator[Any]] = [iter(one) for one in self.loaders]

    def step(self) -> list[int] | None:
        shares = [next(one, None) for one in self.passes]
        assert len({share is None for share in shares}) == 1, "the ranks do not end together"
        if shares[0] is None:
            self.passes = [iter(one) for one in self.loaders]
            return None
        return [sample for share in shares if share is not None for sample in ints(share)]

    def state(self) -> dict[str, Any]:
        states = [one.state_dict() for one in self.loaders]
        assert all(state == states[0] for state in states), "the state depends on the rank"
        return states[0]


def flat(epochs: list[list[list[int]]]) -> list[list[int] | None]:
    """All steps of all epochs, each epoch ended by None."""
    return [step for epoch in epochs for step in [*epoch, None]]


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_gives_every_sample_once_in_another_order(drop_last: bool) -> None:
    epochs = reference(4, drop_last)
    kept = LENGTH - LENGTH % BATCH if drop_last else LENGTH
    for epoch in epochs:
        samples = [sample for batch in epoch for sample in batch]
        assert len(samples) == kept == len(set(samples)) and set(samples) <= set(range(LENGTH))
        assert len(epoch) == len(make(drop_last=drop_last))
    assert len({str(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_any_change_of_ranks_at_every_step_goes_on_exactly(drop_last: bool, shuffle: bool) -> None:
    options = {"drop_last": drop_last, "shuffle": shuffle}
    expected = flat(reference(3, **options))
    for before, after in itertools.product(WORLDS, WORLDS):
        first = Job(before, None, **options)
        for done in range(len(expected) - 1):
            second = Job(after, first.state(), **options)
            # A save between two epochs is resumed in the next one, a save in the last body with
            # the empty rest.
            assert [second.step() for _ in expected[done:]] == expected[done:], (
                before,
                after,
                done,
            )
            assert first.step() == expected[done]


def test_a_new_world_at_every_single_step() -> None:
    expected = flat(reference(4, drop_last=False))
    state, worlds, seen = None, itertools.cycle([3, 1, 8, 2, 4, 5, 7]), []
    for _ in expected:
        job = Job(next(worlds), state)
        seen.append(job.step())
        state = job.state()
    assert seen == expected


def test_shares_differ_by_at_most_one_sample() -> None:
    for world_size in (1, 2, 3, 5, 7, 8):
        sizes = [len(next(iter(make(world_size, rank)))) for rank in range(world_size)]
        assert sum(sizes) == BATCH and max(sizes) - min(sizes) <= 1


def numbers(workers: int, **options: Any) -> DataLoader[int]:
    """A DataLoader over its own Sampler, collating nothing."""
    extra = {key: options.pop(key) for key in ("persistent_workers",) if key in options}
    return DataLoader(
        Numbers(),
        batch_sampler=make(**options),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=ints,
        **extra,
    )


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2)])
def test_a_change_of_workers_at_every_step_goes_on_exactly(
    before: int, after: int, drop_last: bool
) -> None:
    expected = flat(reference(2, drop_last))
    half = len(expected) // 2
    first = loader(numbers(before, drop_last=drop_last), workers_rng="none")
    steps = iter(first)
    for done in range(half):
        second = loader(numbers(after, drop_last=drop_last), workers_rng="none")
        second.load_state_dict(first.state_dict())
        rest = [[*second, None] for _ in range(2)]
        assert [step for epoch in rest for step in epoch] == expected[done:], done
        assert next(steps, None) == expected[done]


def test_persistent_workers_over_three_epochs() -> None:
    batches = loader(numbers(2, persistent_workers=True), workers_rng="none")
    assert [list(batches) for _ in range(3)] == reference(3, drop_last=False)
    assert batches.epoch == 3


def test_prefetched_batches_are_not_consumed() -> None:
    batches = loader(numbers(2), workers_rng="none")
    steps = iter(batches)
    next(steps)
    # All four batches of the epoch are with the workers by now.
    assert batches.sampler._ran_out
    assert batches.state_dict()["position"] == BATCH


def test_a_loop_left_in_the_middle_goes_on_there() -> None:
    expected = reference(1, drop_last=False)[0]
    batches = loader(numbers(2), workers_rng="none")
    assert list(itertools.islice(batches, 2)) + list(batches) == expected
    assert batches.epoch == 1


def test_code_at_the_end_of_an_epoch_is_not_lost_by_a_save_in_its_last_step() -> None:
    """The loop of the documentation, killed after each of its saves."""

    def train(state: dict[str, Any] | None, stop_after: int) -> tuple[list[Any], dict[str, Any]]:
        batches = loader(make(), workers_rng="none")
        if state is not None:
            batches.load_state_dict(state)
        log: list[Any] = []
        steps = 0
        for _ in range(batches.epoch, 3):
            for batch in batches:
                log.append(ints(batch))
                steps += 1
                if steps == stop_after:
                    return log, batches.state_dict()
            log.append("end of epoch")
        return log, batches.state_dict()

    whole, _ = train(None, 10**9)
    for stop in range(1, 13):
        first, state = train(None, stop)
        second, _ = train(state, 10**9)
        assert first + second == whole, stop


def test_another_batch_size_on_purpose() -> None:
    sampler = make()
    order = [sample for batch in reference(1, drop_last=False)[0] for sample in batch]
    batches = loader(sampler)
    seen = [ints(batch) for batch in itertools.islice(batches, 1)]
    sampler.batch_size = 4
    seen += [ints(batch) for batch in batches]
    assert [sample for batch in seen for sample in batch] == order
    assert [len(batch) for batch in seen] == [8, 4, 4, 4, 4, 2]
    other = make(batch_size=4)
    with pytest.raises(lg.Invalid, match=r"batch_size must be"):
        other.batch_size = 0
    assert other.batch_size == 4


# --- counting -----------------------------------------------------------------------------------


def test_a_loop_that_counts_by_itself() -> None:
    dataloader = numbers(2)
    sampler: Any = dataloader.batch_sampler
    seen: list[list[list[int]]] = []
    for epoch in range(3):
        seen.append([])
        for batch in dataloader:
            seen[-1].append(batch)
            sampler.advance()
            done = sampler.state_dict()
            assert done["epoch"] * LENGTH + done["position"] == epoch * LENGTH + sum(
                map(len, seen[-1])
            )
        assert sampler.epoch == epoch + 1
    assert seen == reference(3, drop_last=False)


def test_a_loop_that_counts_nothing_is_an_error_at_its_save() -> None:
    dataloader = numbers(0)
    sampler: Any = dataloader.batch_sampler
    for _ in dataloader:
        with pytest.raises(
            lg.Invalid, match=r"1 batches of epoch 0 .* none was counted,.*lg.data.loader"
        ):
            sampler.state_dict()
        break


# torch's own `__del__` fails on an iterator whose making was refused.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_counts_nothing_is_an_error_at_its_next_epoch(workers: int) -> None:
    dataloader = numbers(workers)
    list(dataloader)
    gc.collect()
    with pytest.raises(lg.Invalid, match=r"the next pass would repeat them"):
        iter(dataloader)
    with pytest.raises(lg.Invalid, match=r"none was counted"):
        dataloader.batch_sampler.state_dict()  # type: ignore[union-attr]


def test_a_look_at_the_first_batch_is_no_error() -> None:
    dataloader = numbers(0)
    first = next(iter(dataloader))
    gc.collect()
    sampler: Any = dataloader.batch_sampler
    assert sampler.state_dict()["position"] == 0
    assert next(iter(loader(dataloader))) == first


def test_counting_too_much_is_an_error() -> None:
    sampler = make()
    with pytest.raises(lg.Invalid, match=r"0 batches were given out"):
        sampler.advance()
    next(iter(sampler))
    sampler.advance()
    with pytest.raises(lg.Invalid, match=r"1 batches were given out .* 1 of"):
        sampler.advance()
    assert sampler.position == BATCH


def test_counting_beside_a_loader_is_an_error() -> None:
    dataloader = numbers(0)
    batches = loader(dataloader)
    next(iter(batches))
    with pytest.raises(lg.Invalid, match=r"counts the batches of this Sampler already"):
        batches.sampler.advance()
    with pytest.raises(lg.Invalid, match=r"iterate over what lg.data.loader returned"):
        iter(dataloader)
    with pytest.raises(lg.Invalid, match=r"has a lg.data.loader already"):
        loader(dataloader)


@pytest.mark.parametrize("disturb", ["load", "iterate", "batch_size"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_from_before_a_restore_is_stale(disturb: str, workers: int) -> None:
    batches = loader(numbers(workers), workers_rng="none")
    steps = iter(batches)
    next(steps)
    if disturb == "load":
        batches.load_state_dict(batches.state_dict())
    elif disturb == "iterate":
        next(iter(batches))
    else:
        batches.sampler.batch_size = 2
    position = batches.sampler.position
    with pytest.raises(lg.Invalid, match=r"restore first, then iterate"):
        next(steps)
    assert batches.sampler.position == position


def test_a_loader_is_torn_down_at_once() -> None:
    # In a cycle, torch waits 5 s for each persistent worker.
    batches = loader(numbers(2, persistent_workers=True), workers_rng="none")
    list(batches)
    gone = weakref.ref(batches.source)
    gc.disable()
    try:
        del batches
        assert gone() is None
    finally:
        gc.enable()


def test_what_loader_refuses() -> None:
    def refused(source: Callable[[], Any], text: str) -> None:
        with pytest.raises(lg.Invalid, match=text):
            loader(source())

    data = Numbers()
    refused(lambda: DataLoader(data, batch_size=4), r"whose batch_sampler is a lg.data.Sampler")
    sampler: Any = make()
    refused(lambda: DataLoader(data, sampler=sampler), r"batch_sampler=sampler\), not sampler=")
    refused(lambda: DataLoader(Numbers(5), batch_sampler=sampler), r"has 5 samples .* has 26")
    refused(lambda: [1, 2], r"found a list")
    refused(lambda: numbers(2), r"2 worker processes, .* lg.data.seeded")
    dataloader = numbers(2)
    dataloader.in_order = False
    refused(lambda: dataloader, r"in_order=False")
    assert isinstance(loader(numbers(2), workers_rng="none"), Loader)
    with pytest.raises(lg.Invalid, match=r"workers_rng is refuse or none"):
        loader(numbers(0), workers_rng="nothing")  # type: ignore[arg-type]


def test_a_dataloader_that_ends_early_is_an_error() -> None:
    class Short(DataLoader[int]):
        def __iter__(self) -> Any:
            return itertools.islice(super().__iter__(), 2)

    batches = loader(Short(Numbers(), batch_sampler=make()))  # type: ignore[arg-type]
    with pytest.raises(lg.Invalid, match=r"ended 2 batches before the end of epoch 0"):
        list(batches)


def test_beginning_an_iteration_draws_no_random_number() -> None:
    for workers in (0, 2):
        plain = numbers(workers)
        before = torch.get_rng_state()
        list(itertools.islice(loader(plain, workers_rng="none"), 1))
        assert torch.equal(torch.get_rng_state(), before)
    # What a plain DataLoader does, and what would make a resumed run differ.
    iter(numbers(0))
    assert not torch.equal(torch.get_rng_state(), before)


# --- states and arguments -----------------------------------------------------------------------


def good_state() -> dict[str, Any]:
    sampler = make()
    next(iter(loader(sampler)))
    return sampler.state_dict()


HOSTILE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"length": 27}, lg.Incompatible, r"length=27, and this Sampler has length=26"),
    ({"algorithm": "feistel-2"}, lg.Incompatible, r"algorithm='feistel-2', .*'feistel-1'"),
    ({"algorithm": "in-order-1"}, lg.Incompatible, r"use the same shuffle="),
    ({"seed": 12}, lg.Incompatible, r"seed=12, .*seed=11"),
    ({"batch_size": 16}, lg.Incompatible, r"batch_size=16, .*batch_size=8"),
    ({"drop_last": True}, lg.Incompatible, r"drop_last=True"),
    ({"drop_last": 0}, lg.Incompatible, r"drop_last=0"),
    ({"length": 26.0}, lg.Incompatible, r"length=26.0"),
    ({"position": -1}, lg.Invalid, r"position must be an int from 0 to 26, found -1"),
    ({"position": 27}, lg.Invalid, r"position must be an int from 0 to 26, found 27"),
    ({"position": True}, lg.Invalid, r"position must be an int"),
    ({"position": 1.5}, lg.Invalid, r"position must be an int"),
    ({"position": None}, lg.Invalid, r"position must be an int"),
    ({"epoch": -1}, lg.Invalid, r"epoch must be an int from 0"),
    ({"epoch": 2**64}, lg.Invalid, r"epoch must be an int from 0"),
    ({"epoch": "1"}, lg.Invalid, r"epoch must be an int from 0"),
    ({"more": 1}, lg.Invalid, r"expected the fields .* found .*'more'"),
]


@pytest.mark.parametrize(("change", "error", "text"), HOSTILE)
def test_a_hostile_state_is_an_error_that_changes_nothing(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    sampler = make()
    batches = loader(sampler)
    steps = iter(batches)
    next(steps)
    before = sampler.state_dict()
    with pytest.raises(error, match=text):
        batches.load_state_dict(good_state() | change)
    assert sampler.state_dict() == before
    # Not even the running iteration is disturbed.
    assert [ints(batch) for batch in steps] == reference(1, drop_last=False)[0][1:]


@pytest.mark.parametrize(
    "field", ["algorithm", "length", "seed", "batch_size", "drop_last", "epoch", "position"]
)
def test_a_state_without_a_field_is_an_error(field: str) -> None:
    state = good_state()
    del state[field]
    with pytest.raises(lg.Invalid, match=r"expected the fields"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"length": 0}, r"length must be an int from 1"),
        ({"length": 2**63}, r"length must be"),
        ({"seed": -1}, r"seed must be"),
        ({"seed": 2**64}, r"seed must be"),
        ({"seed": 0.5}, r"seed must be"),
        ({"batch_size": 0}, r"batch_size must be"),
        ({"batch_size": True}, r"batch_size must be"),
        ({"batch_size": 27, "drop_last": True}, r"less than one batch of 27"),
        ({"rank": None}, r"give rank and world_size, or neither"),
        ({"rank": 2, "world_size": 2}, r"rank 2 of 2"),
        ({"rank": -1, "world_size": 2}, r"rank -1 of 2"),
        (
            {"world_size": 3, "allow_empty": False},
            r"a batch of 2 samples leaves 1 of 3 ranks with none",
        ),
        (
            {"world_size": 9, "drop_last": True, "allow_empty": False},
            r"a batch of 8 samples leaves 1 of 9",
        ),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(lg.Invalid, match=text):
        make(**options)


def test_a_load_that_would_leave_a_rank_with_nothing_is_refused_at_the_next_step() -> None:
    # Behind position 1 the rest of the epoch is 25 = 3 * 8 + 1 samples: one for two ranks.
    sampler = make(world_size=2, allow_empty=False)
    sampler.load_state_dict(sampler.state_dict() | {"position": 1})
    with pytest.raises(lg.Invalid, match=r"a batch of 1 samples leaves 1 of 2 ranks with none"):
        iter(sampler)


def test_an_index_is_an_int_that_survives_pickle() -> None:
    batch = next(iter(make()))
    copied = pickle.loads(pickle.dumps(batch))
    assert copied == batch and [index.stamp for index in copied] == [(SEED, 0)] * BATCH
    assert all(type(index) is Index for index in copied)
    values = torch.arange(LENGTH)
    assert [int(values[index]) for index in batch] == ints(batch)
    assert [list(range(LENGTH))[index] for index in batch] == ints(batch)
    assert values.numpy()[batch[0]] == batch[0]
    big = list(next(iter(make(length=10**6, batch_size=64))))
    assert len(pickle.dumps(big)) < 64 * 16


def test_a_sampler_can_be_sent_to_another_process() -> None:
    sampler = make()
    next(iter(loader(sampler)))
    copied = pickle.loads(pickle.dumps(sampler))
    assert copied.state_dict() == sampler.state_dict()
    assert ints(next(iter(loader(copied)))) == reference(1, drop_last=False)[0][1]


# --- where the rank comes from ------------------------------------------------------------------


def test_the_rank_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(LENGTH, seed=SEED, batch_size=BATCH)
    assert (sampler.rank, sampler.world_size) == (0, 1)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(lg.Invalid, match=r"RANK is '1' and WORLD_SIZE None"):
        iter(sampler)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (sampler.rank, sampler.world_size) == (1, 2)
    assert ints(next(iter(sampler))) == reference(1, drop_last=False)[0][0][4:]
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(lg.Invalid, match=r"WORLD_SIZE 'two'"):
        iter(sampler)


def ranked(
    rank: int, world_size: int, rendezvous: str, state: Any, steps: int, answers: Any
) -> None:
    """One rank of a real process group: the global batches as all ranks gathered them."""
    # Made before the group, and told nothing: as in a script under a launcher without RANK.
    batches = loader(make(drop_last=True, world_size=None, rank=None))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    if state is not None:
        batches.load_state_dict(state)
    seen = []
    for batch in itertools.islice(batches, steps):
        shares: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(shares, ints(batch))
        seen.append([sample for share in shares for sample in share])
    torch.distributed.barrier()
    answers.put((rank, seen, batches.state_dict()))
    torch.distributed.destroy_process_group()


def test_real_process_groups_of_two_and_then_three_ranks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")

    def run(world_size: int, state: Any, steps: int) -> tuple[list[list[int]], Any]:
        answers = context.Queue()
        rendezvous = tmp_path / f"rendezvous-{world_size}"
        ranks = [
            context.Process(
                target=ranked,
                args=(rank, world_size, str(rendezvous), state, steps, answers),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for one in ranks:
            one.start()
        given = [answers.get(timeout=120) for _ in ranks]
        for one in ranks:
            one.join()
        assert all(one[1:] == given[0][1:] for one in given)
        return given[0][1], given[0][2]

    first, state = run(2, None, 1)
    second, _ = run(3, state, 10**6)
    assert first + second == reference(1, drop_last=True)[0]


assert "RANK" not in os.environ, "these tests decide themselves which rank they are"
