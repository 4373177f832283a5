"""A job of two processes of jax.distributed, over gloo: what lies over both is one array."""

from __future__ import annotations

import os
import pathlib
import socket
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import forks
import jax
import jax.numpy as jnp
import lastgood as lg
import numpy as np
import pytest
from children import PROGRAMS
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Abstract = jax.ShapeDtypeStruct


def test_two_processes_save_what_lies_over_both_and_one_restores_it(tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    logs = [tmp_path / f"output.{rank}" for rank in range(2)]
    for rank, log in enumerate(logs):
        command = [sys.executable, str(PROGRAMS / "jax_world.py"), str(rank), port, str(tmp_path)]
        with open(log, "wb") as output:
            ranks.append(forks.Fork("jax", command, env=forks.environment(), stdout=output))
    try:
        codes = [rank.wait(120) for rank in ranks]
    finally:
        for fork in ranks:
            fork.kill()
    outputs = [log.read_text() for log in logs]
    assert codes == [0, 0], outputs
    assert all(f"rank {i} is done" in output for i, output in enumerate(outputs)), outputs
    host = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = Mesh(np.array(jax.devices()), ("a",))
    abstract = {
        "rows": Abstract((8, 8), jnp.float32, sharding=NamedSharding(mesh, P("a"))),
        "all": Abstract((8, 8), jnp.float32),
    }
    wanted = {"run": "world", "component": "tree"}
    found = lg.jax.restore(tmp_path, abstract, partial=True, **wanted)
    assert np.asarray(found["rows"]).tobytes() == host.tobytes()
    assert np.asarray(found["all"]).tobytes() == (host + 1).tobytes()
    # Bytes that lie over both are stored once, not once for each process or replica.
    with lg.open(tmp_path, run="world") as run:
        assert run.history()[0].bytes < 2 * host.nbytes + 2000, "of this, trees are about 1000"
    with pytest.raises(lg.Incompatible, match="each of 2 ranks stored its own"):
        lg.jax.restore(tmp_path, {"mine": np.zeros(3, int)}, partial=True, **wanted)
