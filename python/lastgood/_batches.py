"""Random numbers of data collators that are a pure function of the batch.

Trainers fetch one batch ahead. A collator that draws (the masks of masked language modelling) has then drawn for the
next batch when a checkpoint is taken, and a resumed job draws that batch again from another state.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lastgood import _memory, _rng


class SeededCollator:
    """Calls ``collate`` with all generators seeded from seed, epoch and the samples, and puts them back after."""

    def __init__(self, collate: Any, seed: int, epoch: int) -> None:
        self.collate = collate
        self.seed = seed
        self.epoch = epoch

    def __call__(self, samples: Any) -> Any:
        hasher = hashlib.sha256(repr((self.seed, self.epoch)).encode())
        _feed(hasher, samples)
        before = _rng._global_states()
        try:
            _rng._reseed(hasher.digest())
            return self.collate(samples)
        finally:
            _rng._set_global_states(before, [])

    def __getattr__(self, name: str) -> Any:
        if name in ("collate", "seed", "epoch") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.collate, name)


def seed_collators(loader: Any, seed: int, epoch: int) -> list[SeededCollator]:
    """Wraps the collator of a torch loader, or of the one in a loader of accelerate; gives what was wrapped."""
    base = getattr(loader, "base_dataloader", loader)
    collate = getattr(base, "collate_fn", None)
    if collate is None:
        return []
    if isinstance(collate, SeededCollator):
        collate.seed, collate.epoch = seed, epoch
        return [collate]
    wrapped = SeededCollator(collate, seed, epoch)
    base.collate_fn = wrapped
    return [wrapped]


def _feed(hasher: Any, value: Any) -> None:
    """What tells one batch from another. Objects that hide what they hold count by their type."""
    if isinstance(value, dict):
        for key, item in value.items():
            hasher.update(repr(key).encode())
            _feed(hasher, item)
    elif isinstance(value, (list, tuple)):
        hasher.update(f"{len(value)}".encode())
        if all(type(item) in (int, float, bool, str) for item in value):
            hasher.update(repr(value).encode())
        else:
            for item in value:
                _feed(hasher, item)
    elif _memory.is_torch(value):
        hasher.update(
            value.detach().cpu().contiguous().reshape(-1).view(_bytes()).numpy().tobytes()
        )
    elif _memory.is_numpy(value):
        hasher.update(value.tobytes())
    elif isinstance(value, (str, bytes, int, float, bool, type(None))):
        hasher.update(repr(value).encode())
    elif hasattr(value, "items"):
        _feed(hasher, dict(value.items()))
    else:
        hasher.update(type(value).__qualname__.encode())


def _bytes() -> Any:
    import torch

    return torch.uint8
