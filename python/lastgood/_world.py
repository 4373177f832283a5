"""Which process this is: from torch.distributed or jax.distributed, else from the environment of torchrun or
``lastgood run``."""

from __future__ import annotations

import datetime
import hashlib
import os
import secrets
import sys
from typing import Any

from lastgood._lastgood import Invalid, Unavailable
from lastgood._state import World

#: Variables that stores take credentials and endpoints from.
_STORE_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")

#: How often each run was opened by this process under ``LASTGOOD_INCARNATION``.
_opened: dict[str, int] = {}
#: How long a rank waits for the first one to name the start.
_NAMING = datetime.timedelta(minutes=5)


def store_options() -> dict[str, str]:
    """The options of stores in the environment, by lower-case name."""
    return {k.lower(): v for k, v in os.environ.items() if k.startswith(_STORE_PREFIXES)}


def place_of(store: str | os.PathLike[str] | None, run: str | None) -> tuple[str, str]:
    """The store and the run that are meant.

    Raises:
        Invalid: if there is no store.
    """
    url = os.fspath(store) if store is not None else os.environ.get("LASTGOOD_STORE")
    if not url:
        raise Invalid("no store is given; name one, or set LASTGOOD_STORE")
    return str(url), run if run is not None else os.environ.get("LASTGOOD_RUN", "default")


def _distributed() -> object | None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed
    return None


def _jax() -> Any:
    """What knows the processes of jax.distributed, if the program uses jax."""
    if sys.modules.get("jax") is None:
        return None
    from lastgood.jax import _processes

    return _processes


def find_world() -> World:
    """This process among all.

    Raises:
        Invalid: if the environment contradicts itself.
    """
    distributed = _distributed()
    if distributed is not None:
        return World(distributed.get_rank(), distributed.get_world_size())  # type: ignore[attr-defined]
    jax = _jax()
    if jax is not None and (world := jax.find_world()) is not None:
        return world  # type: ignore[no-any-return]
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size is None:
        return World()
    try:
        world = World(int(rank or ""), int(size or ""))
    except ValueError:
        raise Invalid(f"RANK is {rank!r} and WORLD_SIZE {size!r}; set both to numbers") from None
    if not 0 <= world.rank < world.size:
        raise Invalid(f"RANK is {rank} and WORLD_SIZE {size}; ranks count from 0")
    return world


def find_incarnation(world: World, run: str) -> str | None:
    """The name that all ranks of this start of ``run`` share; None for a rank alone, which needs none.

    Raises:
        Invalid: if there are several ranks and nothing tells them a name.
        Unavailable: if the first rank has named none within 5 minutes.
    """
    given = os.environ.get("LASTGOOD_INCARNATION")
    number = _opened.get(run, 0)
    _opened[run] = number + 1
    if given is not None:
        # Ranks that torchrun starts again by itself are a new incarnation. Under ``lastgood run`` torchrun's ranks are
        # others than the one that the supervisor has started an attempt for; this variable is torchrun's alone.
        inner = ["torchrun"] if "TORCHELASTIC_USE_AGENT_STORE" in os.environ else []
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        parts = [
            given,
            *inner,
            *([restarts] if restarts != "0" else []),
            *([f"open{number}"] if number else []),
        ]
        return ".".join(parts)
    if world.size == 1:
        return None
    if _distributed() is None:
        jax = _jax()
        digest = hashlib.sha256(run.encode()).hexdigest()[:16]
        name = jax.incarnation(f"{digest}/{number}", world) if jax is not None else None
        if name is not None:
            return name  # type: ignore[no-any-return]
        raise Invalid(
            f"there are {world.size} ranks, and nothing names their start: call torch.distributed.init_process_group "
            "or jax.distributed.initialize before lg.open, or start the job by `lastgood run`"
        )
    from torch.distributed import distributed_c10d

    store = distributed_c10d._get_default_store()
    key = f"lastgood/{hashlib.sha256(run.encode()).hexdigest()[:16]}"
    # The store counts, and not this process: it may have been part of other process groups than the others.
    key = f"{key}/{store.add(f'{key}/rank{world.rank}', 1)}"
    if world.rank == 0:
        store.set(key, secrets.token_hex(16))
    try:
        store.wait([key], _NAMING)
        return bytes(store.get(key)).decode()
    except RuntimeError as error:
        raise Unavailable(
            f"rank 0 has not opened run {run} within {_NAMING}: {error}; every rank opens the same runs, as often"
        ) from None


def resolved(url: str) -> str:
    """The store that ``url`` names, the same for every way to name a folder."""
    return (
        os.path.abspath(url.removeprefix("file://"))
        if "://" not in url.removeprefix("file://")
        else url
    )
