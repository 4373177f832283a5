"""Before a restore: what differs from the process that saved, and what is accepted of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lastgood._environment import Effect
from lastgood._lastgood import Invalid


def mode_of(preflight: str | None) -> str:
    """What is done with what differs: as the program says, else as the environment does. The engine checks it."""
    return os.environ.get("LASTGOOD_PREFLIGHT", "refuse") if preflight is None else str(preflight)


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
