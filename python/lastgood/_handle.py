"""What a caller holds of a save that goes on behind it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lastgood import _lastgood
from lastgood._lastgood import LastgoodError

if TYPE_CHECKING:
    from lastgood._run import Run


class Stage:
    """One stage of a save, with the methods of a future that matter here."""

    def __init__(self, name: str, step: int, wait: Callable[[float | None], Any]) -> None:
        self._name = name
        self._step = step
        self._wait = wait

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the stage, at most ``timeout`` seconds, and gives its value: for ``durable`` and ``verified`` the
        checkpoint's id.

        Raises:
            TimeoutError: if it is not reached by then.
            What the save failed with.
        """
        found = self._wait(timeout)
        if found is None or found is False:
            raise TimeoutError(
                f"the save of step {self._step} is not {self._name} after {timeout} s"
            )
        return found

    def done(self) -> bool:
        """True if the stage is reached or will never be."""
        try:
            found = self._wait(0.0)
        except LastgoodError:
            return True
        return found is not None and found is not False

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the save failed with, or None; waits as `result`.

        Raises:
            TimeoutError: if neither is known by then.
        """
        try:
            self.result(timeout)
        except LastgoodError as error:
            return error
        return None

    def add_done_callback(self, call: Callable[[Stage], Any]) -> None:
        """Calls ``call`` with this from a thread of its own, once the stage is reached or will never be."""

        def wait() -> None:
            with contextlib.suppress(LastgoodError):
                self._wait(None)
            call(self)

        threading.Thread(target=wait, name="lastgood-callback", daemon=True).start()

    def __repr__(self) -> str:
        return f"<{self._name} of step {self._step}: {'done' if self.done() else 'pending'}>"


class _Verification:
    """Reads a checkpoint back, once. It does not know the handle: in a cycle with one, a run and its state would stay
    in memory until the collector comes, and a DataLoader among it would wait 5 s for each of its workers then."""

    def __init__(self, run: Run, native: _lastgood.SaveHandle) -> None:
        self._run = run
        self._native = native
        self._checked: str | None = None

    def wait(self, timeout: float | None) -> str | None:
        """The checkpoint's id, once it is committed and read back."""
        if self._checked is None and timeout == 0.0:
            return None
        checkpoint = self._native.wait_committed(timeout)
        if checkpoint is not None and self._checked is None:
            self._run.verify(f"id:{checkpoint}")
            self._checked = checkpoint
        return self._checked


class SaveHandle:
    """A save on its way.

    ``captured``: the state is copied and may be changed. ``durable``: it is a committed checkpoint of all ranks, and
    survives the loss of power; the value is its id. ``verified``: every byte was read back and compared; asking for it
    is what starts the reading.

    Example:
        >>> import lastgood as lg, tempfile
        >>> with lg.open(tempfile.mkdtemp(), {"x": {"y": 1}}) as run:
        ...     handle = run.save(5)
        ...     same = handle.durable.result(60) == handle.verified.result(60)
        >>> same, handle
        (True, lg.SaveHandle(step=5, committed))
    """

    def __init__(self, run: Run, native: _lastgood.SaveHandle) -> None:
        self._native = native
        step = native.step
        self.captured = Stage("captured", step, native.wait_captured)
        self.durable = Stage("durable", step, native.wait_committed)
        self.verified = Stage("verified", step, _Verification(run, native).wait)

    @property
    def step(self) -> int:
        """The step that is saved."""
        return self._native.step

    @property
    def status(self) -> str:
        """How far it is: capturing, captured, written, committed, superseded or failed."""
        return self._native.status()

    def __repr__(self) -> str:
        return f"lg.SaveHandle(step={self.step}, {self.status})"
