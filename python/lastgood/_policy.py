"""When to save."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lastgood import _lastgood
from lastgood._lastgood import Invalid


class Policy:
    """Says at which steps `Run.step` saves: whenever one of the conditions holds. All ranks save the same steps.

    Args:
        steps: every so many steps.
        seconds: when so many seconds have passed since the last save. Several ranks take the number of steps that takes
            as long.
        at: at these steps too.
        milestones: as ``at``; or one number, and every multiple of it is saved.
        auto: at the interval that leaves the most useful time, from what saves cost and how often the run fails, which
            are measured. ``lastgood policy explain`` and `Run.explain_policy` say what it is made of.
        max_loss: with ``auto``, a failure loses at most so many seconds of work.
        max_loss_steps: with ``auto``, a failure loses at most so many steps.
        bandwidth: with ``auto``, saves write at most so many bytes a second.
        grace: after SIGTERM the next step is saved if that fits so many seconds, and the process ends with code 75
            (`Policy.PREEMPTED`). One of several ranks is enough to end all of them at the same step.
        demand: whether ``lastgood save`` is heard; default True.

    Anything with orbax's ``should_save(step, previous_steps, *, context)`` can be given in its place.

    Raises:
        Invalid: if there is no condition, one is not above 0, or a bound has no ``auto``.

    Example:
        >>> import lastgood as lg
        >>> lg.Policy(auto=True, max_loss=600, milestones=10_000, grace=30)
        lg.Policy(auto, at every multiple of 10000, at most 600 s lost, 30 s of grace)
    """

    #: The code with which a process ends after a notice that it will be ended: that of ``EX_TEMPFAIL``.
    PREEMPTED = 75

    def __init__(
        self,
        steps: int | None = None,
        seconds: float | None = None,
        at: Iterable[int] = (),
        *,
        milestones: int | Iterable[int] = (),
        auto: bool = False,
        max_loss: float | None = None,
        max_loss_steps: int | None = None,
        bandwidth: float | None = None,
        grace: float | None = None,
        demand: bool = True,
    ) -> None:
        multiples, more = _milestones(milestones)
        given = {
            "steps": steps,
            "seconds": seconds,
            "at": {*at, *more},
            "multiples": multiples,
            "auto": auto,
            "loss_max": max_loss,
            "loss_steps_max": max_loss_steps,
            "bandwidth": bandwidth,
            "grace": grace,
            "demand": demand,
        }
        self._settings = {name: value for name, value in given.items() if value is not None}
        try:
            self._text = _lastgood.check_policy(self._settings)
        except (TypeError, OverflowError) as error:
            raise Invalid(f"a policy has numbers of steps, seconds and bytes: {error}") from None
        self.grace = grace

    def __repr__(self) -> str:
        return f"lg.Policy({self._text})"


def _milestones(given: Any) -> tuple[set[int], set[int]]:
    """Steps of which every multiple is saved, and single steps."""
    try:
        return {operator.index(given)}, set()
    except TypeError:
        return set(), set(given)


class Foreign:
    """A policy with orbax's protocol."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.previous: list[Any] = []

    def due(self, step: int) -> bool:
        """True if ``step`` is to be saved."""
        from lastgood import orbax

        return orbax.should_save(self.policy, step, self.previous)

    def saved(self, step: int) -> None:
        """``step`` is saved, or was restored."""
        from lastgood.orbax import _policies

        # After a restore of an older step, those after it are not before the next one.
        self.previous = [info for info in self.previous if info.step < step]
        self.previous.append(_policies.Info(step, _policies.now()))


class Never:
    """Of those who save by themselves."""


def as_policy(policy: Any) -> Policy | Foreign | Never:
    """What decides for a run.

    Raises:
        Invalid: if ``policy`` is none.
    """
    if policy is None:
        return Policy(steps=100)
    if isinstance(policy, (Policy, Foreign, Never)):
        return policy
    if hasattr(policy, "should_save"):
        return Foreign(policy)
    raise Invalid(f"{policy!r} is no policy; give lg.Policy(steps=…)")


def settings_of(policy: Policy | Foreign | Never) -> dict[str, Any] | None:
    """What the engine follows; None if it decides nothing."""
    return policy._settings if isinstance(policy, Policy) else None


@dataclass(frozen=True)
class Explanation:
    """What `Run.explain_policy` says: printed, it is for a person.

    Example:
        >>> import lastgood as lg
        >>> print(lg.Explanation(12, 6.0, {}, "saves every 12 steps"))
        saves every 12 steps
    """

    #: The steps from one save to the next.
    every: int
    #: The seconds that they take.
    interval: float
    #: What was measured, bounds, and the formula's results, as ``lastgood policy explain --json`` has them.
    data: dict[str, Any]
    #: For a person.
    text: str

    def __str__(self) -> str:
        return self.text


def explanation(found: tuple[int, float, str, str] | None) -> Explanation | None:
    """What the engine says, for Python."""
    if found is None:
        return None
    every, interval, data, text = found
    return Explanation(every, interval, json.loads(data), text)
