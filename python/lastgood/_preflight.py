"""Before a restore: what differs from the process that saved, and what is accepted of it.

Who goes on from a checkpoint is refused, warned, or let go, as the program says. Who only reads one is at most warned:
what it computes is no part of the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from lastgood import _environment, _lastgood
from lastgood._environment import Effect
from lastgood._lastgood import Invalid

#: How long a rank waits until the others have compared themselves.
WAIT = timedelta(minutes=10)
_MODES = ("refuse", "warn", "off")
#: How many differences are named to who only reads.
_SHOWN_MAX = 20
#: What this process was told of what it reads: a key with both values.
_told: set[tuple[str, str | None, str | None]] = set()


def mode_of(preflight: str | None) -> str:
    """What is done with what differs: as the program says, else as the environment does. The engine checks it."""
    return os.environ.get("LASTGOOD_PREFLIGHT", "refuse") if preflight is None else str(preflight)


def check(preflight: str | None, accept: Mapping[str, str] | None) -> None:
    """Refuses what is no way to treat a preflight, for those who open the run later.

    Raises:
        Invalid: if it is none.
    """
    if preflight is not None and preflight not in _MODES:
        raise Invalid(f"preflight is {', '.join(_MODES[:-1])} or {_MODES[-1]}, given {preflight!r}")
    acceptance_of(accept)


def acceptance_of(accept: Mapping[str, str] | None) -> str | None:
    """What is accepted, as the engine reads it; what the environment gives if the program gives nothing.

    Raises:
        Invalid: if it is no mapping from keys to reasons.
    """
    if accept is None:
        return os.environ.get("LASTGOOD_ACCEPT")
    if not isinstance(accept, Mapping) or not all(
        isinstance(key, str) and isinstance(reason, str) and reason
        for key, reason in accept.items()
    ):
        raise Invalid(f"accept is a dict of keys and reasons, given {accept!r}")
    if not accept:
        return None
    reasons = list(dict.fromkeys(accept.values()))
    if len(reasons) > 1:
        reasons = [f"{key}: {reason}" for key, reason in accept.items()]
    return json.dumps({"keys": sorted(accept), "reason": "; ".join(reasons)})


@dataclass(frozen=True)
class Finding:
    """Something in which this process differs from the one that saved, or that is short. ``effect`` is ``numerics``
    (equal bytes cannot be promised), ``safety`` (state may be put where it does not belong) or ``information``;
    ``accepted`` the reason for which it was let go.

    Example:
        >>> import lastgood as lg
        >>> print(lg.Finding("package.torch", "numerics", "2.11.0", "2.12.1", None))
        package.torch was 2.11.0, is 2.12.1 (numerics)
    """

    key: str
    effect: Effect
    recorded: str | None
    found: str | None
    accepted: str | None

    @property
    def refused(self) -> bool:
        """True if it stands against the restore."""
        return self.effect != "information" and self.accepted is None

    def __str__(self) -> str:
        was, now = (text if text is not None else "nothing" for text in (self.recorded, self.found))
        why = "" if self.accepted is None else f"; accepted: {self.accepted}"
        return f"{self.key} was {was}, is {now} ({self.effect}){why}"


@dataclass
class Report:
    """What a restore would do: from `Run.preflight`. ``problems`` is what does not fit, and ``findings`` what differs
    from the process that saved. ``environment`` is ``alike``, ``differs``, ``not recorded`` or ``not given``. ``bytes``
    and ``memory_needed`` are bytes of this rank; ``memory_available`` is what the system has left, or None; ``objects``
    and ``objects_bytes`` are the packs of the whole checkpoint, of which ``objects_read`` bytes were read.

    Example:
        >>> import lastgood as lg, tempfile
        >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
        ...     _ = run.save(5, block=True)
        ...     print(str(run.preflight()).splitlines()[1])
        ranks         1 saved it, 1 restore it
    """

    checkpoint: str
    step: int
    saved_by: int
    restored_by: int
    bytes: int
    memory_needed: int
    memory_available: int | None
    environment: str
    objects: int
    objects_bytes: int
    objects_read: int
    #: How long it takes to read the whole checkpoint here; None if nothing was read.
    seconds_to_read: float | None
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing stands against the restore."""
        return not self.problems and not any(finding.refused for finding in self.findings)

    def __str__(self) -> str:
        time = "unknown" if self.seconds_to_read is None else f"about {self.seconds_to_read:.3g} s"
        lines = [
            f"checkpoint    {self.checkpoint[:16]} of step {self.step}",
            f"ranks         {self.saved_by} saved it, {self.restored_by} restore it",
            f"environment   {self.environment}",
            f"bytes         {self.bytes} for this rank",
            f"memory        {self.memory_needed} needed, {self.memory_available or 'unknown'} available",
            f"data          {self.objects} objects of {self.objects_bytes} bytes are there, {self.objects_read} read",
            f"time          {time} to read all of it",
        ]
        for finding in self.findings:
            lines.append(f"{'REFUSED' if finding.refused else 'differs':<13} {finding}")
        lines += [f"problem       {problem}" for problem in self.problems]
        lines += [f"notice        {notice}" for notice in self.notices]
        return "\n".join(lines)


