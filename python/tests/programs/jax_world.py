"""One process of a job of jax.distributed: saves arrays that lie over all processes, and restores them cut
otherwise."""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

rank, port, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)

import lastgood as lg
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

mesh = jax.make_mesh((4,), ("a",))
host = np.arange(64, dtype=np.float32).reshape(8, 8)
keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(5), 4)))


def spread(value: np.ndarray, *spec: object) -> jax.Array:
    return jax.make_array_from_callback(
        value.shape, NamedSharding(mesh, P(*spec)), lambda i: value[i]
    )


def check(found: jax.Array, value: np.ndarray, *spec: object) -> None:
    assert found.sharding == NamedSharding(mesh, P(*spec)), found.sharding
    for shard in found.addressable_shards:
        assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes()


state = {
    "tree": {
        "rows": spread(host, "a"),
        "all": spread(host + 1),
        "keys": jax.random.wrap_key_data(spread(keys, "a")),
        "mine": np.full(3, rank),
    }
}
run = lg.open(store, state, run="world", rng=False)
assert (run.rank, run.world_size) == (rank, 2)
step = jax.jit(lambda x: x * 2)
doubled = step(state["tree"]["rows"])
run.save(1).durable.result()
state["tree"] = {
    "rows": spread(host * 0, None, "a"),
    "all": spread(host * 0, "a"),
    "keys": jax.random.wrap_key_data(spread(keys * 0)),
    "mine": np.zeros(3, int),
}
assert run.restore(at=1) == 1
tree = state["tree"]
check(tree["rows"], host, None, "a")
check(tree["all"], host + 1, "a")
check(jax.random.key_data(tree["keys"]), keys)
assert tree["mine"].tolist() == [rank] * 3
check(step(tree["rows"]), host * 2, None, "a")
run.close()
id = lg.jax.save(store, 2, {"w": doubled}, run="one-shot")
abstract = {"w": jax.ShapeDtypeStruct((8, 8), "float32", sharding=NamedSharding(mesh, P()))}
check(lg.jax.restore(store, abstract, run="one-shot")["w"], host * 2)

# One process computes otherwise: none restores, and each says which it is.
manager = lg.orbax.CheckpointManager(f"{store}/orbax")
manager.save(1, args=ocp.args.StandardSave({"w": doubled}))
manager.close()
if rank == 1:
    os.environ["OMP_SCHEDULE"] = "static,7"
manager = lg.orbax.CheckpointManager(f"{store}/orbax")
args = ocp.args.StandardRestore(abstract)
try:
    manager.restore(1, args=args)
except lg.Incompatible as error:
    assert "env.OMP_SCHEDULE was nothing, is static,7" in str(error), error
    assert rank == 1 or "rank 1: " in str(error), error
else:
    raise AssertionError("it was restored")
reading = ocp.CheckpointManagerOptions(read_only=True)
check(
    lg.orbax.CheckpointManager(f"{store}/orbax", options=reading).restore(1, args=args)["w"],
    host * 2,
)
print(f"rank {rank} is done: {id}", flush=True)
