"""One script for orbax's CheckpointManager and ours: the same calls give the same results."""

from __future__ import annotations

import datetime
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import children
import jax
import jax.numpy as jnp
import lastgood as lg
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

logging.getLogger("absl").setLevel(logging.ERROR)
policies = ocp.checkpoint_managers
MANAGERS: dict[str, Any] = {"theirs": ocp.CheckpointManager, "ours": lg.orbax.CheckpointManager}
Options = ocp.CheckpointManagerOptions


def bits(tree: Any) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            host = np.asarray(value)
            return isinstance(value, jax.Array), host.dtype.name, host.shape, host.tobytes()
        return type(value).__name__, value

    return [
        (jax.tree_util.keystr(p), leaf(v)) for p, v in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def tree_of(step: int) -> dict[str, Any]:
    weights = np.arange(64, dtype=np.float32).reshape(8, 8) * step
    weights[0, :2] = np.array([0x7FC12345, 0x80000000], np.uint32).view(np.float32)
    return {
        "params": {"kernel": jnp.asarray(weights), "bias": jnp.full(3, step, jnp.bfloat16)},
        "opt": optax.adam(1e-2).init(jnp.full(2, float(step))),
        "host": np.arange(3) + step,
        "step": step,
        "lr": 0.1 * step,
        "nested": [jnp.int8(step), {"x": jnp.zeros((1, 2))}, None, {}],
    }


def sharded(step: int, *spec: Any, devices: int = 8) -> Any:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("a",))
    return jax.device_put(jnp.arange(64.0).reshape(8, 8) + step, NamedSharding(mesh, P(*spec)))


def outcome(call: Callable[[], Any], *known: type[BaseException]) -> Any:
    try:
        return call()
    except known as error:
        return type(error).__name__


# Each script gets a class and a folder, and gives what it saw. What it saw must be equal for both classes.


def intervals_and_max_to_keep(manager: Any, folder: pathlib.Path) -> Any:
    options = Options(save_interval_steps=2, max_to_keep=2)
    seen: list[Any] = []
    with manager(folder, options=options) as mngr:
        seen += [mngr.latest_step(), mngr.best_step(), mngr.all_steps()]
        for step in range(7):
            asked = mngr.should_save(step)
            saved = mngr.save(step, args=ocp.args.StandardSave(tree_of(step)))
            seen.append((asked, saved, list(mngr.all_steps()), mngr.latest_step()))
        mngr.wait_until_finished()
        seen += [bits(mngr.restore(step)) for step in mngr.all_steps()]
        seen.append(outcome(lambda: mngr.restore(2), FileNotFoundError))
        seen.append(outcome(lambda: mngr.save(6, args=ocp.args.StandardSave(tree_of(6)))))
        again = outcome(
            lambda: mngr.save(6, args=ocp.args.StandardSave({}), force=True), ValueError
        )
        seen += [again, mngr.should_save(5), mngr.should_save(8), mngr.reached_preemption(1)]
        seen.append(mngr.save(7, args=ocp.args.StandardSave(tree_of(7)), force=True))
    with manager(folder, options=options) as mngr:
        seen += [list(mngr.all_steps()), mngr.latest_step(), bits(mngr.restore(None))]
    return seen


def abstract_trees(manager: Any, folder: pathlib.Path) -> Any:
    tree = tree_of(3)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    with manager(folder) as mngr:
        mngr.save(0, args=ocp.args.StandardSave(tree))
        mngr.wait_until_finished()
        restored = mngr.restore(0, args=ocp.args.StandardRestore(abstract))
        seen = [
            bits(restored),
            str(jax.tree.structure(restored)),
            type(restored["opt"][0]).__name__,
        ]
        seen.append(bits(mngr.restore(0, args=ocp.args.StandardRestore(tree))))
        seen.append(bits(mngr.restore(0, args=ocp.args.StandardRestore())))
        metadata = mngr.item_metadata(0)
        seen.append((metadata["params"]["kernel"].shape, str(metadata["params"]["bias"].dtype)))
        seen.append(jax.tree.map(lambda leaf: leaf.shape, metadata.tree))
        extra = {**abstract, "more": jax.ShapeDtypeStruct((2,), jnp.float32)}
        known = (ValueError, lg.Incompatible)
        seen.append(
            outcome(lambda: mngr.restore(0, args=ocp.args.StandardRestore(extra)), *known) is None
        )
        wrong = {**abstract, "host": np.zeros(5, np.int64)}
        seen.append(
            outcome(lambda: mngr.restore(0, args=ocp.args.StandardRestore(wrong)), *known) is None
        )
    return seen


