"""The processes of jax.distributed as ranks."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import jax

from lastgood._lastgood import Unavailable
from lastgood._state import World

#: Seconds to wait for the first process to name a start.
NAME_WAIT = 300


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


class Store:
    """The key-value store of jax.distributed, by the methods that torch.distributed has."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def set(self, key: str, text: str) -> None:
        """Tells the other processes."""
        self._client.key_value_set(key, text)

    def wait(self, keys: list[str], wait: timedelta) -> None:
        """Returns when all ``keys`` are set.

        Raises:
            Unavailable: if they are not in time.
        """
        for key in keys:
            try:
                self._client.blocking_key_value_get(key, int(wait.total_seconds() * 1000))
            except Exception as error:
                raise Unavailable(
                    f"another process of jax.distributed did not say {key} within {wait}: {error}"
                ) from None

    def get(self, key: str) -> bytes:
        """What was told; it is waited for."""
        return str(self._client.blocking_key_value_get(key, NAME_WAIT * 1000)).encode()


def store() -> Store | None:
    """The store of jax.distributed; None without one."""
    client = _client() if jax.distributed.is_initialized() else None
    return Store(client) if client is not None else None


def find_world() -> World | None:
    """This process among those of jax.distributed, or None if it is alone."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    return World(jax.process_index(), jax.process_count())


def incarnation(number: str, world: World) -> str | None:
    """The name that all processes of this start share, through jax's own key-value store; None without one.

    Raises:
        Unavailable: if the first process does not name it in time.
    """
    client = _client() if jax.distributed.is_initialized() else None
    if client is None:
        return None
    key = f"lastgood/incarnation/{number}"
    if world.rank == 0:
        client.key_value_set(key, secrets.token_hex(16))
    try:
        return str(client.blocking_key_value_get(key, NAME_WAIT * 1000))
    except Exception as error:
        raise Unavailable(
            f"process 0 of jax.distributed did not open the run within {NAME_WAIT} s: {error}"
        ) from None
