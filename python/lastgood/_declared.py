"""How components are declared: who owns them, and whether they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lastgood._lastgood import Invalid


class Declared:
    """An object with its owner and class of durability."""

    durability = ""

    def __init__(self, obj: Any, *, owner: str = "trainer") -> None:
        if not owner:
            raise Invalid("an owner is a name; who answers for this component?")
        self.obj = obj
        self.owner = owner

    def __repr__(self) -> str:
        return f"lg.{type(self).__name__}({type(self.obj).__name__}, owner={self.owner!r})"


class Durable(Declared):
    """State that must survive: it is in every checkpoint. What is given to `lg.open` bare is this, of owner
    ``trainer``.

    Args:
        obj: any state that `lg.open` takes.
        owner: who answers for it: stored with the checkpoint, shown by ``lastgood show``.
        ranks: for plain arrays in a job of several ranks. ``same``: every rank holds the same bytes, one stores
            them. ``own``: each stores its own. ``auto`` (the default): parameters of modules and the state of
            optimizers are the same, everything else is each rank's own.

    Raises:
        Invalid: if the owner is empty, or ``ranks`` none of these.

    Example:
        >>> import lastgood as lg
        >>> lg.Durable({"best": 0.9}, owner="metrics")
        lg.Durable(dict, owner='metrics')
    """

    durability = "durable"

    def __init__(self, obj: Any, *, owner: str = "trainer", ranks: str = "auto") -> None:
        super().__init__(obj, owner=owner)
        if ranks not in ("auto", "same", "own"):
            raise Invalid(f"ranks is auto, same or own, given {ranks!r}")
        self.ranks = ranks


class Derived(Declared):
    """State that is made again from durable state: never stored; ``rebuild()`` is called after a restore.

    Example:
        >>> import lastgood as lg
        >>> cache = {}
        >>> lg.Derived(cache, owner="tokenizer", rebuild=cache.clear)
        lg.Derived(dict, owner='tokenizer')
    """

    durability = "derived"

    def __init__(
        self, obj: Any, *, owner: str = "trainer", rebuild: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(obj, owner=owner)
        self.after = rebuild


class Volatile(Declared):
    """State that may be lost: never stored; ``reset()`` is called after a restore.

    Example:
        >>> import lastgood as lg
        >>> recent = []
        >>> lg.Volatile(recent, owner="profiler", reset=recent.clear)
        lg.Volatile(list, owner='profiler')
    """

    durability = "volatile"

    def __init__(
        self, obj: Any, *, owner: str = "trainer", reset: Callable[[], Any] | None = None
    ) -> None:
        super().__init__(obj, owner=owner)
        self.after = reset


def as_declared(obj: Any) -> Declared:
    """What was given to `lg.open`, with its class."""
    return obj if isinstance(obj, Declared) else Durable(obj)