def shardings(manager: Any, folder: pathlib.Path) -> Any:
    seen = []
    with manager(folder) as mngr:
        mngr.save(0, args=ocp.args.StandardSave({"w": sharded(1, "a")}))
        mngr.wait_until_finished()
        for like in (
            sharded(0, None, "a"),
            sharded(0, "a", devices=4),
            sharded(0),
            sharded(0, devices=1),
        ):
            abstract = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=like.sharding)}
            found = mngr.restore(0, args=ocp.args.StandardRestore(abstract))["w"]
            seen.append((bits(found), found.sharding == like.sharding))
    with manager(folder.with_name(folder.name + "-pytree")) as mngr:
        mngr.save(0, args=ocp.args.PyTreeSave({"w": sharded(1, "a"), "b": jnp.ones(2)}))
        mngr.wait_until_finished()
        item = {"w": sharded(0, None, "a"), "b": jnp.zeros(2)}
        how = ocp.checkpoint_utils.construct_restore_args(item)
        found = mngr.restore(0, args=ocp.args.PyTreeRestore(item=item, restore_args=how))
        seen.append((bits(found), found["w"].sharding == item["w"].sharding))
        only = {"b": jnp.zeros(2)}
        how = ocp.checkpoint_utils.construct_restore_args(only)
        part = ocp.args.PyTreeRestore(item=only, restore_args=how, partial_restore=True)
        seen.append(bits(mngr.restore(0, args=part)))
    return seen


def composites(manager: Any, folder: pathlib.Path) -> Any:
    meta = {"a": [1, 2.5, None], "t": (1, 2), "name": "x"}
    key, np_key = jax.random.key(4), np.random.RandomState(3).get_state()
    seen: list[Any] = []
    with manager(folder, metadata={"version": 1.1, "lang": "en"}) as mngr:
        args = ocp.args.Composite(
            state=ocp.args.StandardSave({"w": jnp.arange(4.0)}),
            meta=ocp.args.JsonSave(meta),
            array=ocp.args.ArraySave(jnp.arange(3)),
            key=ocp.args.JaxRandomKeySave(key),
            np_key=ocp.args.NumpyRandomKeySave(np_key),
        )
        mngr.save(0, args=args, custom_metadata={"learning_rate": 0.001})
        mngr.wait_until_finished()
        found = mngr.restore(0)
        seen += [
            type(found).__name__,
            sorted(found.keys()),
            found.meta,
            bits(found.state),
            bits(found.array),
        ]
        seen += [bits(jax.random.key_data(found.key)), bits(list(found.np_key))]
        found = mngr.restore(0, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), state=None))
        seen += [sorted(found.keys()), found.meta, bits(found["state"])]
        seen += [mngr.metadata().custom_metadata, mngr.metadata(0).custom_metadata]
        seen.append(outcome(lambda: mngr.save(1, args=ocp.args.StandardSave({})), ValueError))
        seen.append(outcome(lambda: mngr.save(1), ValueError))
    with manager(folder, metadata={"version": 2}) as mngr:
        seen += [mngr.metadata().custom_metadata, mngr.restore(0).meta]
    single = folder.with_name(folder.name + "-single")
    with manager(single) as mngr:
        mngr.save(0, args=ocp.args.JsonSave(meta))
        seen.append(mngr.restore(0))
        composite = ocp.args.Composite(a=ocp.args.JsonSave(meta))
        seen.append(outcome(lambda: mngr.save(1, args=composite), ValueError))
    return seen


def best_steps(manager: Any, folder: pathlib.Path) -> Any:
    losses = [3.0, 1.0, 2.0, 5.0, 4.0, 1.5]
    seen: list[Any] = []
    for mode in ("min", "max"):
        options = Options(best_fn=lambda m: m["loss"], best_mode=mode, max_to_keep=3)
        place = folder.with_name(folder.name + mode)
        with manager(place, options=options) as mngr:
            for step, loss in enumerate(losses):
                mngr.save(
                    step, args=ocp.args.StandardSave({"x": jnp.ones(1)}), metrics={"loss": loss}
                )
                seen.append((list(mngr.all_steps()), mngr.best_step()))
            mngr.wait_until_finished()
            seen += [mngr.metrics(step) for step in mngr.all_steps()]
            seen.append(mngr.metadata(mngr.latest_step()).metrics)
        with manager(place, options=options) as mngr:
            seen += [list(mngr.all_steps()), mngr.best_step(), mngr.latest_step()]
            mngr.delete(mngr.best_step())
            seen += [list(mngr.all_steps()), mngr.best_step()]
            seen.append(outcome(lambda: mngr.delete(99), FileNotFoundError))
        with manager(place, options=options) as mngr:
            seen.append(list(mngr.all_steps()))
    return seen


