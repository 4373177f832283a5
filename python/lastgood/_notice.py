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
#: The signals that were blocked before a fork, in the thread that forks.
_forking = threading.local()
_is_guarded = False


def listen(run: Any) -> None:
    """Tells ``run`` of SIGTERM. Only the main thread can listen to signals; elsewhere it warns."""
    global _before
    if not _is_main():
        warnings.warn(
            "lastgood: a policy with a grace time hears SIGTERM only if the main thread opens the run",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    _heard.add(run)
    _guard_forks()
    if _before is None or _before[1] != os.getpid():
        _before = (signal.signal(signal.SIGTERM, _hear), os.getpid())


def forget(run: Any) -> None:
    """Tells ``run`` no more; after the last one SIGTERM does what it did before."""
    _heard.discard(run)
    # Another thread cannot: the next signal does.
    if not _heard and _before is not None and _is_main():
        _leave()


def _guard_forks() -> None:
    """A forked child does what it did before. Python forgets in it which signals came while it was forked: SIGTERM
    waits until the child is no longer told to listen."""
    global _is_guarded
    if not _is_guarded:
        _is_guarded = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
        )


def _before_fork() -> None:
    _forking.blocked = None
    if _before is not None:
        _forking.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork() -> None:
    if _forking.blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked)


def _after_fork_in_child() -> None:
    _heard.clear()
    if _before is not None:
        _leave()
    _after_fork()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _leave() -> Any:
    """Lets SIGTERM do what it did before, and gives that."""
    global _before
    before, _before = _before, None
    handler = signal.SIG_DFL if before is None or before[0] is None else before[0]
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
