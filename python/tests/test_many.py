"""States of many tensors: what a save knows of them is asked anew each time, and costs little."""

from __future__ import annotations

import gc
import json
import threading
import time
from pathlib import Path
from typing import Any

import lastgood as lg
import numpy as np
import pytest
from lastgood import _lastgood, _state, _tree

torch = pytest.importorskip("torch")


def small(layers: int = 3) -> tuple[Any, Any]:
    torch.manual_seed(2)
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(layers)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def stored(folder: Path, step: int) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of the checkpoint as it was written: dtype, shape and bytes."""
    reader = _lastgood.Reader(str(folder), {}, "default")
    checkpoint = reader.find(str(step))
    targets, found = _lastgood.Targets(), {}
    for component, name, dtype, shape, _ in checkpoint.tensors():
        if dtype != "BLOB":
            width = {"F64": 8, "I64": 8, "F32": 4, "U32": 4, "BF16": 2}.get(dtype, 1)
            array = np.zeros(int(np.prod(shape, dtype=np.int64)) * width, np.uint8)
            origin, address = [0] * len(shape), array.__array_interface__["data"][0]
            targets.tensor(
                component, name, dtype, shape, origin, shape, address, array.nbytes, array
            )
            found[f"{component}/{name}"] = (dtype, list(shape), array)
    reader.read(checkpoint, targets)
    return {name: (dtype, shape, a.tobytes()) for name, (dtype, shape, a) in found.items()}


def as_stored(tensor: Any) -> tuple[str, list[int], bytes]:
    plain = tensor.detach().contiguous()
    dtype = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16"}[plain.dtype]
    return (
        dtype,
        list(plain.shape),
        plain.reshape(-1).clone().view(torch.uint8).numpy().tobytes(),
    )


@pytest.mark.parametrize("overlap", [True, False])
def test_what_changes_between_saves_is_saved_as_it_is_then(tmp_path: Path, overlap: bool) -> None:
    """Other storage, another size, another dtype, other strides, another object: whatever was known before is stale."""
    model, optimizer = small()
    free = {"swapped": torch.zeros(8), "resized": torch.zeros(8), "viewed": torch.zeros(2, 3)}
    weight = model[0].weight
    moments = optimizer.state[weight]

    def nothing() -> None:
        pass

    def swap() -> None:
        free["swapped"].set_(torch.arange(8.0))
        model[1].bias.data = torch.full((4,), 3.0)
        moments["exp_avg"] = torch.full((4, 4), 5.0)

    def resize() -> None:
        free["resized"].resize_(20_000).copy_(torch.arange(20_000.0))
        model[2].weight.data = torch.full((7, 4), 2.0)

    def retype() -> None:
        model[0].to(torch.bfloat16)
        free["swapped"].data = torch.arange(3, dtype=torch.float64)

    def restride() -> None:
        weight.data = torch.arange(16, dtype=torch.float64).reshape(4, 4).t()
        free["viewed"].data = torch.arange(12.0).reshape(3, 4).t()[1:3]

    def replace() -> None:
        model[1] = torch.nn.Linear(2, 2)
        free["viewed"] = torch.ones(3)

    with lg.open(
        tmp_path, {"model": model, "optimizer": optimizer, "free": free}, overlap=overlap
    ) as run:
        for step, change in enumerate([nothing, swap, resize, retype, restride, replace], start=1):
            change()
            expected = {f"model/{n}": as_stored(t) for n, t in model.state_dict().items()}
            expected |= {f"free/{n}": as_stored(t) for n, t in free.items()}
            expected["moment"] = as_stored(moments["exp_avg"])
            run.save(step, block=not overlap).durable.result(60)
            found = stored(tmp_path, step)
            found["moment"] = found["optimizer/state.0.weight.exp_avg"]
            assert {name: found[name] for name in expected} == expected, change.__name__


def test_memory_that_is_swapped_under_the_copy_is_neither_freed_nor_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save holds the storage and not the tensor alone, which may get another one."""
    monkeypatch.setattr(lg.Run, "_guard", lambda self: None)
    model = torch.nn.Linear(3000, 2000, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = lg.open(tmp_path, {"model": model, "optimizer": optimizer})
    failed = 0
    for step in range(1, 12):
        expected = as_stored(model.weight)
        handle = run.save(step)
        model.weight.data = torch.full((2000, 3000), float(step))
        error = handle.durable.exception(60)
        if error is None:
            assert stored(tmp_path, step)["model/weight"] == expected
        else:
            failed += 1
            assert isinstance(error, lg.Invalid) and "model['weight'] was changed" in str(error)
    assert failed
    run.close()


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "LBFGS", "Odd"])
def test_the_tree_of_an_optimizer_is_what_the_encoder_makes_of_it(kind: str) -> None:
    """The short way for values that are tensors alone says the same as the long one."""
    model, optimizer = small()
    if kind == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.step()
    elif kind == "LBFGS":
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
        optimizer.step(lambda: model(torch.ones(4)).pow(2).sum().backward() or torch.tensor(1.0))
    elif kind == "Odd":
        first, second, third, fourth, *_ = model.parameters()
        optimizer.state[first]["$"] = torch.ones(2)
        optimizer.state[second]["count"] = 7
        optimizer.state[third][3] = torch.ones(1)
        optimizer.state[fourth]["none"] = None
    state = {"model": model, "optimizer": optimizer}
    adapter = _state.adapter_for("optimizer", _state.Look(state), _state.Durable(optimizer))
    snapshot = adapter.capture(_state.World(), deferred=False)
    names = {id(p): name for name, p in model.named_parameters()}
    per_parameter = {
        names[id(parameter)]: {
            key: {"tensor": f"state.{names[id(parameter)]}.{key}"}
            if isinstance(value, torch.Tensor)
            else {"value": value}
            for key, value in values.items()
        }
        for parameter, values in optimizer.state.items()
    }
    groups = [
        {**group, "params": [names[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    whole = _tree.encode({"groups": groups, "state": per_parameter, "other": {}}, "optimizer")
    assert json.dumps(snapshot.tree) == json.dumps(whole.tree)
    assert set(whole.arrays) <= {name for wholes in snapshot.wholes for name in wholes.names}


def test_strict_saves_copy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native copy is made within the call: another one before it would only take memory and time."""
    model, optimizer = small()
    free = {"torch": torch.ones(100_000), "numpy": np.ones(100_000), "few": np.arange(3)}
    with lg.open(
        tmp_path, {"model": model, "optimizer": optimizer, "free": free}, overlap=False
    ) as run:

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("copied in Python")

        before = as_stored(free["torch"])
        with monkeypatch.context() as patched:
            for method in ("clone", "contiguous", "to"):
                patched.setattr(torch.Tensor, method, refuse)
            handle = run.save(1)
        free["torch"].zero_()
        free["numpy"][:] = 0
        handle.durable.result(60)
        assert stored(tmp_path, 1)["free/torch"] == before
        run.restore(at=1)
    assert free["numpy"].sum() == 100_000 and free["few"].tolist() == [0, 1, 2]


class Last:
    """Tells when the state has been looked at: it is the last component."""

    def __init__(self) -> None:
        self.looked = threading.Event()

    def state_dict(self) -> dict[str, Any]:
        self.looked.set()
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_small_arrays_are_those_of_the_look_at_the_state(tmp_path: Path) -> None:
    """A strict save waits in its call for the one before it, and other threads of Python go on meanwhile: a loader's
    position and count must be of one moment even if they are changed in place."""
    counter = {"array": np.zeros(100, np.int64), "bulk": np.ones(20_000_000)}
    last = Last()

    def change() -> None:
        last.looked.wait(60)
        counter["array"].fill(1)

    with lg.open(tmp_path, {"counter": counter, "last": last}, rng=False, overlap=False) as run:
        first = run.save(1)
        last.looked.clear()
        thread = threading.Thread(target=change)
        thread.start()
        second = run.save(2)
        thread.join()
        first.durable.result(60)
        second.durable.result(60)
    assert counter["array"].sum() == 100
    assert not any(stored(tmp_path, 2)["counter/array"][2])


def test_the_cost_of_a_call_grows_as_the_number_of_tensors(tmp_path: Path) -> None:
    """Processor time of the calling thread, the least of several: what else the machine does counts little."""

    def cost(layers: int) -> float:
        model, optimizer = small(layers)
        times = []
        with lg.open(tmp_path, {"model": model, "optimizer": optimizer}, run=str(layers)) as run:
            for step in range(6):
                gc.collect()
                begin = time.thread_time()
                handle = run.save(step)
                times.append(time.thread_time() - begin)
                handle.durable.result(60)
        return min(times) / (8 * layers)

    few, many = cost(125), cost(1250)
    assert many < 20e-6
    assert many < 3 * few
