"""Saves that are copied behind the call: nothing may change under the copy, and what does is no checkpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest

torch = pytest.importorskip("torch")

#: Large enough that a copy takes longer than the way from `save` to the optimizer.
ELEMENTS = 12_000_000


def large(optimizer: Callable[..., Any] | None = None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = torch.nn.Linear(ELEMENTS // 1000, 1000, bias=False)
    made = (optimizer or torch.optim.SGD)(model.parameters(), lr=1.0, **options)
    model.weight.grad = torch.ones_like(model.weight)
    made.step()
    return model, made


def restored(folder: Path, name: str, like: Any, step: int) -> Any:
    model = torch.nn.Linear(like.in_features, like.out_features, bias=False)
    optimizer = torch.optim.SGD(model.parameters())
    with lg.open(folder, {"model": model, "optimizer": optimizer}, run=name) as run:
        run.restore(at=step, only=["model"])
    return model.weight.detach()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {"momentum": 0.9, "foreach": True}),
        ("AdamW", {"fused": True}),
        ("AdamW", {"foreach": False}),
    ],
)
def test_the_optimizer_waits_for_the_copy(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    model, optimizer = large(getattr(torch.optim, kind), **options)
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        expected = model.weight.detach().clone()
        handle = run.save(1)
        optimizer.step()
        assert not torch.equal(model.weight, expected)
        handle.durable.result(60)
    assert torch.equal(restored(tmp_path, "default", model, 1), expected)


def attack(run: Any, model: Any, write: Callable[[], Any]) -> tuple[Any, Any]:
    """Saves and writes at once, until a write came into the copy or it never does: how the last save failed, and
    whether what it stored is torn."""
    for step in range(1, 30):
        expected = model.weight.detach().clone()
        handle = run.save(step)
        write()
        error = handle.durable.exception(60)
        if error is not None:
            return error, None
        run.restore(at=step, only=["model"])
        if not torch.equal(model.weight, expected):
            return None, step
    return None, None


def write(model: Any) -> None:
    """A short write to what is copied last."""
    with torch.no_grad():
        model.weight[-10:].add_(1.0)


def test_without_the_guard_nothing_torn_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard taken away, somebody writes into the copy; torch's counters of writes tell. They count a write when it
    ends, so that it must be short: a step of an optimizer on all of the weights may end after the copy."""
    monkeypatch.setattr(lg.Run, "_guard", lambda self: None)
    model, optimizer = large()
    run = lg.open(tmp_path, {"model": model, "optimizer": optimizer})
    error, torn = attack(run, model, lambda: write(model))
    assert torn is None
    assert isinstance(error, lg.Invalid) and "changed while the save copied it" in str(error)
    # Whoever asked the handle was told; closing does not tell again.
    run.close()


