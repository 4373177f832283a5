"""What optimizers did in their last step: saves with deltas predict from it what they left behind.

Nothing of it has to be right: a wrong number costs bytes, and the same state comes back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

#: A tensor by the names of its component and itself.
Name = tuple[str, str]


@dataclass
class Updates:
    """Parameters of one group that took as many steps: what changed them, what they and their state are called."""

    kind: str
    numbers: list[float]
    steps: int
    weights: list[Name] = field(default_factory=list)
    firsts: list[Name] = field(default_factory=list)
    #: Empty if the optimizer keeps one tensor for each parameter.
    seconds: list[Name] = field(default_factory=list)


@dataclass
class _Watched:
    steps: int = 0
    groups: list[dict[str, Any]] = field(default_factory=list)


_watched: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Watched] = weakref.WeakKeyDictionary()


def watch(optimizer: torch.optim.Optimizer) -> None:
    """Notes from now on with which numbers it steps: a scheduler changes them before anybody can save."""
    if optimizer in _watched:
        return
    watched = _watched[optimizer] = _Watched()

    def note(stepping: torch.optim.Optimizer, *_: Any) -> None:
        watched.steps += 1
        watched.groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in stepping.param_groups
        ]

    optimizer.register_step_pre_hook(note)


def updates_of(
    optimizer: torch.optim.Optimizer,
    component: str,
    weight_of: Callable[[Any], Name | None],
    stored: Callable[[Any, str], str],
) -> list[Updates]:
    """What its last step did; nothing before its first that was watched, and of optimizers that are not known.

    ``weight_of`` gives the name under which a parameter is saved, ``stored`` that of one of its state."""
    watched = _watched.get(optimizer)
    if watched is None or len(watched.groups) != len(optimizer.param_groups):
        return []
    found = []
    for stepped, group in zip(watched.groups, optimizer.param_groups, strict=True):
        known = _known(optimizer, stepped)
        if known is None:
            continue
        kind, numbers, keys = known
        alike: Updates | None = None
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            weight = weight_of(parameter)
            if not state or weight is None or any(key not in state for key in keys):
                continue
            steps = watched.steps
            if kind == "adam" and "step" in state:
                steps = _steps(state["step"], alike.steps if alike else None)
            # In the order of the parameters, whatever they took: chunks of small ones must not change with it.
            if alike is None or alike.steps != steps:
                alike = Updates(kind, numbers, steps)
                found.append(alike)
            alike.weights.append(weight)
            alike.firsts.append((component, stored(parameter, keys[0])))
            alike.seconds += [(component, stored(parameter, key)) for key in keys[1:]]
    return found


def _steps(count: Any, of_another: int | None) -> int:
    """The steps of one parameter: one that had no gradient in a step has taken fewer than others of its group. To ask a
    device for each of them would wait for it each time: there, all are taken to be alike."""
    if of_another is not None and isinstance(count, torch.Tensor) and count.device.type != "cpu":
        return of_another
    return int(count)


def _known(
    optimizer: torch.optim.Optimizer, group: dict[str, Any]
) -> tuple[str, list[float], tuple[str, ...]] | None:
    """What kind of optimizer it is, its numbers, and what it keeps for each parameter."""
    name = type(optimizer).__name__
    try:
        lr = float(group["lr"])
        decay = float(group.get("weight_decay") or 0.0)
        if name in ("Adam", "AdamW"):
            apart = name == "AdamW" or bool(group.get("decoupled_weight_decay"))
            beta1, beta2 = map(float, group["betas"])
            numbers = [lr, beta1, beta2, float(group["eps"]), decay if apart else 0.0]
            return "adam", numbers, ("exp_avg", "exp_avg_sq")
        if name == "SGD" and group["momentum"]:
            kind = "nesterov" if group["nesterov"] else "momentum"
            return kind, [lr, float(group["momentum"])], ("momentum_buffer",)
        if name == "Lion":
            beta1, beta2 = map(float, group["betas"])
            return "lion", [lr, beta1, beta2, decay], ("exp_avg",)
    except (KeyError, TypeError, ValueError):
        # An optimizer of that name that is another one.
        return None
    return None
