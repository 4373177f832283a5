"""orbax's policies, called as orbax calls them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp

policies = ocp.checkpoint_managers


@dataclasses.dataclass
class Info:
    """A checkpoint as policies see it (orbax's ``PolicyCheckpointInfo``), with the id that it has once it is
    committed."""

    step: int
    time: datetime.datetime
    metrics: Any = None
    id: str | None = None


def now() -> datetime.datetime:
    """The time, with its zone."""
    return datetime.datetime.now(tz=datetime.timezone.utc)


def reached_preemption(step: int) -> bool:
    """True if jax.distributed says that the job is about to be ended after ``step``."""
    import jax
    from jax.experimental import multihost_utils

    if not jax.distributed.is_initialized():
        return False
    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError:
        # The program has switched the notice off.
        return False


def should_save(
    policy: Any, step: int, previous: Sequence[Any], *, saving: bool = False, options: Any = None
) -> bool:
    """Asks one of orbax's save decision policies, or an object of the same protocol, whether to save ``step``.

    Args:
        policy: has ``should_save(step, previous_steps, *, context)``.
        step: the number of the step.
        previous: the checkpoints so far, oldest first: objects with ``step``, ``time`` and ``metrics``.
        saving: whether a save is under way.
        options: orbax's ``MultiprocessingOptions``; default theirs.

    Raises:
        What the policy raises.

    Example:
        >>> import lastgood as lg, orbax.checkpoint as ocp
        >>> policy = ocp.checkpoint_managers.FixedIntervalPolicy(10)
        >>> [lg.orbax.should_save(policy, step, []) for step in (9, 10)]
        [False, True]
    """
    context = policies.DecisionContext(
        is_saving_in_progress=saving,
        reached_preemption=reached_preemption(step),
        multiprocessing_options=options or ocp.options.MultiprocessingOptions(),
    )
    return bool(policy.should_save(Info(step, now()), previous, context=context))


@dataclasses.dataclass
class _Function:
    """The option ``should_save_fn`` as a policy."""

    call: Any

    def should_save(self, step: Any, previous_steps: Sequence[Any], *, context: Any) -> bool:
        return bool(self.call(step.step, previous_steps[-1].step if previous_steps else None))


def save_policy(options: Any) -> Any:
    """What decides when to save: the options' policy, else one of their other fields, as orbax combines them."""
    if options.save_decision_policy is not None:
        return options.save_decision_policy
    preemption = policies.PreemptionCheckpointingPolicy()
    if options.should_save_fn is not None:
        return policies.AnySavePolicy([_Function(options.should_save_fn), preemption])
    found: list[Any] = []
    if options.save_interval_steps:
        found.append(policies.FixedIntervalPolicy(options.save_interval_steps))
    if options.save_on_steps:
        found.append(policies.SpecificStepsPolicy(options.save_on_steps))
    return policies.AnySavePolicy([*found, preemption, policies.InitialSavePolicy()])


def preservation_policy(options: Any) -> Any:
    """What decides which checkpoints to keep, as orbax combines the options."""
    if options.preservation_policy is not None:
        return options.preservation_policy
    found: list[Any] = []
    if options.keep_period is not None:
        found.append(policies.EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        seconds = int(options.keep_time_interval.total_seconds())
        found.append(policies.EveryNSeconds(interval_secs=seconds))
    if options.best_fn is not None:
        found.append(
            policies.BestN(
                get_metric_fn=options.best_fn,
                reverse=options.best_mode == "min",
                n=options.max_to_keep,
                keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
            )
        )
    else:
        found.append(policies.LatestN(n=options.max_to_keep))
    return policies.AnyPreservationPolicy(found)


def dropped(policy: Any, infos: Sequence[Info]) -> list[Info]:
    """The checkpoints that ``policy`` does not preserve."""
    kept = policy.should_preserve(list(infos), context=policies.PreservationContext())
    return [info for info, keep in zip(infos, kept, strict=True) if not keep]
