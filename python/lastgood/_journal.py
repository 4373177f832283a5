"""What a run records of each step, beside its checkpoints: what went in, and numbers that came out."""

from __future__ import annotations

import hashlib
import math
import os
import random
import struct
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from lastgood import _environment, _lastgood, _rng
from lastgood._lastgood import Diverged, Invalid

#: An array of a metric with more elements than this is recorded by its digest.
_ELEMENTS_MAX = 16

_SETTINGS = ("logical", "folder", "seal_after", "wait", "digests", "digest_every")


def settings_of(journal: bool | Mapping[str, Any], store: str) -> dict[str, Any] | None:
    """The engine's settings; None for no journal.

    Raises:
        Invalid: if there is no such setting.
    """
    if not isinstance(journal, (bool, Mapping)):
        raise Invalid(f"journal is True, False or a dict of settings, given {journal!r}")
    if journal is False:
        return None
    given = {} if journal is True else dict(journal)
    unknown = sorted(set(given) - set(_SETTINGS))
    if unknown:
        raise Invalid(
            f"there is no setting {unknown[0]!r} of the journal; there are {list(_SETTINGS)}"
        )
    given.setdefault("wait", os.environ.get("LASTGOOD_JOURNAL_WAIT") == "1")
    every = given.setdefault("digest_every", 0)
    if not isinstance(every, int) or every < 0:
        raise Invalid(f"digest_every is a number of steps, or 0 for none, given {every!r}")
    folder = given.get("folder") or os.environ.get("LASTGOOD_JOURNAL") or _state_folder(store)
    if folder is not None:
        given["folder"] = os.path.abspath(os.fspath(folder))
    return given


def _state_folder(store: str) -> str | None:
    """Where open segments lie for a store that is not on this disk; beside a local one otherwise."""
    if "://" not in store or store.startswith("file://"):
        return None
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(
        os.path.expanduser("~"), ".local", "state"
    )
    return os.path.join(state, "lastgood", "journal")


def of_saves(store: str) -> dict[str, Any]:
    """The journal of those who only save: what `_lastgood.Run` takes beside its settings."""
    recorded = settings_of(True, store) or {}
    del recorded["digest_every"]
    return {"journal": recorded, "environment": _environment.collect()}


class Recorder:
    """Records the steps of a run. Numbers that are still being computed by a device are not waited for: their step is
    recorded with the next one, or by `flush`."""

    def __init__(self, native: _lastgood.Run, state: MutableMapping[str, Any]) -> None:
        self._native = native
        self._state = state
        self._held: Callable[[], None] | None = None

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records that ``step`` is done."""
        self.flush()
        shared: dict[str, Any] = {}
        late: dict[str, Callable[[], Any]] = {}
        for name, value in metrics.items():
            copied = _begin_copy(value)
            if copied is None:
                shared[name] = plain(value)
            else:
                late[name] = copied
        shared["rng"] = rng_digest()
        rates = learning_rates(self._state)
        if rates:
            shared["lr"] = rates
        places = data_places(self._state)
        if places:
            shared.setdefault("data", places)
        if not late:
            self._native.step(step, shared, {})
            return

        def finish() -> None:
            shared.update({name: get() for name, get in late.items()})
            self._native.step(step, shared, {})

        self._held = finish

    def flush(self) -> None:
        """Records what was held back."""
        held, self._held = self._held, None
        if held is not None:
            held()


def _begin_copy(value: Any) -> Callable[[], Any] | None:
    """Begins to copy a tensor of a device, and gives what waits for it; None if there is nothing to wait for."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.device.type != "cuda":
        return None
    copy = value.detach().to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def get() -> Any:
        done.synchronize()
        return plain(copy)

    return get


def plain(value: Any) -> Any:
    """``value`` as an event holds it: numbers as they are, bit for bit; small arrays as lists; larger ones and unknown
    objects as text that says what they are."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "detach"):
        value = value.detach()
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "tolist"):
        if math.prod(shape) <= _ELEMENTS_MAX:
            return value.tolist()
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return type(value).__name__


def learning_rates(state: MutableMapping[str, Any]) -> list[float]:
    """The learning rate of every group of every torch optimizer of ``state``."""
    if "torch" not in sys.modules:
        return []
    from lastgood.torch import _modules

    groups = [group for opt in _modules.optimizers_of(state) for group in opt.param_groups]
    return [float(group["lr"]) for group in groups if "lr" in group]


def data_places(state: Mapping[str, Any]) -> dict[str, Any]:
    """How far each source of data of ``state`` is: its epoch and its position in it."""
    places = {}
    for name, obj in state.items():
        source = getattr(obj, "sampler", obj)
        place = (getattr(source, "epoch", None), getattr(source, "position", None))
        if all(isinstance(number, int) for number in place):
            places[name] = list(place)
    return places


def rng_digest() -> bytes:
    """Eight bytes that differ where the default generators of python, numpy or torch do."""
    digest = hashlib.blake2b(digest_size=8)
    # The hash of numbers is the same in every process, that of None is not; it takes less time than their bytes would.
    _, words, gauss = random.getstate()
    digest.update(struct.pack("<q", hash(words)))
    digest.update(repr(gauss).encode())
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        state = numpy.random.get_state(legacy=False)
        digest.update(state["state"]["key"].data)
        digest.update(repr((state["state"]["pos"], state["has_gauss"], state["gauss"])).encode())
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_rng_state"):
        digest.update(torch.get_rng_state().numpy().data)
        if torch.cuda.is_initialized():
            for state in torch.cuda.get_rng_state_all():
                digest.update(state.numpy().data)
    return digest.digest()


#: Under which key the generators of a fresh start are recorded: where a program does not seed them, they are an input.
START = "lastgood.generators"


def start_generators(native: _lastgood.Run) -> None:
    """Records the default generators of a run that begins; in a replay, sets them to what is recorded."""
    here = _rng.plain_states()
    try:
        recorded = native.external(START, here)
    except Diverged:
        # A rank that the run did not have.
        return
    if recorded != here:
        _rng.set_plain_states(recorded)
