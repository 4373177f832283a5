"""A job of two processes of jax.distributed, over gloo: what lies over both is one array."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import children
import jax
import jax.numpy as jnp
import lastgood as lg
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Abstract = jax.ShapeDtypeStruct


def test_two_processes_save_what_lies_over_both_and_one_restores_it(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(root / "programs/jax_world.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), port, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=children.environment(JAX_PLATFORMS="cpu"),
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
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
