"""`lg.data.seeded`: the bytes of a sample are the same in any process and after a resume."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from typing import Any

import lastgood as lg
import numpy
import pytest
import torch
from lastgood.data import Sampler, Seeded, loader, seeded
from torch.utils.data import DataLoader, Dataset, Subset

LENGTH, BATCH = 12, 4


class Augmented(Dataset[Any]):
    """Noise from all three global generators, in several kinds of draws."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> tuple[int, list[float]]:
        # An odd number of normal draws leaves a spare one in the generators of python and numpy.
        return index, [
            random.random(),
            random.gauss(0, 1),
            float(numpy.random.random()),
            float(numpy.random.standard_normal()),
            *torch.rand(2).tolist(),
            float(torch.randn(1)),
        ]


def raw(batch: Any) -> Any:
    """A collate function that changes nothing."""
    return batch


def batches(
    workers: int, data: Any = None, start: str | None = None, persistent: bool = False
) -> Any:
    data = seeded(Augmented()) if data is None else data
    sampler: Any = Sampler(data, seed=5, batch_size=BATCH, rank=0, world_size=1)
    return loader(
        DataLoader(
            data,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=raw,
            multiprocessing_context=start if workers else None,
            persistent_workers=persistent,
        ),
        workers_rng="none",
    )


def epochs(source: Any, count: int = 3) -> list[Any]:
    return [list(source) for _ in range(count)]


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    return epochs(batches(0))


def scramble() -> None:
    """Leaves the global generators somewhere else."""
    random.seed()
    numpy.random.seed()
    torch.seed()


@pytest.mark.parametrize(
    ("workers", "start", "persistent"),
    [
        (0, None, False),
        (1, "fork", False),
        (2, "fork", False),
        (2, "fork", True),
        (2, "spawn", True),
        *([(1, "spawn", True), (2, "spawn", False)] if os.environ.get("LASTGOOD_SLOW") else []),
    ],
)
def test_the_same_bytes_in_any_number_of_workers(
    workers: int, start: str | None, persistent: bool, expected: list[Any]
) -> None:
    scramble()
    assert epochs(batches(workers, start=start, persistent=persistent)) == expected


