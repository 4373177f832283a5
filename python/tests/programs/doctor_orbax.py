"""Saves three steps with Orbax in three layouts: an OCDBT tree, files of zarr, a tree of zarr 3."""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

root = Path(sys.argv[1])
noise = np.random.default_rng(0).standard_normal((100, 50)).astype(np.float32)


def tree(step: int) -> dict[str, object]:
    """Arrays of several dtypes, nested, and a number."""
    return {
        "w": jnp.asarray(noise) + step,
        "b": {"c": jnp.ones(7, jnp.bfloat16)},
        "step": step,
    }


manager = ocp.CheckpointManager(root / "tree")
for step in (1, 2, 3):
    manager.save(step, args=ocp.args.StandardSave(tree(step)))
manager.wait_until_finished()
for name, options in {
    "files": {"use_ocdbt": False},
    "zarr3": {"use_ocdbt": True, "use_zarr3": True},
}.items():
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    for step in (1, 2, 3):
        checkpointer.save(root / name / str(step), tree(step))
