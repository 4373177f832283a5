"""What the ranks of a job tell each other outside of a collective: short JSON texts through the store of
torch.distributed or jax.distributed."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lastgood import _lastgood, _world
from lastgood._lastgood import Incompatible, Invalid
from lastgood._state import World

_rounds = itertools.count()
#: How long a rank may verify and write back what is resumed from.
_WORK_MAX = timedelta(hours=2)


class Peers:
    """The ranks of ``world``. Every method is called by all of them, in the same order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._store: Any = None
        if world.size == 1:
            return
        if _world._distributed() is not None:
            from torch.distributed import distributed_c10d

            self._store = distributed_c10d._get_default_store()
            return
        jax = _world._jax()
        self._store = jax.store() if jax is not None else None
        if self._store is None:
            raise Invalid(
                f"there are {world.size} ranks, and they have no process group yet: make the trainer (or call "
                "torch.distributed.init_process_group) before lastgood is asked"
            )

    def gather(self, what: str, mine: Any) -> list[Any]:
        """What every rank has to say, by rank. Nobody returns before all have said it."""
        if self.world.size == 1:
            return [mine]
        key = f"lastgood/{what}/{next(_rounds)}"
        self._store.set(f"{key}/{self.world.rank}", json.dumps(mine))
        return [
            json.loads(bytes(self._store.get(f"{key}/{rank}"))) for rank in range(self.world.size)
        ]

    def agree(self, what: str, work: Callable[[], Any], wait: timedelta = _WORK_MAX) -> list[Any]:
        """Does ``work`` on every rank at once, and gives what each gave, by rank. What fails on one fails on all.

        Raises:
            What failed here; else of the kind of what the lowest rank failed with, and telling it.
        """
        failure: Exception | None = None
        try:
            mine = {"value": work()}
        except Exception as error:
            failure, mine = error, {"error": str(error), "kind": type(error).__name__}
        if failure is not None and self.world.size == 1:
            raise failure
        told = [mine]
        if self.world.size > 1:
            key = f"lastgood/{what}/{next(_rounds)}"
            self._store.set(f"{key}/{self.world.rank}", json.dumps(mine))
            told = [self._hear(f"{key}/{rank}", wait) for rank in range(self.world.size)]
        if failure is not None:
            raise failure
        for rank, each in enumerate(told):
            if "error" in each:
                kind = getattr(_lastgood, each["kind"], Incompatible)
                raise kind(f"rank {rank}: {each['error']}")
        return [each["value"] for each in told]

    def in_turn(self, what: str, work: Callable[[], Any]) -> Any:
        """Does ``work`` on the first rank of each node, one node after the other, since they may share a disk; gives
        what rank 0's gave.

        Raises:
            What failed here; on the other ranks an Incompatible that tells it.
        """
        if self.world.size == 1:
            return work()
        key = f"lastgood/{what}/{next(_rounds)}"
        rank, answer, failure = self.world.rank, None, None
        before = self._hear(f"{key}/{rank - 1}") if rank else {}
        if "error" in before:
            answer = before
        elif rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0":
            try:
                mine = work()
                answer = before if rank else {"value": mine}
            except Exception as error:
                answer, failure = {"error": f"rank {rank}: {error}"}, error
        else:
            answer = before
        self._store.set(f"{key}/{rank}", json.dumps(answer))
        if failure is not None:
            raise failure
        last = self._hear(f"{key}/{self.world.size - 1}")
        if "error" in last:
            raise Incompatible(last["error"])
        return last["value"]

    def _hear(self, key: str, wait: timedelta = _WORK_MAX) -> Any:
        """What another rank says when its work is done: reading a large checkpoint takes longer than a message."""
        self._store.wait([key], wait)
        return json.loads(bytes(self._store.get(key)))
