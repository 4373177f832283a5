"""lastgood keeps the state of a running model recoverable.

Atomic, verified checkpoints of sharded state, and recovery from the last good one:

    import lastgood as lg

    run = lg.open("s3://bucket/llm", {"model": model, "optimizer": optimizer, "loader": loader})
    step = run.restore()
    for step in range(step, steps):
        train_step()
        run.step(step + 1, loss=loss)
    run.close()

Frameworks are imported when they are used: `lastgood.torch`, `lastgood.jax`, `lastgood.orbax`, `lastgood.hf`,
`lastgood.accelerate`, `lastgood.lightning`, `lastgood.data`, `lastgood.fs`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lastgood._declared import Derived, Durable, Volatile
from lastgood._handle import SaveHandle
from lastgood._history import Checkpoint, Restored, SaveWarning
from lastgood._lastgood import (
    Closed,
    Conflict,
    Corrupt,
    Denied,
    Diverged,
    Fenced,
    Incompatible,
    Internal,
    Invalid,
    LastgoodError,
    NotFound,
    Overloaded,
    Unavailable,
    __version__,
)
from lastgood._open import open, runs
from lastgood._policy import Explanation, Policy
from lastgood._preflight import Finding, Report
from lastgood._replay import Audited, Divergence, Replayed, replay
from lastgood._run import Run
from lastgood._tree import register

if TYPE_CHECKING:
    from lastgood import accelerate as accelerate
    from lastgood import data as data
    from lastgood import fs as fs
    from lastgood import hf as hf
    from lastgood import jax as jax
    from lastgood import lightning as lightning
    from lastgood import orbax as orbax
    from lastgood import torch as torch

__all__ = [
    "Audited",
    "Checkpoint",
    "Closed",
    "Conflict",
    "Corrupt",
    "Denied",
    "Derived",
    "Diverged",
    "Divergence",
    "Durable",
    "Explanation",
    "Fenced",
    "Finding",
    "Incompatible",
    "Internal",
    "Invalid",
    "LastgoodError",
    "NotFound",
    "Overloaded",
    "Policy",
    "Replayed",
    "Report",
    "Restored",
    "Run",
    "SaveHandle",
    "SaveWarning",
    "Unavailable",
    "Volatile",
    "__version__",
    "open",
    "register",
    "replay",
    "runs",
]

#: Submodules that import a framework, and what that is called on PyPI.
_FRAMEWORKS = {
    "torch": "torch",
    "jax": "jax",
    "orbax": "orbax-checkpoint",
    "hf": "transformers",
    "accelerate": "accelerate",
    "lightning": "lightning",
    "data": None,
    "fs": "fsspec",
}


def __getattr__(name: str) -> Any:
    if name not in _FRAMEWORKS:
        raise AttributeError(f"module 'lastgood' has no attribute {name!r}")
    try:
        return importlib.import_module(f"lastgood.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lastgood"):
            raise
        raise Invalid(
            f"lastgood.{name} needs {error.name}, which is not installed: pip install {_FRAMEWORKS[name]}"
        ) from None


def __dir__() -> list[str]:
    return sorted([*__all__, *_FRAMEWORKS])