POLICIES: dict[str, Any] = {
    "fixed": {"save_decision_policy": policies.FixedIntervalPolicy(3)},
    "specific": {"save_decision_policy": policies.SpecificStepsPolicy([1, 5])},
    "initial": {"save_decision_policy": policies.InitialSavePolicy()},
    "any": {
        "save_decision_policy": policies.AnySavePolicy(
            [policies.SpecificStepsPolicy({2}), policies.FixedIntervalPolicy(4)]
        )
    },
    "function": {"should_save_fn": lambda step, last: last is None or step - last >= 2},
    "on steps": {"save_interval_steps": 5, "save_on_steps": [2, 3]},
    "keep period": {"max_to_keep": 2, "keep_period": 3},
    "keep none": {"max_to_keep": 0},
    "keep time": {"max_to_keep": 1, "keep_time_interval": datetime.timedelta(hours=1)},
    "latest": {"preservation_policy": policies.LatestN(3)},
    "every": {"preservation_policy": policies.EveryNSteps(2)},
    "closest": {"preservation_policy": policies.EveryNStepsClosest(3, max_to_keep=2)},
    "custom": {"preservation_policy": policies.CustomSteps([0, 4])},
    "duration": {"preservation_policy": policies.LatestDuration(datetime.timedelta(hours=1))},
    "either": {
        "preservation_policy": policies.AnyPreservationPolicy(
            [policies.LatestN(1), policies.EveryNSteps(3)]
        )
    },
    "synchronous": {"enable_async_checkpointing": False, "max_to_keep": 1},
}


def every_policy(manager: Any, folder: pathlib.Path) -> Any:
    seen: dict[str, Any] = {}
    for name, fields in POLICIES.items():
        place = folder.with_name(f"{folder.name}-{name.replace(' ', '-')}")
        with manager(place, options=Options(**fields)) as mngr:
            saved = [mngr.save(i, args=ocp.args.JsonSave({"i": i})) for i in range(7)]
            mngr.wait_until_finished()
            mngr.reload()
            seen[name] = saved, list(mngr.all_steps()), [mngr.restore(s) for s in mngr.all_steps()]
    return seen


def reading_only(manager: Any, folder: pathlib.Path) -> Any:
    with manager(folder) as trainer:
        trainer.save(1, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
        trainer.wait_until_finished()
        with manager(folder, options=Options(read_only=True)) as mngr:
            seen = [
                mngr.should_save(2),
                mngr.save(2, args=ocp.args.StandardSave({"x": jnp.ones(2)})),
            ]
            mngr.delete(1)
            seen += [list(mngr.all_steps()), bits(mngr.restore(1))]
            trainer.save(2, args=ocp.args.StandardSave({"x": jnp.zeros(2)}))
            trainer.wait_until_finished()
            seen.append(list(mngr.all_steps()))
            mngr.reload()
            seen += [list(mngr.all_steps()), bits(mngr.restore(None))]
    return seen


SCRIPTS = [
    intervals_and_max_to_keep,
    abstract_trees,
    shardings,
    composites,
    best_steps,
    every_policy,
    reading_only,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_both_managers_give_the_same(script: Any, tmp_path: pathlib.Path) -> None:
    seen = {name: script(manager, tmp_path / name) for name, manager in MANAGERS.items()}
    assert seen["ours"] == seen["theirs"]


def test_a_failed_save_is_told_and_its_step_is_not_listed(tmp_path: pathlib.Path) -> None:
    """With orbax, latest_step() may give a step whose commit failed behind the call."""
    mngr = lg.orbax.CheckpointManager(tmp_path, options=Options(max_to_keep=1))
    mngr.save(1, args=ocp.args.StandardSave({"x": jnp.ones(1000)}))
    mngr.wait_until_finished()
    limit = _no_new_files()
    try:
        mngr.save(2, args=ocp.args.StandardSave({"x": jnp.arange(1000.0)}))
        with pytest.raises(lg.LastgoodError):
            mngr.wait_until_finished()
    finally:
        limit()
    assert mngr.all_steps() == [1] and mngr.latest_step() == 1
    assert mngr.restore(None)["x"][0] == 1
    assert mngr.save(3, args=ocp.args.StandardSave({"x": jnp.arange(1000.0)}))
    mngr.close()
    mngr.close()
    assert lg.jax.steps(tmp_path) == [3], "step 1 goes once step 3 is durable, and not before"
    with lg.open(tmp_path) as run:
        assert [(c.step, c.expired) for c in run.history()] == [(1, True), (3, False)]


def _no_new_files() -> Callable[[], None]:
    """No file of the process may grow: writes fail with EFBIG, as on a full disk they do with ENOSPC."""
    import resource
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))

    def undo() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)

    return undo


