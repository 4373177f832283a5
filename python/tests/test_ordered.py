"""Sums and trainings over logical ranks have the same bytes on any number of processes, and plain ones have not."""

from __future__ import annotations

import doctest
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import forks
import lastgood as lg
import torch
from children import PROGRAMS

WORLDS = (1, 2, 3, 4)

Found = dict[tuple[int, int], dict[str, str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process found in a job of each size, by the size and its rank."""
    folder = tmp_path_factory.mktemp("ordered")
    ranks = []
    for rank in range(max(WORLDS)):
        command = [sys.executable, str(PROGRAMS / "ordered_ranks.py"), str(rank), str(folder)]
        with open(folder / f"output.{rank}", "wb") as output:
            ranks.append(forks.Fork("torch", command, env=forks.environment(), stdout=output))
    for process in ranks:
        # Each rank ends itself if it hangs.
        process.wait(200)
    return {(w, r): read(folder, w, r) for w in WORLDS for r in range(w)}


def read(folder: Path, processes: int, rank: int) -> dict[str, str]:
    result = folder / f"{processes}.{rank}.json"
    output = (folder / f"output.{rank}").read_text(errors="replace")[-3000:]
    assert result.exists(), f"rank {rank} of {processes} did not come so far:\n{output}"
    value = json.loads(result.read_text())
    assert isinstance(value, dict), f"rank {rank} of {processes}:\n{value}"
    return value


def worlds_that_differ(found: Found, name: str) -> set[int]:
    alone = found[1, 0][name]
    return {world for (world, _), values in found.items() if values[name] != alone}


def test_sums_are_additions_one_after_the_other(found: Found) -> None:
    alone = found[1, 0]
    references = {k: v for k, v in alone.items() if k.startswith("reference of ")}
    assert len(references) == 13
    for name, value in references.items():
        sought = name.removeprefix("reference of ")
        assert alone[sought] == alone[f"{sought} in pieces"] == value, name


def test_sums_have_the_same_bytes_on_any_number_of_processes(found: Found) -> None:
    names = [n for n in found[1, 0] if n.startswith(("sum", "mean", "shape", "acc", "transposed"))]
    assert len(names) == 38
    assert {name: worlds_that_differ(found, name) for name in names} == {n: set() for n in names}


def test_a_plain_all_reduce_has_not(found: Found) -> None:
    """Else nothing would be shown here."""
    assert worlds_that_differ(found, "plain")


def test_a_training_has_the_same_bytes_on_any_number_of_processes(found: Found) -> None:
    assert worlds_that_differ(found, "training") == set()
    assert worlds_that_differ(found, "training in pieces") == set()
    assert found[1, 0]["training in pieces"] == found[1, 0]["training"]


def test_a_hook_of_ddp_is_the_same_training(found: Found) -> None:
    for world in (2, 3, 4):
        for rank in range(world):
            values = found[world, rank]
            by_hand = values["training with a logical rank a process"]
            assert values["training by DDP"] == by_hand, (world, rank)
    # 4 processes with a logical rank each, and one process with 4.
    assert found[4, 3]["training by DDP"] == found[1, 0]["training"]
    assert found[2, 0]["training by DDP"] != found[1, 0]["training"]


def test_a_part_of_the_processes_can_be_the_group(found: Found) -> None:
    for rank in (1, 3):
        names = [name for name in found[4, rank] if name.startswith("group of 2: ")]
        assert len(names) == 19
        for name in names:
            assert found[4, rank][name] == found[1, 0][name.removeprefix("group of 2: ")]


def one(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2,)) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("parts", "how", "expected"),
    [
        (
            [one()] * 3,
            {"logical": 4},
            ["logical ranks [0, 1, 2, 3] of 4, and 3 tensors", "one for"],
        ),
        ([], {}, ["0 tensors are given"]),
        ([one(), one(shape=(3,))], {}, ["rank 1", "float32 [3] on cpu", "float32 [2] on cpu"]),
        ([one(), one(torch.float64)], {}, ["rank 1", "float64 [2]", "equal shapes, dtypes"]),
        ([one()], {"op": "max"}, ["'max'", "'sum' or 'mean'"]),
        ([one(torch.int32)], {"op": "mean"}, ["no mean of torch.int32", "convert it"]),
        ([one(torch.bool)], {}, ["no sum of torch.bool"]),
        ([one().to_sparse()], {}, ["sparse_coo", "to_dense()"]),
        ([one()], {"accumulate": torch.bfloat16}, ["accumulate=torch.bfloat16 cannot hold"]),
        ([one(torch.int64)], {"accumulate": torch.float64}, ["cannot hold torch.int64"]),
        ([one()], {"out": one(shape=(3,))}, ["out is torch.float32 [3]", "float32 [2] on cpu"]),
        ([one(shape=(2, 3))], {"out": one(shape=(3, 2)).t()}, ["a contiguous tensor"]),
        ([one()], {"logical": 0}, ["0 logical ranks are fewer than 1 processes"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    parts: list[torch.Tensor], how: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(lg.Invalid) as caught:
        lg.torch.ordered_all_reduce(parts, **how)
    assert all(part in str(caught.value) for part in expected), caught.value


def test_gradients_that_do_not_fit_are_refused() -> None:
    model = torch.nn.Linear(2, 1)
    weight, bias = torch.ones(1, 2), torch.ones(1)
    for grads, expected in (
        ([weight], "has 1 gradients, and 2 parameters are trained"),
        ([bias, weight], "float32 [1] on cpu for parameter 0, which is torch.float32 [1, 2]"),
        ([weight.double(), bias], "torch.float64 [1, 2] on cpu for parameter 0"),
    ):
        with pytest.raises(lg.Invalid) as caught:
            lg.torch.ordered_all_reduce_grads(model, [grads])
        assert expected in str(caught.value)
    assert model.weight.grad is None


def test_nothing_that_is_given_changes() -> None:
    parts = [torch.full((5,), float(i), requires_grad=True) for i in range(3)]
    total = lg.torch.ordered_all_reduce(parts)
    assert total.tolist() == [3.0] * 5 and not total.requires_grad
    assert [part.tolist() for part in parts] == [[float(i)] * 5 for i in range(3)]
    gradients = [[torch.ones(2)], [torch.ones(2)]]
    lg.torch.ordered_all_reduce_grads([torch.ones(2, requires_grad=True)], gradients, op="sum")
    assert [grad.tolist() for (grad,) in gradients] == [[1.0, 1.0]] * 2
    alone = torch.ones(2)
    assert lg.torch.ordered_all_reduce(alone).data_ptr() != alone.data_ptr()


def test_unused_and_frozen_parameters() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False) for _ in range(3)])
    model[1].requires_grad_(False)
    used = torch.tensor([[4.0, 8.0]])
    lg.torch.ordered_all_reduce_grads(model, [[used, None], [None, None]])
    assert [layer.weight.grad is None for layer in model] == [False, True, False]
    assert model[0].weight.grad.tolist() == [[2.0, 4.0]]
    assert model[2].weight.grad.tolist() == [[0.0, 0.0]]


def test_only_the_first_contribution_can_take_the_sum() -> None:
    parts = [torch.full((5,), float(i)) for i in range(3)]
    with pytest.raises(lg.Invalid, match="later contributions; give the first"):
        lg.torch.ordered_all_reduce(parts, out=parts[1])
    assert lg.torch.ordered_all_reduce(parts, out=parts[0]) is parts[0]
    assert parts[0].tolist() == [3.0] * 5


@pytest.mark.parametrize("processes", range(1, 9))
def test_every_logical_rank_is_held_once(processes: int) -> None:
    logical = lg.torch.LogicalRanks(8)
    logical.processes = processes
    held = [rank for process in range(processes) for rank in logical.of(process)]
    assert held == list(range(8))
    counts = [len(logical.of(process)) for process in range(processes)]
    assert max(counts) - min(counts) <= 1 and min(counts) >= 1


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(importlib.import_module("lastgood.torch._ordered"))
    assert result.failed == 0 and result.attempted > 15
