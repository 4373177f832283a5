"""Nested values go through JSON and come back exactly, or are refused by name."""

from __future__ import annotations

import collections
import json
import math
import random
import struct
from typing import Any

import lastgood as lg
import numpy as np
import pytest
from lastgood import _state, _tree


def through(value: Any, template: Any = None) -> Any:
    encoded = _tree.encode(value, "x")
    text = json.dumps(encoded.tree, allow_nan=False)
    arrays = {name: np.array(array) for name, array in encoded.arrays.items()}
    return _tree.decode(json.loads(text), arrays, "x", template)


Point = collections.namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**200, "", "ü\u202e\x00", 0.1, -0.0, 5e-324, 1e308, (), (1,), [], [[]], {}, {"": 1},
        {"$": "float"}, {"$": {"$": 1}}, {1: 2, None: 3, 1.5: 4, (1, "a"): 5}, {True: 1}, {"1": 1, 1: 2}, b"",
        b"\x00\xff",
        bytearray(b"ab"), 1 + 2j, complex(-0.0, 1), {1, 2}, frozenset({"a"}), collections.OrderedDict(b=1, a=2),
        collections.Counter({3: 2, "x": 1}), collections.deque([1, 2], maxlen=5), Point(1, [Point(2, 3)]),
    ],
)  # fmt: skip
def test_comes_back_exactly(value: Any) -> None:
    back = through(value, value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    "bits",
    [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000000, 0xFFF0000000000000, 1 << 63],
)
def test_every_float_keeps_its_bits(bits: int) -> None:
    value = struct.unpack("<d", struct.pack("<Q", bits))[0]
    assert struct.pack("<d", through([value])[0]) == struct.pack("<d", value)


def test_random_values_come_back() -> None:
    rng = random.Random(7)

    def value(depth: int) -> Any:
        kinds = 9 if depth < 5 else 6
        kind = rng.randrange(kinds)
        if kind == 0:
            return rng.getrandbits(rng.randrange(1, 300)) - 2**100
        if kind == 1:
            return struct.unpack("<d", rng.randbytes(8))[0]
        if kind == 2:
            return "".join(
                chr(rng.choice([65, 36, 0, 0x1F600, 0x202E])) for _ in range(rng.randrange(5))
            )
        if kind == 3:
            return rng.randbytes(rng.randrange(9))
        if kind in (4, 5):
            return rng.choice([None, True, False, 1.5])
        items = [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 6:
            return items
        if kind == 7:
            return tuple(items)
        return {rng.choice(["$", "v", "n", f"k{i}"]): item for i, item in enumerate(items)}

    for _ in range(2_000):
        made = value(0)
        back = through(made, made)
        assert repr(back) == repr(made)


def test_arrays_have_names_that_people_read() -> None:
    encoded = _tree.encode(
        {"layer": {"w": np.ones(2)}, "layer.w": np.zeros(2), "l": [np.ones(1)]}, "x"
    )
    assert sorted(encoded.arrays) == ["l.0", "layer.w", "layer.w'"]
    back = through({"s": np.float32(1.5), "a": np.array(1.5)})
    assert type(back["s"]) is np.float32 and type(back["a"]) is np.ndarray


class Custom:
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, Custom()]}, ["x['a'][1]", "Custom", "state_dict", "lg.register"]),
        ({"f": lambda: 1}, ["x['f']", "function", "without pickle"]),
        ({Custom: 1}, ["key", "x"]),
        ([math.pi, object], ["x[1]", "type"]),
    ],
)
def test_what_needs_pickle_is_refused_by_path(value: Any, words: list[str]) -> None:
    with pytest.raises(lg.Invalid) as caught:
        _tree.encode(value, "x")
    for word in words:
        assert word in str(caught.value)


def test_a_value_in_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(lg.Invalid, match="nested"):
        _tree.encode(loop, "x")


def test_hostile_arrays_are_refused() -> None:
    for array in [np.array([Custom()]), np.array(["text"]), np.array([(1, 2)], dtype="i4,i4")]:
        with pytest.raises(lg.Invalid, match=r"x\['a'\]"):
            from lastgood import _state

            _state.Snapshot().add_arrays({"a": array}, "x", "same", deferred=False)


def test_registered_types() -> None:
    class Temperature:
        def __init__(self, kelvin: float) -> None:
            self.kelvin = kelvin

    lg.register(
        Temperature, lambda t: {"k": t.kelvin}, lambda v: Temperature(v["k"]), name="temperature"
    )
    assert through([Temperature(3.5)])[0].kelvin == 3.5
    with pytest.raises(lg.Invalid, match="registered"):
        lg.register(Custom, lambda c: 1, lambda v: Custom(), name="temperature")
    tree = _tree.encode(Temperature(1.0), "x").tree
    with pytest.raises(lg.Incompatible, match="not been told"):
        _tree.decode({**tree, "n": "unheard.of"}, {}, "x")


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "no such kind", "v": []},
        {"$": "torch.dtype", "v": "os"},
        {"$": "namedtuple", "n": "P", "v": {}},
    ],
)
def test_trees_of_another_version_are_refused(tree: Any) -> None:
    with pytest.raises(lg.Incompatible):
        _tree.decode(tree, {}, "x")


@pytest.mark.parametrize(
    "array", [np.ma.array([1.0, 2.0], mask=[True, False]), np.ones(2).view(np.recarray)]
)
def test_arrays_that_hold_more_than_their_elements_are_refused(array: Any) -> None:
    with pytest.raises(lg.Invalid, match=r"x\['a'\] is a numpy\..*only the elements"):
        _state.Snapshot().add_arrays({"a": array}, "x", "same", False)
