"""Where this process stands among the ranks."""

from __future__ import annotations

import os
import sys

import lastgood as lg


def place(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """The rank and the world size: as given, else torch.distributed's, else RANK and WORLD_SIZE, else (0, 1).

    Raises `lg.Invalid` if only one of the two is known, or if the rank is not below the world size.
    """
    source = "as given"
    if rank is None and world_size is None:
        rank, world_size, source = _surroundings()
    if rank is None or world_size is None:
        known, missing = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise lg.Invalid(f"{known} is known ({source}) and {missing} is not: give both, or neither.")
    if not 0 <= rank < world_size:
        raise lg.Invalid(
            f"rank {rank} of {world_size} ({source}) does not exist: ranks are 0 to world_size - 1."
        )
    return rank, world_size


def _surroundings() -> tuple[int | None, int | None, str]:
    # Whoever has a process group has imported torch; importing it here would cost everybody else 2 s.
    torch = sys.modules.get("torch")
    if torch is not None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size(), "torch.distributed"
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if rank is None and world_size is None:
        return 0, 1, "alone"
    return rank, world_size, "environment"


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise lg.Invalid(f"the environment variable {name} is {text!r}, not a number.") from None
