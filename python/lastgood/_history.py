"""What a run tells of its checkpoints, its restores and its failures."""

from __future__ import annotations

from dataclasses import dataclass, field


class SaveWarning(UserWarning):
    """A save failed. Training goes on; the checkpoints before it are unharmed.

    Example:
        >>> import lastgood as lg, warnings
        >>> warnings.simplefilter("error", lg.SaveWarning)  # to end the training instead
        >>> warnings.simplefilter("default", lg.SaveWarning)
    """


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as the run's ledger tells of it.

    ``id``: 64 hexadecimal digits. ``standing``: committed, verified, good or bad, with the ``reason``. ``at``: when, in
    RFC 3339. ``bytes``: of all ranks' state. ``new_bytes``: of these, what had to be written.

    Example:
        >>> import lastgood as lg, tempfile
        >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
        ...     _ = run.save(5, block=True)
        ...     found = run.history()[-1]
        >>> found.step, found.standing, found.world_size
        (5, 'committed', 1)
    """

    id: str
    step: int
    standing: str
    reason: str | None
    at: str
    attempt: int
    world_size: int
    parent: str | None
    bytes: int
    new_bytes: int
    expired: bool


@dataclass(frozen=True)
class Restored:
    """What a restore did: the checkpoint, its step, the number of ranks that saved it, the bytes that were placed, the
    bytes that were read from the store (``bytes_read``, as stored; what a crash has left in memory is not read), and
    what a person should know (``notices``), such as checkpoints that were skipped.

    Example:
        >>> import lastgood as lg, tempfile
        >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
        ...     _ = run.save(5, block=True)
        ...     _ = run.restore()
        >>> run.last_restore.step, run.last_restore.notices
        (5, [])
    """

    checkpoint: str
    step: int
    world_size: int
    bytes: int
    notices: list[str] = field(default_factory=list)
    bytes_read: int = 0
