"""SIGTERM as a notice that this process will be ended."""

from __future__ import annotations

import os
import signal
import threading
import warnings
import weakref
from types import FrameType
from typing import Any

_heard: weakref.WeakSet[Any] = weakref.WeakSet()
#: What SIGTERM did before, and in which process.
_before: tuple[Any, int] | None = None


def listen(run: Any) -> None:
    """Tells ``run`` of SIGTERM. Only the main thread can listen to signals; elsewhere it warns."""
    global _before
    if threading.current_thread() is not threading.main_thread():
        warnings.warn(
            "lastgood: a policy with a grace time hears SIGTERM only if the main thread opens the run",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    _heard.add(run)
    if _before is None or _before[1] != os.getpid():
        _before = (signal.signal(signal.SIGTERM, _hear), os.getpid())


def forget(run: Any) -> None:
    """Tells ``run`` no more; after the last one SIGTERM does what it did before."""
    _heard.discard(run)
    if not _heard:
        _leave()


def _leave() -> Any:
    global _before
    before, _before = _before, None
    if before is None:
        return None
    handler = before[0] if before[0] is not None else signal.SIG_DFL
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return handler


def _hear(number: int, frame: FrameType | None) -> None:
    is_own = _before is not None and _before[1] == os.getpid()
    runs = list(_heard)
    # A second one is no notice any more, and a forked child was never told to listen.
    before = _leave()
    if not is_own or not any([run._native.notice() for run in runs]):
        os.kill(os.getpid(), number)
    elif callable(before):
        before(number, frame)
