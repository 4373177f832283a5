"""Saves with deltas: what torch's optimizers changed is predicted, and every checkpoint comes back to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
from lastgood._lastgood import Invalid

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Large and small parameters, tied ones, buffers that change in the forward pass, and rows without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(2000, 48)
        self.norm = torch.nn.BatchNorm1d(48)
        self.one = torch.nn.Linear(48, 300)
        self.two = torch.nn.Linear(300, 48)
        self.head = torch.nn.Linear(48, 2000, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = torch.nn.Linear(48, 400).requires_grad_(False)

    def forward(self, rows: Any) -> Any:
        x = self.norm(self.embed(rows))
        return self.head(x + self.two(torch.relu(self.one(x)))) + self.frozen(x).mean()


class Lion(torch.optim.Optimizer):  # type: ignore[misc,name-defined]
    """As its authors publish it."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                beta1, beta2 = group["betas"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = state["exp_avg"] * beta1 + p.grad * (1 - beta1)
                p.add_(update.sign_(), alpha=-group["lr"])
                state["exp_avg"].mul_(beta2).add_(p.grad, alpha=1 - beta2)


MAKE: dict[str, Callable[[Iterable[Any]], Any]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-4, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=3e-4, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=3e-4, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-4, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=3e-4, amsgrad=True, maximize=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.01),
    "lion": Lion,
}

#: What a save of a step takes at most, of its bytes. Differences of each number alone take 0.52 to 0.7, but for SGD
#: 0.40 to 0.46.
MOST = {
    "adamw": 0.27,
    "adamw foreach": 0.27,
    "adamw fused": 0.27,
    "adam": 0.27,
    "momentum": 0.36,
    "nesterov": 0.36,
    "lion": 0.36,
}


def train(
    store: Path, kind: str, steps: int, every: int = 1, **settings: Any
) -> list[tuple[int, dict[str, Any]]]:
    """The state at each save."""
    torch.manual_seed(0)
    net = Net()
    optimizer = MAKE[kind](p for p in net.parameters() if p.requires_grad)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    state = {"net": net, "optimizer": optimizer, "schedule": schedule}
    saved = []
    run = lg.open(store, state, policy=lg.Policy(steps=every), **settings)
    with run:
        for step in range(1, steps + 1):
            rows = torch.randint(0, 2000, (64,))
            torch.nn.functional.cross_entropy(net(rows), rows).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            run.step(step)
            if step % every == 0:
                run.wait_captured()
                run._newest.wait_committed(None)
                saved.append((step, copy.deepcopy(whole(net, optimizer))))
    return saved


def whole(net: Any, optimizer: Any) -> dict[str, Any]:
    found = dict(net.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        found |= {f"{number}.{key}": value for key, value in values.items()}
    return found


def check(store: Path, kind: str, saved: list[tuple[int, dict[str, Any]]]) -> None:
    for step, wanted in saved:
        net = Net()
        optimizer = MAKE[kind](p for p in net.parameters() if p.requires_grad)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        state = {"net": net, "optimizer": optimizer, "schedule": schedule}
        with lg.open(store, state) as run:
            assert run.restore(at=step) == step
            found = whole(net, optimizer)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            same = (
                found[name] == tensor
                if not torch.is_tensor(tensor)
                else (found[name].numpy().tobytes() == tensor.numpy().tobytes())
            )
            assert same, f"{step}: {name}"


def shares(store: Path) -> list[float]:
    """What each save put for each of its bytes."""
    with lg.open(store, {}) as run:
        return [one.new_bytes / one.bytes for one in run.history()]


@pytest.mark.parametrize("kind", MAKE)
def test_steps_are_predicted_and_come_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    saved = train(tmp_path, kind, 7, compression="delta:64")
    check(tmp_path, kind, saved[-2:])
    if kind in MOST:
        # The first saves have nothing to go on from.
        assert max(shares(tmp_path)[3:]) < MOST[kind], shares(tmp_path)


def test_every_save_of_a_chain_comes_back(tmp_path: Path) -> None:
    saved = train(tmp_path, "adamw", 10, compression="delta:3", chunk_bytes=64 << 10)
    check(tmp_path, "adamw", saved)


def test_saves_that_are_steps_apart_are_deltas_all_the_same(tmp_path: Path) -> None:
    saved = train(tmp_path, "adamw", 12, every=4, compression="delta")
    check(tmp_path, "adamw", saved)
    assert shares(tmp_path)[-1] < 0.8, shares(tmp_path)


def test_parameters_that_took_fewer_steps_are_predicted_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # The first one stops, the last one has a gradient in every third step.
    parts = torch.nn.ModuleList(torch.nn.Linear(200, 200) for _ in range(3))
    optimizer = torch.optim.AdamW(parts.parameters(), lr=3e-4)
    state = {"parts": parts, "optimizer": optimizer}
    settings: dict[str, Any] = {"compression": "delta:64", "chunk_bytes": 64 << 10}
    with lg.open(tmp_path, state, policy=lg.Policy(steps=1), **settings) as run:
        for step in range(1, 13):
            if step == 4:
                parts[0].requires_grad_(False)
            x = parts[1](parts[0](torch.randn(32, 200)))
            if step % 3 == 1:
                x = parts[2](x)
            x.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step(step)
            run.wait_captured()
            run._newest.wait_committed(None)
        changed = [one.new_bytes for one in run.history()][-4:]
    # Differences alone take 0.55 of what changed: of one part, and of the last one too where it has a gradient.
    one = 3 * 4 * (200 * 200 + 200)
    assert max(changed[i] for i in (0, 2, 3)) < 0.36 * one, changed
    assert changed[1] < 0.36 * 2 * one, changed


@pytest.mark.parametrize("wrong", ["delta:0", "delta:65", "delta:x", "delta:", "deltas"])
def test_what_is_no_delta_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(Invalid, match="delta"):
        lg.open(tmp_path, {}, compression=wrong)
