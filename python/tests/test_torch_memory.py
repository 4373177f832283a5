"""Restores change the memory of a live tensor for another only where nobody else can see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
import torch
from torch import nn

#: Elements of a tensor that is large enough to change its memory.
MANY = 300


def square(value: float) -> nn.Module:
    module = nn.Linear(MANY, MANY, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


def restored(folder: Path, model: nn.Module) -> None:
    """Saves ones, and restores them into ``model``."""
    with lg.open(folder, {"m": square(1.0)}) as run:
        run.save(3, block=True)
    with lg.open(folder, {"m": model}) as run:
        assert run.restore() == 3


def test_memory_that_nobody_else_sees_is_not_copied(tmp_path: Path) -> None:
    model = square(2.0)
    before, version = model.weight.data_ptr(), model.weight._version
    restored(tmp_path, model)
    assert model.weight.eq(1).all()
    assert model.weight.data_ptr() != before
    assert model.weight._version > version
    assert model.weight.is_leaf
    assert model.weight.requires_grad


class Flat(nn.Module):
    """Parameters that are views of one buffer, as some wrappers keep them."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.flat = torch.full((2, MANY, MANY), value)
        self.first, self.second = (nn.Parameter(part) for part in self.flat)


VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "another tensor": lambda weight: weight.detach(),
    "a part": lambda weight: weight.detach()[1:5],
    "an array": lambda weight: weight.detach().numpy(),
    "a capsule": lambda weight: torch.from_dlpack(torch.to_dlpack(weight.detach())),
    "its storage": lambda weight: weight.untyped_storage(),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_whoever_shares_the_memory_of_a_tensor_sees_what_is_restored(
    tmp_path: Path, kind: str
) -> None:
    model = square(2.0)
    view = VIEWS[kind](model.weight)
    restored(tmp_path, model)
    if isinstance(view, torch.UntypedStorage):
        view = torch.empty(0).set_(view, 0, (MANY, MANY))
    assert (view == 1).all()
    model.weight.data[:] = 5
    assert (view == 5).all()


def test_parameters_that_are_views_stay_so(tmp_path: Path) -> None:
    with lg.open(tmp_path, {"m": Flat(1.0)}) as run:
        run.save(3, block=True)
    model = Flat(2.0)
    with lg.open(tmp_path, {"m": model}) as run:
        run.restore()
    assert model.flat.eq(1).all()
    assert model.first.data_ptr() == model.flat.data_ptr()


def test_memory_that_other_processes_see_stays(tmp_path: Path) -> None:
    model = square(2.0).share_memory()
    before = model.weight.data_ptr()
    restored(tmp_path, model)
    assert model.weight.data_ptr() == before
    assert model.weight.is_shared()
    assert model.weight.eq(1).all()


def test_a_graph_from_before_the_restore_is_not_used(tmp_path: Path) -> None:
    model = square(2.0)
    loss = (model(torch.ones(1, MANY)) * model.weight).sum()
    restored(tmp_path, model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_changed_its_memory_is_taken_back(tmp_path: Path) -> None:
    class Refuses:
        refuse = False

        def state_dict(self) -> dict[str, int]:
            return {"x": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            if self.refuse:
                self.refuse = False
                raise ValueError("not this one")

    model, refuses = square(2.0), Refuses()
    with lg.open(tmp_path, {"m": square(1.0), "r": refuses}) as run:
        run.save(3, block=True)
    refuses.refuse = True
    with lg.open(tmp_path, {"m": model, "r": refuses}) as run:
        with pytest.raises(lg.Incompatible, match="everything is as it was"):
            run.restore()
        assert model.weight.eq(2).all()
        run.restore()
    assert model.weight.eq(1).all()