def test_without_both_guards_a_checkpoint_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack that the tests above hold off does work: without it they would prove nothing."""
    from lastgood.torch import _state as torch_state

    monkeypatch.setattr(lg.Run, "_guard", lambda self: None)
    monkeypatch.setattr(torch_state, "changed", lambda before: None)
    model, optimizer = large()
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        error, torn = attack(run, model, lambda: write(model))
    assert error is None and torn is not None


def test_with_the_guard_the_attack_fails(tmp_path: Path) -> None:
    model, optimizer = large()
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        for step in range(1, 6):
            expected = model.weight.detach().clone()
            handle = run.save(step)
            optimizer.step()
            handle.durable.result(60)
            run.restore(at=step, only=["model"])
            assert torch.equal(model.weight, expected)


def test_an_optimizer_in_another_thread_waits(tmp_path: Path) -> None:
    model, optimizer = large()
    expected = model.weight.detach().clone()
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        handle = run.save(1)
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and not torch.equal(model.weight, expected)
        handle.durable.result(60)
    assert torch.equal(restored(tmp_path, "default", model, 1), expected)


def test_lock_guards_other_loops(tmp_path: Path) -> None:
    model, optimizer = large()
    expected = model.weight.detach().clone()
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        handle = run.save(1)
        with run.lock(), torch.no_grad():
            model.weight.zero_()
        handle.durable.result(60)
    assert torch.equal(restored(tmp_path, "default", model, 1), expected)


def test_buffers_averages_and_frozen_parameters_are_copied_in_the_call(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = torch.nn.Linear(1000, 2000)
            self.frozen = torch.nn.Linear(1000, 1000).requires_grad_(False)
            self.register_buffer("seen", torch.zeros(2_000_000))

    model = Model()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.trained.parameters())
    state = {"model": model, "average": average, "optimizer": optimizer}
    with lg.open(tmp_path, state) as run:
        handle = run.save(1)
        with torch.no_grad():
            model.seen.fill_(1.0)
            model.frozen.weight.data.zero_()
            average.module.trained.weight.data.zero_()
        # Gradients are no part of the state.
        model.trained.weight.grad = torch.ones_like(model.trained.weight)
        optimizer.zero_grad()
        handle.durable.result(60)
        run.restore(at=1)
    assert model.seen.abs().sum() == 0 and model.frozen.weight.abs().sum() > 0
    assert average.module.trained.weight.abs().sum() > 0


def test_a_closure_of_lbfgs_and_its_lists_of_state(tmp_path: Path) -> None:
    model = torch.nn.Linear(40, 40)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.randn(30, 40)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (model(x) - x).pow(2).mean()
        loss.backward()
        return loss

    def digest() -> list[Any]:
        values = next(iter(optimizer.state.values()))
        return [model.weight.clone(), *[t.clone() for t in values["old_dirs"]], values["d"].clone()]

    optimizer.step(closure)
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        before = digest()
        handle = run.save(1)
        optimizer.step(closure)
        after = digest()
        handle.durable.result(60)
        run.restore(at=1)
        assert all(torch.equal(a, b) for a, b in zip(before, digest(), strict=True))
        optimizer.step(closure)
        assert all(torch.equal(a, b) for a, b in zip(after, digest(), strict=True))


def test_a_scaler_that_skips_the_step_and_several_optimizers(tmp_path: Path) -> None:
    first, second = torch.nn.Linear(9, 9), torch.nn.Linear(9, 9)
    optimizers = [torch.optim.AdamW(m.parameters()) for m in (first, second)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = {
        "first": first,
        "second": second,
        "a": optimizers[0],
        "b": optimizers[1],
        "scaler": scaler,
    }
    with lg.open(tmp_path, state) as run:
        for step, bad in ((1, False), (2, True), (3, False)):
            for module, optimizer in zip((first, second), optimizers, strict=True):
                loss = module(torch.ones(9)).sum() * (float("inf") if bad else 1.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                optimizer.zero_grad()
            scaler.update()
            expected = (
                [p.clone() for m in (first, second) for p in m.parameters()],
                scaler.get_scale(),
            )
            run.save(step).durable.result(60)
            with torch.no_grad():
                first.weight.zero_()
            run.restore(at=step)
            found = [p for m in (first, second) for p in m.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(expected[0], found, strict=True))
            assert scaler.get_scale() == expected[1]


def test_a_compiled_model_and_a_compiled_step_still_wait(tmp_path: Path) -> None:
    model, optimizer = large()
    compiled = torch.compile(model, backend="eager")
    compiled(torch.ones(1, model.in_features)).sum().backward()
    step = torch.compile(optimizer.step, backend="eager")
    expected = model.weight.detach().clone()
    with lg.open(tmp_path, {"model": compiled, "optimizer": optimizer}) as run:
        handle = run.save(1)
        step()
        assert not torch.equal(model.weight, expected)
        error = handle.durable.exception(120)
    # Either the hook was called, or the save says that it was not: never a torn checkpoint.
    if error is None:
        assert torch.equal(restored(tmp_path, "default", model, 1), expected)
    else:
        assert "changed while the save copied it" in str(error)


@pytest.mark.parametrize(("journal", "bound"), [(False, 50e-6), (True, 600e-6)])
def test_a_step_that_does_not_save_is_cheap(tmp_path: Path, journal: bool, bound: float) -> None:
    model = torch.nn.Linear(9, 9)
    policy = lg.Policy(steps=10**9)
    with lg.open(tmp_path, {"model": model}, policy=policy, journal=journal) as run:
        times = []
        for step in range(2000):
            begin = time.perf_counter()
            run.step(step + 1, loss=0.5)
            times.append(time.perf_counter() - begin)
    assert sorted(times)[len(times) // 2] < bound
