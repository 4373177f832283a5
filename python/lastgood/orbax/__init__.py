"""orbax's `CheckpointManager` over lastgood: the same calls, checkpoints that are verified when they are read.

- mngr = ocp.CheckpointManager(directory, options=options)
+ mngr = lg.orbax.CheckpointManager(directory, options=options)
"""

from __future__ import annotations

from lastgood.orbax._manager import CheckpointManager
from lastgood.orbax._policies import should_save

__all__ = ["CheckpointManager", "should_save"]
