"""One rank that follows a policy: `paced_ranks.py STORE POLICY STEPS PACE`, where PACE is a file that all ranks share.

It ends after STEPS, or when there is a file ``PACE.stop``. POLICY is what `lg.Policy` takes, as JSON. A step takes
10 ms, and no rank begins one before all have ended the one before, as ranks do that exchange gradients. Prints
`save STEP` for each save, and `end STEP`.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path

import lastgood as lg
import numpy as np

STEP_S = 0.01
GONE = 1 << 62


def main(store: str, policy: str, steps: int, pace: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with Path(pace).open("r+b") as file:
        at = mmap.mmap(file.fileno(), 8 * size)

    def put(step: int) -> None:
        at[8 * rank : 8 * rank + 8] = struct.pack("<q", step)

    mine = {"x": np.full(1000, rank, dtype=np.float32), "step": 0}
    run = lg.open(store, {"own": mine}, policy=lg.Policy(**json.loads(policy)), rng=False)
    step, stop = run.restore(), Path(f"{pace}.stop")
    try:
        while step < steps and not stop.exists():
            time.sleep(STEP_S)
            step += 1
            mine["step"] = step
            put(step)
            while min(struct.unpack(f"<{size}q", at[:])) < step:
                time.sleep(0.0005)
            if run.step(step) is not None:
                print("save", step, flush=True)
        run.close()
    finally:
        put(GONE)
        print("end", step, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
