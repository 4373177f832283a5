"""Trains numbers for some steps under ``lastgood run``, and ends by a signal in the first attempt.

``crashing.py FOLDER STEPS CRASH [--twice]``: it kills itself behind the save of step CRASH; with ``--twice`` it opens the
run a second time beside the first.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import lastgood as lg
import numpy as np

folder, steps, crash = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
state = {"x": np.zeros(1 << 20), "y": {"sum": 0}}
with lg.open(state=state, policy=lg.Policy(steps=1000)) as run:
    if "--twice" in sys.argv:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            lg.open(state={}, run="other").close()
        print("twice:", *(str(warning.message) for warning in said))
    done = run.restore()
    told = run.last_restore
    print(f"from {done}, {told.bytes_read if told else 0} bytes read")
    for step in range(done + 1, steps + 1):
        state["x"] += np.random.default_rng(step).random(1 << 20)
        state["y"]["sum"] += step
        run.step(step)
        if step % 2 == 0:
            run.save(step, block=True)
        if step == crash and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    total = float(state["x"].sum())
print("sum", total.hex(), state["y"]["sum"])