def findings_of(found: Mapping[str, Any]) -> list[Finding]:
    """What the engine found."""
    return [
        Finding(
            row["key"],
            cast(Effect, row["effect"]),
            row["recorded"],
            row["found"],
            row["accepted"],
        )
        for row in found["findings"]
    ]


def notices_of(found: Mapping[str, Any]) -> list[str]:
    """What a person should know of a restore that goes on."""
    return [f"goes on although {finding}" for finding in findings_of(found) if finding.refused]


def of_run(native: Any, checkpoint: Any, needs: tuple[int, int]) -> list[str]:
    """Asks whether a rank of a run may go on from ``checkpoint``, of which it verifies every byte by itself: so many
    bytes are read, and so many of memory are needed. Gives what a person should know.

    Raises:
        Incompatible: if something stands against it.
        Unavailable, Denied: as the store says.
    """
    return notices_of(native.preflight(checkpoint, (*needs, []), True))


def of_reader(
    reader: Any,
    checkpoint: Any,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
) -> list[str]:
    """As `of_run`, for a process that is no rank of the run and goes on from ``checkpoint`` nevertheless.

    Raises:
        As `of_run`; Invalid: if the environment of the process says what is no way to treat a preflight.
    """
    mode = mode_of(preflight)
    if mode == "off" or _is_replay():
        return []
    found = _environment.collect()
    needs: tuple[int, int, list[str]] = (0, 0, [])
    return notices_of(reader.preflight(checkpoint, needs, found, mode, acceptance_of(accept)))


def of_who_reads(native: Any, checkpoint: Any, preflight: str | None = None) -> list[str]:
    """As `of_reader`, for who only reads ``checkpoint``: nothing is refused, and each difference is told once in a
    process. Of other code nothing is told: what evaluates is another program. ``native`` is a ``Reader`` or ``Run``.

    Raises:
        Unavailable, Denied: as the store says.
    """
    mode = mode_of(preflight)
    if mode == "off" or _is_replay():
        return []
    needs: tuple[int, int, list[str]] = (0, 0, [])
    is_reader = isinstance(native, _lastgood.Reader)
    here = (_environment.collect(), mode, acceptance_of(None)) if is_reader else ()
    new = []
    for finding in findings_of(native.look(checkpoint, needs, *here)):
        values = (finding.key, finding.recorded, finding.found)
        if finding.refused and not finding.key.startswith("code.") and values not in _told:
            _told.add(values)
            new.append(str(finding))
    if not new:
        return []
    more = [f"and {len(new) - _SHOWN_MAX} more"] if len(new) > _SHOWN_MAX else []
    return [
        f"checkpoint {checkpoint.id[:16]} of step {checkpoint.step} was saved by a process that computes otherwise; "
        f"what is computed from it here may differ: {'; '.join([*new[:_SHOWN_MAX], *more])}"
    ]


def _is_replay() -> bool:
    """True in a replay, which says by itself where it parts from what was recorded."""
    return "LASTGOOD_REPLAY" in os.environ


def report_of(
    checkpoint: str,
    found: Mapping[str, Any],
    objects: tuple[int, int, int, float],
    notices: list[str],
) -> Report:
    """What the engine found, as a report."""
    count, total, read, seconds = objects
    return Report(
        checkpoint,
        found["step"],
        found["saved_by"],
        found["restored_by"],
        found["bytes"],
        found["memory_needed"],
        found["memory_available"],
        found["environment"],
        count,
        total,
        read,
        seconds * total / read if read else None,
        findings_of(found),
        found["problems"],
        notices,
    )