def test_a_manager_that_only_reads_fences_nobody_and_the_first_save_does(
    tmp_path: pathlib.Path,
) -> None:
    first = lg.orbax.CheckpointManager(tmp_path)
    first.save(1, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
    first.wait_until_finished()
    with lg.orbax.CheckpointManager(tmp_path) as second:
        assert second.restore(1)["x"][0] == 1
        first.save(2, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
        first.wait_until_finished()
        second.reload()
        second.save(3, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
    with pytest.raises(lg.Fenced):
        first.save(4, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
        first.wait_until_finished()
    first.close()
    with lg.orbax.CheckpointManager(tmp_path) as third:
        assert third.all_steps() == [1, 2, 3]


def test_what_is_not_done_is_refused_in_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(lg.Invalid, match="item_handlers"):
        lg.orbax.CheckpointManager(tmp_path, item_handlers={"a": ocp.StandardCheckpointHandler()})
    with lg.orbax.CheckpointManager(tmp_path) as mngr:
        with pytest.raises(ValueError, match="Must provide `args`"):
            mngr.save(1, {"x": 1})
        with pytest.raises(lg.Invalid, match="cannot be stored without pickle"):
            mngr.save(1, args=ocp.args.StandardSave({"x": object()}))
        assert mngr.all_steps() == []
        mngr.save(1, args=ocp.args.StandardSave({"x": jnp.ones(2)}))
        half = {"x": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
        with pytest.raises(lg.Incompatible, match="is bfloat16, in the checkpoint float32"):
            mngr.restore(1, args=ocp.args.StandardRestore(half))
    lg.jax.save(tmp_path, 9, {"x": jnp.ones(1)})
    with (
        lg.orbax.CheckpointManager(tmp_path) as mngr,
        pytest.raises(lg.Invalid, match=r"lg\.jax\.restore"),
    ):
        mngr.restore(9)


def test_policies_of_orbax_decide_for_a_run(tmp_path: pathlib.Path) -> None:
    state = {"x": {"w": jnp.zeros(1)}}
    policy = policies.AnySavePolicy([policies.InitialSavePolicy(), policies.FixedIntervalPolicy(3)])
    with lg.open(tmp_path, state, policy=policy) as run:
        saved = [step for step in range(1, 8) if run.step(step) is not None]
    assert saved == [1, 3, 6]
    with lg.open(tmp_path, state, policy=policy) as run:
        assert run.restore() == 6
        assert run.step(7) is None, "the restored one is a checkpoint before it"
        assert run.step(9) is not None


def test_each_save_is_recorded_and_a_replay_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lg.orbax.CheckpointManager(tmp_path) as mngr:
        for step in (3, 5):
            mngr.save(
                step, metrics={"loss": 0.1 * step}, args=ocp.args.StandardSave({"w": jnp.ones(4)})
            )
    events = children.events(tmp_path)
    steps = [(event["step"], event["event"]["loss"]) for event in events if event["kind"] == "step"]
    assert steps == [(3, 0.1 * 3), (5, 0.5)]
    kinds = [event["kind"] for event in events]
    assert kinds.count("state.digest") == 2 and kinds.count("environment") == 1, kinds
    monkeypatch.setenv("LASTGOOD_REPLAY", children.replay_of(tmp_path))
    with pytest.raises(lg.Invalid, match=r"by lg.orbax.CheckpointManager, which records its saves"):
        lg.orbax.CheckpointManager(tmp_path)
    lg.orbax.CheckpointManager(tmp_path, options=Options(read_only=True)).close()
