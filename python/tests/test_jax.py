"""Pytrees of jax arrays: every dtype and sharding comes back bit for bit, on any number of devices."""

from __future__ import annotations

import collections
import os
import pathlib
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import flax.linen as linen
import flax.struct
import jax
import jax.numpy as jnp
import lastgood as lg
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

Abstract = jax.ShapeDtypeStruct


def bits(value: Any) -> Any:
    """What a value is, to the bit: type, dtype, shape, weakness, bytes."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(value)), bits(jax.random.key_data(value))
    if isinstance(value, jax.Array):
        host = np.asarray(value)
        return "jax", host.dtype.name, host.shape, value.weak_type, host.tobytes()
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value).__name__, value.dtype.name, value.shape, value.tobytes()
    if isinstance(value, float):
        return "float", value.hex()
    return type(value).__name__, value


def bits_of(tree: Any) -> dict[str, Any]:
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): bits(value) for path, value in pairs}


def mesh_of(shape: tuple[int, ...], *axes: str) -> Mesh:
    count = int(np.prod(shape))
    return Mesh(np.array(jax.devices()[:count]).reshape(shape), axes)


def put(value: Any, shape: tuple[int, ...], *spec: Any) -> Any:
    mesh = mesh_of(shape, *("a", "b")[: len(shape)])
    return jax.device_put(value, NamedSharding(mesh, P(*spec)))


def odd_floats(count: int, dtype: Any = np.float32) -> np.ndarray:
    """Floats with every kind of bits: NaNs with payloads, -0.0, subnormal numbers."""
    raw = np.random.default_rng(1).integers(
        0, 256, count * np.dtype(dtype).itemsize, dtype=np.uint8
    )
    return raw.view(dtype)


@flax.struct.dataclass
class Struct:
    weight: Any
    name: str = flax.struct.field(pytree_node=False, default="static")


Pair = collections.namedtuple("Pair", "first second")


class Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.norm(self.layers[0](x)))


def every_kind() -> dict[str, Any]:
    narrow = (
        "bfloat16",
        "float16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3",
        "float8_e8m0fnu",
    )
    narrow += ("float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz")
    tree: dict[str, Any] = {
        name: jnp.asarray(odd_floats(16, getattr(ml_dtypes, name, name))) for name in narrow
    }
    for name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        tree[name] = jnp.asarray(np.arange(4).astype(getattr(ml_dtypes, name)))
    for name in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "complex64"):
        tree[name] = jnp.asarray(np.arange(6).astype(name))
    return {
        "zoo": tree,
        "odd": jnp.asarray(odd_floats(32)),
        "zero": jnp.asarray(np.array([-0.0, 0.0], np.float32)),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(1.5),
        "weak": jnp.asarray(2.0),
        "weak_int": jnp.asarray(3),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "raw": jax.random.PRNGKey(9),
        "pair": Pair(jnp.arange(3), (jnp.ones(2), [jnp.zeros(1), 4])),
        "struct": Struct(jnp.full(3, 2.0)),
        "numpy": np.arange(3.0),
        "numpy8": np.arange(4).astype(ml_dtypes.float8_e4m3),
        "numpy_scalar": np.float64(0.1),
        "plain": (1, 2.5, "text", True, None, {}, float("nan")),
        "optax": optax.adamw(optax.cosine_decay_schedule(1e-2, 10)).init(
            {"b": jnp.ones(2), "a": jnp.ones(3)}
        ),
        "deque": collections.deque([jnp.arange(2), jax.random.key(1)], 5),
        "a.b": jnp.zeros(1),
        "a": {"b": jnp.ones(1)},
    }


def test_every_kind_of_leaf_comes_back_to_the_bit(tmp_path: pathlib.Path) -> None:
    tree = every_kind()
    state = {"tree": tree}
    expected = bits_of({k: v for k, v in tree.items() if k != "deque"})
    with lg.open(tmp_path, state) as run:
        run.save(3, block=True)
    fresh = jax.tree.map(
        lambda x: x * 0 if isinstance(x, jax.Array) and "float" in x.dtype.name else x, tree
    )
    fresh["odd"] = jnp.zeros(32)
    fresh["key"], fresh["raw"] = jax.random.key(0), jax.random.PRNGKey(0)
    fresh["numpy"] = numpy = np.zeros(3)
    fresh["plain"] = (0, 0.0, "", False, None, {}, 0.0)
    fresh["deque"] = collections.deque(maxlen=5)
    order = list(fresh)
    state = {"tree": fresh}
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 3
    restored = state["tree"]
    assert restored is fresh, "a dict is changed in place"
    assert restored["numpy"] is numpy
    assert list(restored) == order
    found = bits_of({k: v for k, v in restored.items() if k != "deque"})
    assert found == expected
    assert [bits(v) for v in restored["deque"]] == [bits(v) for v in tree["deque"]]
    assert type(restored["optax"][0]) is type(tree["optax"][0])
    assert restored["struct"].name == "static"


LAYOUTS = {
    "8 rows": ((8,), "a", None),
    "8 columns": ((8,), None, "a"),
    "4x2": ((4, 2), "a", "b"),
    "2x4 turned": ((2, 4), "b", "a"),
    "replicated": ((8,),),
    "half replicated": ((4, 2), "a", None),
    "4 rows": ((4,), "a", None),
    "1": ((1,), "a", None),
}


def test_any_layout_is_restored_onto_any_other(tmp_path: pathlib.Path) -> None:
    host = odd_floats(16 * 8).reshape(16, 8)
    keys = jax.random.split(jax.random.key(3), 8)
    for i, layout in enumerate(LAYOUTS.values()):
        tree = {
            "w": put(host, *layout),
            "keys": put(keys, (8,), "a"),
            "c": put(host.view(np.complex64), *layout[:1]),
        }
        lg.jax.save(tmp_path, i, tree, run="layouts")
    for i, saved in enumerate(LAYOUTS):
        for wanted, layout in LAYOUTS.items():
            sharding = put(host, *layout).sharding
            abstract = {
                "w": Abstract((16, 8), jnp.float32, sharding=sharding),
                "keys": Abstract(keys.shape, keys.dtype, sharding=put(keys, (4,), "a").sharding),
                "c": Abstract((16, 4), jnp.complex64, sharding=put(host, (2,), "a").sharding),
            }
            found = lg.jax.restore(tmp_path, abstract, run="layouts", at=i)
            assert found["w"].sharding == sharding, (saved, wanted)
            assert np.asarray(found["w"]).tobytes() == host.tobytes(), (saved, wanted)
            assert bits(found["keys"]) == bits(keys)
            assert np.asarray(found["c"]).tobytes() == host.tobytes()


def test_only_what_the_devices_need_is_read(tmp_path: pathlib.Path) -> None:
    """Replicas are read once, and an array that lies on one device of many is one whole."""
    host = np.arange(1 << 14, dtype=np.float32).reshape(128, 128)
    lg.jax.save(tmp_path, 1, {"w": put(host, (8,), "a")})
    from lastgood._state import Saved, SavedTensor, World
    from lastgood.jax import _arrays

    saved = Saved("tree", 1, {}, {"w": SavedTensor("F32", host.shape)}, {})
    for layout, parts in (
        (((8,),), 1),
        (((8,), "a"), 8),
        (((4, 2), "a"), 4),
        (((4, 2), "a", "b"), 8),
    ):
        like = put(host, *layout)
        staged = _arrays.stage(saved, "w", {"dtype": "float32"}, World(), like)
        assert len(staged.targets) == parts, layout
        assert sum(target.memory.bytes for target in staged.targets) == host.nbytes
    shards = _arrays.shards_of("w", put(host, (4, 2), "a"), "w", "same", parts=True)
    assert sum(shard.memory.bytes for shard in shards) == host.nbytes


def test_donated_buffers_are_copied_in_the_call_and_restored_ones_can_be_donated(
    tmp_path: pathlib.Path,
) -> None:
    step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    for overlap in (True, False):
        state = {"w": put(np.arange(1 << 16, dtype=np.float32), (8,), "a")}
        run = lg.open(tmp_path, state, run=f"overlap-{overlap}", overlap=overlap)
        expected, handles = [], []
        for i in range(4):
            expected.append(bits(state["w"]))
            handles.append(run.save(i))
            before = state["w"]
            state["w"] = step(before)
            assert before.is_deleted(), "the buffer was not donated: this test shows nothing"
        for i, bytes_then in enumerate(expected):
            handles[i].durable.result()
            assert run.restore(at=i) == i
            assert bits(state["w"]) == bytes_then
            again = step(step(state["w"]))
            assert np.array_equal(
                np.asarray(again), np.frombuffer(bytes_then[4], np.float32) * 4 + 3
            )
        run.close()
    dead = jnp.ones(3)
    dead.delete()
    with pytest.raises(lg.Invalid, match="deleted or donated"):
        lg.jax.save(tmp_path, 1, {"w": dead}, run="dead")


def test_uncommitted_arrays_stay_uncommitted(tmp_path: pathlib.Path) -> None:
    """Else a scalar that jax put on device 0 could not be used with arrays on eight."""
    wide = put(np.arange(8.0, dtype=np.float32), (8,), "a")
    state = {
        "s": {
            "scale": jnp.float32(2),
            "pinned": jax.device_put(jnp.ones(2), jax.devices()[3]),
            "w": wide,
        }
    }
    with lg.open(tmp_path, state) as run:
        run.save(1, block=True)
        run.restore(at=1)
    assert state["s"]["pinned"].sharding == SingleDeviceSharding(jax.devices()[3])
    assert not state["s"]["scale"].committed
    assert (state["s"]["scale"] * state["s"]["w"]).sharding.device_set == set(jax.devices())


MISFITS: dict[str, tuple[Any, str]] = {
    "missing": (
        {"w": jnp.ones(4), "b": {"c": jnp.ones(2)}, "n": 1, "extra": jnp.ones(1)},
        "tree/extra is not in",
    ),
    "left over": ({"w": jnp.ones(4), "n": 1}, "tree/b.c is only in the checkpoint"),
    "reshaped": (
        {"w": jnp.ones(5), "b": {"c": jnp.ones(2)}, "n": 1},
        r"has shape \[5\], in the checkpoint \[4\]",
    ),
    "retyped": (
        {"w": jnp.ones(4, jnp.bfloat16), "b": {"c": jnp.ones(2)}, "n": 1},
        "is bfloat16, in the checkpoint",
    ),
    "none": (
        {"w": None, "b": {"c": jnp.ones(2)}, "n": 1},
        "is a NoneType, in the checkpoint an array",
    ),
    "key": ({"w": jax.random.key(1), "b": {"c": jnp.ones(2)}, "n": 1}, "holds random keys"),
    "array": (
        {"w": jnp.ones(4), "b": {"c": jnp.ones(2)}, "n": jnp.ones(2)},
        "in the checkpoint a plain value",
    ),
    "emptied": ({"w": jnp.ones(4), "b": {}, "n": 1}, "tree/b is not in the checkpoint"),
    "two at once": (
        {"w": jnp.ones(5), "b": {"c": jnp.ones(3)}, "n": 1},
        "(?s)tree/b.c has.*tree/w has",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named_and_nothing_changes(case: str, tmp_path: pathlib.Path) -> None:
    lg.jax.save(tmp_path, 1, {"w": jnp.zeros(4), "b": {"c": jnp.zeros(2)}, "n": 0})
    tree, message = MISFITS[case]
    before = bits_of(tree)
    state = {"tree": tree}
    with lg.open(tmp_path, state, rng=False) as run, pytest.raises(lg.Incompatible, match=message):
        run.restore()
    assert state["tree"] is tree and bits_of(tree) == before
    with pytest.raises(lg.Incompatible, match=message):
        lg.jax.restore(tmp_path, tree)


def test_a_number_may_become_an_array_and_back(tmp_path: pathlib.Path) -> None:
    state: dict[str, Any] = {"step": 0, "tree": {"n": 0, "w": jnp.ones(2)}}
    with lg.open(tmp_path, state) as run:
        run.save(0, block=True)
        state["step"] = jnp.int32(5)
        state["tree"]["n"] = jnp.asarray(5)
        run.save(5, block=True)
    state = {"step": 0, "tree": {"n": 0, "w": jnp.zeros(2)}}
    with lg.open(tmp_path, state) as run:
        assert run.restore() == 5
        assert bits(state["step"]) == bits(jnp.int32(5))
        assert bits(state["tree"]["n"]) == bits(jnp.asarray(5))
        assert run.restore(at=0) == 0
        assert state["step"] == 0 and type(state["step"]) is int and type(state["tree"]["n"]) is int


def test_what_cannot_be_stored_is_refused_by_its_path(tmp_path: pathlib.Path) -> None:
    for tree, message in (
        ({"g": {"x": np.zeros(2, jax.dtypes.float0)}, "w": jnp.ones(1)}, "g.x"),
        ({"o": object(), "w": jnp.ones(1)}, "cannot be stored without pickle"),
        ({"w": Abstract((2,), jnp.float32)}, "has no values"),
    ):
        with pytest.raises(lg.Invalid, match=message):
            lg.open(tmp_path, {"t": tree}).save(1)
    with jax.enable_x64(True):
        wide = {
            "d": jnp.asarray(odd_floats(4, np.float64)),
            "c": jnp.asarray([1 + 2j]),
            "i": jnp.arange(3),
        }
        lg.jax.save(tmp_path, 1, wide, run="x64")
        expected = bits_of(wide)
        assert bits_of(lg.jax.restore(tmp_path, wide, run="x64")) == expected
        assert bits_of(lg.jax.restore(tmp_path, run="x64")) == expected
    assert expected["['d']"][1:3] == ("float64", (4,)) and expected["['c']"][1] == "complex128"
    with pytest.raises(lg.Incompatible, match="JAX_ENABLE_X64"):
        lg.jax.restore(tmp_path, run="x64")


def train_step(state: TrainState, x: Any, key: Any) -> TrainState:
    def loss(params: Any) -> Any:
        return jnp.sum(state.apply_fn({"params": params}, x) * jax.random.normal(key, (2, 3)))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def test_a_flax_train_state_goes_on_as_if_nothing_had_happened(tmp_path: pathlib.Path) -> None:
    model = linen.Dense(3)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 9))
    )
    x = jnp.asarray(np.arange(8.0, dtype=np.float32).reshape(2, 4))
    step = jax.jit(train_step)

    def start(seed: int) -> TrainState:
        params = model.init(jax.random.key(seed), x)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    undisturbed = start(0)
    for i in range(6):
        undisturbed = step(undisturbed, x, jax.random.fold_in(jax.random.key(5), i))
    state = {"train": start(0), "key": jax.random.key(5)}
    with lg.open(tmp_path, state, policy=lg.Policy(steps=3)) as run:
        for i in range(4):
            state["train"] = step(state["train"], x, jax.random.fold_in(state["key"], i))
            run.step(i + 1)
    state = {"train": start(1), "key": jax.random.key(6)}
    with lg.open(tmp_path, state) as run:
        first = run.restore()
        names = {
            name
            for component, name, *_ in run._native.find("latest").tensors()
            if component == "train"
        }
    assert first == 3
    assert {"params.kernel", "params.bias", "opt_state.1.0.mu.kernel"} <= names
    for i in range(first, 6):
        state["train"] = step(state["train"], x, jax.random.fold_in(state["key"], i))
    assert bits_of(state["train"]) == bits_of(undisturbed)


def test_nnx_modules_and_optimizers_are_updated_in_place(tmp_path: pathlib.Path) -> None:
    x = jnp.asarray(odd_floats(8, np.uint8).astype(np.float32).reshape(2, 4))

    @nnx.jit
    def step(model: Module, optimizer: nnx.Optimizer) -> None:
        grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)

    def start(seed: int) -> tuple[Module, nnx.Optimizer]:
        model = Module(nnx.Rngs(seed))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    model, optimizer = start(0)
    expected = {}
    with lg.open(
        tmp_path, {"model": model, "optimizer": optimizer, "both": {"m": model, "n": 1}}
    ) as run:
        for i in range(1, 7):
            step(model, optimizer)
            run.save(i)
            expected[i] = bits_of(nnx.state(model)), bits_of(nnx.state(optimizer))
        names = {
            name
            for component, name, *_ in run._native.find("latest").tensors()
            if component == "model"
        }
    assert {"layers.0.kernel", "norm.mean", "dropout.rngs.count", "dropout.rngs.key"} <= names
    model, optimizer = start(1)
    kernel = model.layers[0].kernel
    state = {"model": model, "optimizer": optimizer, "both": {"m": model, "n": 0}}
    with lg.open(tmp_path, state) as run:
        assert run.restore(at=3) == 3
    assert (
        state["model"] is model and model.layers[0].kernel is kernel and state["both"]["m"] is model
    )
    assert state["both"]["n"] == 1
    for i in range(3, 7):
        if i > 3:
            step(model, optimizer)
        assert (bits_of(nnx.state(model)), bits_of(nnx.state(optimizer))) == expected[i], i
    # A state of flax, split off by the program, is a tree like any other.
    params = nnx.state(model, nnx.Param)
    lg.jax.save(tmp_path, 1, params, run="split")
    found = lg.jax.restore(tmp_path, jax.tree.map(jnp.zeros_like, params), run="split")
    assert type(found) is nnx.State and bits_of(found) == bits_of(params)


class Affine:
    """As Equinox has it: a registered class, whose leaves may be functions."""

    def __init__(self, weight: Any, activation: Any) -> None:
        self.weight = weight
        self.activation = activation


jax.tree_util.register_pytree_with_keys(
    Affine,
    lambda a: (
        [
            (jax.tree_util.GetAttrKey("weight"), a.weight),
            (jax.tree_util.GetAttrKey("act"), a.activation),
        ],
        None,
    ),
    lambda _, children: Affine(*children),
)


def test_functions_among_the_leaves_are_those_of_the_program(tmp_path: pathlib.Path) -> None:
    lg.jax.save(tmp_path, 1, Affine(jnp.arange(3.0), jax.nn.relu))
    found = lg.jax.restore(tmp_path, Affine(Abstract((3,), jnp.float32), jax.nn.gelu))
    assert isinstance(found, Affine) and found.activation is jax.nn.gelu
    assert bits(found.weight) == bits(jnp.arange(3.0))
    with pytest.raises(lg.Incompatible, match=r"tree/act is a int, in the checkpoint code"):
        lg.jax.restore(tmp_path, Affine(jnp.zeros(3), 3))


def test_an_object_that_refuses_leaves_every_other_as_it_was(tmp_path: pathlib.Path) -> None:
    class Refuses:
        def __init__(self) -> None:
            self.refuse = False

        def state_dict(self) -> dict[str, Any]:
            return {
                "a": jnp.int4(3),
                "key": jax.random.key(2),
                "weak": jnp.asarray(1.0),
                "grain": {"at": [1, 2]},
            }

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = {name: bits(state[name]) for name in ("a", "key", "weak")}
            if self.refuse:
                self.refuse = False
                raise ValueError("no")

    model, tree, loader = Module(nnx.Rngs(0)), {"w": jnp.arange(4.0)}, Refuses()
    state = {"a": model, "b": tree, "z": loader}
    with lg.open(tmp_path, state) as run:
        run.save(1, block=True)
        nnx.update(
            model, jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, nnx.state(model))
        )
        tree["w"] = jnp.zeros(4)
        before = bits_of(nnx.state(model)), bits_of(tree)
        loader.refuse = True
        with pytest.raises(lg.Incompatible, match="an object refused its state"):
            run.restore(at=1)
        assert (bits_of(nnx.state(model)), bits_of(tree)) == before
        run.restore(at=1)
        assert tree["w"][3] == 3
        assert loader.seen["a"] == bits(jnp.int4(3))
        assert loader.seen["key"] == bits(jax.random.key(2)) and loader.seen["weak"] == bits(
            jnp.asarray(1.0)
        )


def flip_a_pack(store: pathlib.Path, newest: bool = True) -> None:
    packs = sorted(
        (p for p in store.rglob("*") if p.is_file() and "pack" in p.name + p.parent.name),
        # Two saves may fall into one tick of the file system's clock; the names have the step.
        key=lambda p: (os.path.getmtime(p), str(p)),
    )
    path = packs[-1 if newest else 0]
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_one_shot_restores_go_back_and_fence_nobody(tmp_path: pathlib.Path) -> None:
    state = {"params": {"w": put(odd_floats(4096), (8,), "a")}}
    run = lg.open(tmp_path, state, run="r")
    run.save(1, block=True)
    first = bits(state["params"]["w"])
    state["params"]["w"] = put(np.arange(4096, dtype=np.float32), (8,), "a")
    run.save(2, block=True)
    assert lg.jax.steps(tmp_path, run="r") == [1, 2]
    abstract = {"w": Abstract((4096,), jnp.float32)}
    found = lg.jax.restore(tmp_path, abstract, run="r", component="params")
    assert bits(found["w"]) == bits(jnp.arange(4096.0))
    flip_a_pack(tmp_path)
    with pytest.warns(lg.SaveWarning, match="went back to an older checkpoint"):
        found = lg.jax.restore(tmp_path, abstract, run="r", component="params")
    assert bits(found["w"]) == first
    with pytest.raises(lg.Corrupt):
        lg.jax.restore(tmp_path, abstract, run="r", component="params", at=2)
    run.save(3, block=True)  # The run was not fenced by any of this.
    run.expire(1, "not needed")
    assert lg.jax.steps(tmp_path, run="r") == [2, 3]
    with pytest.raises(lg.NotFound):
        lg.jax.restore(tmp_path, abstract, run="r", component="params", at=1)
    with pytest.raises(lg.NotFound):
        lg.jax.restore(tmp_path, abstract, run="other")
    run.close()