def test_without_seeded_they_differ(expected: list[Any]) -> None:
    for workers in (0, 2):
        assert epochs(batches(workers, Augmented())) != expected


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 1)])
def test_the_same_bytes_after_a_resume(before: int, after: int, expected: list[Any]) -> None:
    for done in range(1, LENGTH // BATCH + 1):
        first = batches(before)
        seen = list(itertools.islice(first, done))
        scramble()
        second = batches(after)
        second.load_state_dict(first.state_dict())
        assert [seen + list(second), *epochs(second, 2)] == expected, done


def test_every_sample_and_epoch_has_its_own_noise(expected: list[Any]) -> None:
    noise = [tuple(values) for epoch in expected for batch in epoch for _, values in batch]
    columns = list(zip(*noise, strict=True))
    assert all(len(set(column)) == 3 * LENGTH for column in columns)
    # The three generators do not run in step either.
    assert len({round(value, 12) for values in noise for value in values}) == 3 * LENGTH * 7


def states() -> tuple[Any, ...]:
    legacy: Any = numpy.random.get_state()
    return (
        random.getstate(),
        legacy[1].tobytes(),
        legacy[2:],
        torch.get_rng_state().numpy().tobytes(),
    )


def test_the_main_process_gets_its_generators_back() -> None:
    random.gauss(0, 1)
    numpy.random.standard_normal()
    before = states()
    list(batches(0))
    assert states() == before

    class Fails(Augmented):
        def __getitem__(self, index: int) -> Any:
            super().__getitem__(index)
            raise ValueError("broken sample")

    with pytest.raises(ValueError, match="broken sample"):
        list(batches(0, seeded(Fails())))
    assert states() == before


def test_the_noise_is_frozen() -> None:
    """Written by the first version: a later one must not show a resumed run other augmentations."""
    data = seeded(Augmented(), seed=2**64 - 1)
    data.epoch = 3
    _, values = data[7]
    assert values == FROZEN


FROZEN = [
    0.2115381423142907,
    -0.16154796711646033,
    0.6539118231141555,
    -0.8497225834004853,
    0.9059454202651978,
    0.9887811541557312,
    0.22958742082118988,
]


def test_a_sampler_of_the_outside_needs_seed_and_epoch() -> None:
    data = seeded(Augmented())
    with pytest.raises(lg.Invalid, match=r"index 3 carries no epoch and no seed"):
        data[3]
    data = seeded(Augmented(), seed=1)
    with pytest.raises(lg.Invalid, match=r"carries no epoch"):
        data[3]
    data.epoch = 0
    zero = data[3]
    data.epoch = 1
    assert data[3] != zero
    data.epoch = 0
    assert data[3] == zero
    for wrong in (-1, 2**63, 1.0, None, True):
        with pytest.raises(lg.Invalid, match=r"epoch must be an int"):
            data.epoch = wrong  # type: ignore[assignment]
    # An inner wrapper gets numbers of its own.
    inner: Any = Subset(seeded(Augmented()), range(LENGTH))
    with pytest.raises(lg.Invalid, match=r"outermost wrapper"):
        list(batches(0, inner))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_new_epoch_reaches_persistent_workers(start: str) -> None:
    data = seeded(Augmented(), seed=1)
    data.epoch = 0
    stock: Any = DataLoader(
        data,
        batch_size=BATCH,
        num_workers=1,
        collate_fn=raw,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    seen = []
    for epoch in (0, 1, 0):
        data.epoch = epoch
        seen.append(list(stock))
    assert seen[0] == seen[2] != seen[1]


def test_a_seed_of_its_own_overrides_the_samplers(expected: list[Any]) -> None:
    assert epochs(batches(0, seeded(Augmented(), seed=5))) == expected
    other = epochs(batches(0, seeded(Augmented(), seed=6)))
    order = [[index for index, _ in batch] for epoch in other for batch in epoch]
    assert order == [[index for index, _ in batch] for epoch in expected for batch in epoch]
    assert other != expected


def test_what_seeded_refuses() -> None:
    with pytest.raises(lg.Invalid, match=r"a set is no map-style dataset"):
        seeded({1})
    for wrong in (-1, 2**64, 1.5, True):
        with pytest.raises(lg.Invalid, match=r"seed must be an int"):
            seeded([1], seed=wrong)  # type: ignore[arg-type]


def test_the_dataset_shows_through_and_gets_plain_numbers() -> None:
    class Kinds(Augmented):
        def __getitem__(self, index: int) -> Any:
            return type(index)

    assert {kind for batch in batches(0, seeded(Kinds())) for kind in batch} == {int}
    data = seeded(Augmented())
    assert isinstance(data, Seeded) and len(data) == LENGTH and data.classes == ("a", "b")
    with pytest.raises(AttributeError, match="nothing"):
        data.nothing  # noqa: B018


def test_fetching_whole_batches_does_not_pass_by_the_seed(expected: list[Any]) -> None:
    class Batched(Augmented):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            raise AssertionError("unseeded")

    assert epochs(batches(0, seeded(Batched()))) == expected


LATE = """
import random, sys
from lastgood.data import seeded
class Late:
    def __len__(self): return 2
    def __getitem__(self, index):
        import numpy
        return random.random(), float(numpy.random.random())
data = seeded(Late(), seed=1)
data.epoch = 0
assert "numpy" not in sys.modules and "torch" not in sys.modules
first = data[0]
assert "numpy" in sys.modules and "torch" not in sys.modules
assert data[0] == first, (data[0], first)
"""


def test_a_generator_that_is_imported_inside_the_first_sample_is_seeded_too() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
