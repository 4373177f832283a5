"""The order of samples: frozen, a bijection for every length, uniform, the same without numpy."""

from __future__ import annotations

import collections
import doctest
import importlib
import inspect
import itertools
import math
import subprocess
import sys

import lastgood as lg
import pytest
from lastgood.data import _permutation as permutation
from lastgood.data._permutation import Permutation

# Written by the first version. A change here is another order, which must get another
# `ALGORITHM`: a saved position in the old order would lose and repeat samples in the new one.
FROZEN = [
    (1, 0, 0, [0]),
    (10, 7, 0, [8, 7, 0, 5, 6, 4, 9, 2]),
    (10, 7, 1, [7, 4, 9, 2, 1, 3, 8, 6]),
    (1000, 2**64 - 1, 3, [563, 691, 870, 544, 570, 697, 191, 655]),
    (
        10**12,
        1,
        2**64 - 1,
        [
            608757150038,
            843253662489,
            764517301682,
            167289748342,
            27255488751,
            748181995131,
            600004886732,
            223338654377,
        ],
    ),
    (
        2**63 - 1,
        42,
        5,
        [
            5036001438582332756,
            103180677847104760,
            8924705153332712477,
            1232121480248738595,
            7317321404222018505,
            8429294953762463599,
            9102670568108689963,
            1589802077591149983,
        ],
    ),
]


def test_the_order_is_frozen() -> None:
    assert permutation.ALGORITHM == "feistel-1"
    for length, seed, epoch, expected in FROZEN:
        order = Permutation(length, seed=seed, epoch=epoch)
        assert [order[i] for i in range(min(length, 8))] == expected, (length, seed, epoch)


def test_every_length_is_a_bijection_and_numpy_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(permutation, "_VECTOR_MIN", 1)
    for length in [*range(1, 301), 1023, 1024, 4097]:
        order = Permutation(length, seed=length, epoch=1)
        one_by_one = [order[i] for i in range(length)]
        assert sorted(one_by_one) == list(range(length)), length
        assert order.many(range(length)) == one_by_one, length


@pytest.mark.parametrize("length", [10**6 + 3, 2**32, 2**32 + 1, 10**15, 2**63 - 1])
def test_large_lengths(length: int) -> None:
    order = Permutation(length, seed=3, epoch=4)
    ends = [*range(300), *range(length - 300, length), *range(0, length, length // 97)]
    positions = sorted(set(ends))
    drawn = order.many(positions)
    assert drawn == [order[i] for i in positions]
    assert len(set(drawn)) == len(positions)
    assert 0 <= min(drawn) < length / 50 and length * 49 / 50 < max(drawn) < length


def test_a_million_samples_each_once() -> None:
    numpy = pytest.importorskip("numpy")
    drawn = numpy.array(Permutation(10**6, seed=1, epoch=0).many(range(10**6)))
    assert (numpy.bincount(drawn, minlength=10**6) == 1).all()


def test_without_numpy_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Permutation(5000, seed=1, epoch=0)
    with_numpy = order.many(range(5000))
    monkeypatch.setattr(permutation, "_numpy", lambda: None)
    assert order.many(range(5000)) == with_numpy


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_is_an_error(position: int) -> None:
    with pytest.raises(IndexError):
        Permutation(10, seed=0, epoch=0)[position]
    with pytest.raises((IndexError, OverflowError)):
        Permutation(10, seed=0, epoch=0).many([position] * permutation._VECTOR_MIN)


def excess(counts: list[int], expected: float, degrees: int) -> float:
    """How many standard deviations chi-square lies above what chance gives."""
    chi = sum((count - expected) ** 2 / expected for count in counts)
    return (chi - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_order_of_few_samples_is_as_likely(length: int) -> None:
    draws = 40 * math.factorial(length)
    seen = collections.Counter(
        tuple(Permutation(length, seed=seed, epoch=0).many(range(length))) for seed in range(draws)
    )
    counts = [seen[order] for order in itertools.permutations(range(length))]
    assert excess(counts, 40, max(1, len(counts) - 1)) < 5


def test_that_check_sees_a_biased_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permutation, "_SIDE_MIN", 1)
    with pytest.raises(AssertionError):
        test_every_order_of_few_samples_is_as_likely(5)


@pytest.mark.parametrize("vary", ["seed", "epoch"])
def test_every_sample_is_as_likely_at_every_position(vary: str) -> None:
    length, draws = 50, 1500
    counts = [0] * length**2
    steps = [0] * length
    for number in range(draws):
        order = Permutation(length, **({"seed": 1, "epoch": 1} | {vary: number})).many(
            range(length)
        )
        for position, sample in enumerate(order):
            counts[position * length + sample] += 1
        for before, after in itertools.pairwise(order):
            steps[(after - before) % length] += 1
    assert excess(counts, draws / length, (length - 1) ** 2) < 5
    assert excess(steps[1:], draws, length - 2) < 5


def test_examples_in_docstrings_run() -> None:
    count = 0
    for module in ("_permutation", "_sampler", "_counting", "_seeding", "_foreign"):
        result = doctest.testmod(importlib.import_module(f"lastgood.data.{module}"))
        assert result.failed == 0
        count += result.attempted
    assert count > 15


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    for name in ("Index", "Sampler", "adapt", "loader", "seeded"):
        assert ">>>" in (inspect.getdoc(getattr(lg.data, name)) or ""), name
    for name in lg.data.__all__:
        obj = getattr(lg.data, name)
        assert inspect.getdoc(obj), name
        for member, value in vars(obj).items():
            if not member.startswith("_") and (
                inspect.isfunction(value) or isinstance(value, property)
            ):
                assert inspect.getdoc(getattr(obj, member)), (name, member)


def test_importing_it_imports_no_framework() -> None:
    code = "import sys, lastgood.data; print({'torch', 'numpy', 'jax', 'grain'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
