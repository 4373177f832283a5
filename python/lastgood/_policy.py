"""When to save."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from lastgood._lastgood import Invalid


class Policy:
    """Says at which steps `Run.step` saves: whenever one of the conditions holds.

    Args:
        steps: every so many steps.
        seconds: when so many seconds have passed since the last save. Only for a rank alone: the clocks of several
            ranks differ, and they must save the same steps.
        at: at these steps too.

    Anything with orbax's ``should_save(step, previous_steps, *, context)`` can be given in its place.

    Raises:
        Invalid: if there is no condition, or one is not above 0.

    Example:
        >>> import lastgood as lg
        >>> lg.Policy(steps=500, at=[10])
        lg.Policy(steps=500, at=[10])
    """

    def __init__(
        self, steps: int | None = None, seconds: float | None = None, at: Iterable[int] = ()
    ) -> None:
        self.steps = steps
        self.seconds = seconds
        self.at = frozenset(at)
        if (steps is not None and steps < 1) or (seconds is not None and seconds <= 0):
            raise Invalid(f"a policy saves every 1 step or more, given {self!r}")
        if steps is None and seconds is None and not self.at:
            raise Invalid("a policy without a condition never saves; give steps, seconds or at")
        self._last = time.monotonic()

    def __repr__(self) -> str:
        given = [f"{n}={v}" for n, v in (("steps", self.steps), ("seconds", self.seconds)) if v]
        given += [f"at={sorted(self.at)}"] if self.at else []
        return f"lg.Policy({', '.join(given)})"

    def due(self, step: int) -> bool:
        """True if ``step`` is to be saved now."""
        by_step = self.steps is not None and step % self.steps == 0
        if by_step or step in self.at:
            return True
        return self.seconds is not None and time.monotonic() - self._last >= self.seconds

    def saved(self, step: int) -> None:
        """Counts the seconds from now on: ``step`` is saved, or was restored."""
        self._last = time.monotonic()


class Foreign:
    """A policy with orbax's protocol."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.previous: list[Any] = []
        self.seconds = None

    def due(self, step: int) -> bool:
        from lastgood import orbax

        return orbax.should_save(self.policy, step, self.previous)

    def saved(self, step: int) -> None:
        from lastgood.orbax import _policies

        # After a restore of an older step, those after it are not before the next one.
        self.previous = [info for info in self.previous if info.step < step]
        self.previous.append(_policies.Info(step, _policies.now()))


def as_policy(policy: Any) -> Any:
    """What decides for a run.

    Raises:
        Invalid: if ``policy`` is none.
    """
    if policy is None:
        return Policy(steps=100)
    if isinstance(policy, Policy):
        return policy
    if hasattr(policy, "should_save"):
        return Foreign(policy)
    raise Invalid(f"{policy!r} is no policy; give lg.Policy(steps=…)")
