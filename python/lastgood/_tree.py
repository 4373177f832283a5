"""Nested values as JSON and tensors, and back, without pickle.

A value is dicts, lists, tuples, named tuples, sets, strings, bytes, numbers, None, and arrays. Arrays become tensors
of their own; everything else becomes one JSON text, in which what JSON cannot say is an object with the key ``$``.
"""

from __future__ import annotations

import base64
import collections
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lastgood import _memory
from lastgood._lastgood import Incompatible, Invalid

Json = Any

#: What JSON says as it is; all of a list or a dict is asked at once, since those of large states are long.
_PLAIN = frozenset({str, int, bool, type(None)})
_STRINGS = frozenset({str})

#: The most levels of nesting: far more than states have, far less than Python's stack.
DEPTH_MAX = 200


@dataclass
class Encoded:
    """A value in two halves: ``tree`` is JSON, ``arrays`` are the arrays by the name under which it has them."""

    tree: Json = None
    arrays: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Registered:
    name: str
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_registered: dict[str, _Registered] = {}


def register(
    type: type,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    *,
    name: str | None = None,
) -> None:
    """Teaches lastgood to store objects of ``type``: ``encode`` gives values that it can store, ``decode`` makes the
    object again from them. ``name`` is what the type is called in checkpoints; default its qualified name.

    Example:
        >>> import lastgood as lg
        >>> from fractions import Fraction
        >>> lg.register(Fraction, lambda f: [f.numerator, f.denominator], lambda v: Fraction(*v))

    Raises:
        Invalid: if another type has the name.
    """
    name = name or f"{type.__module__}.{type.__qualname__}"
    known = _registered.get(name)
    if known is not None and known.type is not type:
        raise Invalid(f"the name {name!r} is registered for {known.type}; give another name")
    _registered[name] = _Registered(name, type, encode, decode)


def encode(value: Any, where: str) -> Encoded:
    """Splits ``value``; ``where`` is how errors name it.

    Raises:
        Invalid: naming the path of what cannot be stored without pickle, and the remedy.
    """
    encoded = Encoded()
    encoded.tree = Encoder(encoded.arrays, where).node(value, (), 0)
    return encoded


class Encoder:
    def __init__(self, arrays: dict[str, Any], where: str) -> None:
        self.arrays = arrays
        self.where = where

    def path(self, keys: tuple[Any, ...]) -> str:
        return self.where + "".join(f"[{key!r}]" for key in keys)

    def node(self, value: Any, keys: tuple[Any, ...], depth: int) -> Json:
        if depth > DEPTH_MAX:
            raise Invalid(
                f"{self.path(keys[:3])}…: nested more than {DEPTH_MAX} deep, or in itself"
            )
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is float:
            return _float(value)
        if kind in (dict, collections.OrderedDict, collections.Counter):
            return self.mapping(value, keys, depth)
        if kind is list:
            if _PLAIN.issuperset(map(type, value)):
                return list(value)
            return [self.node(v, (*keys, i), depth + 1) for i, v in enumerate(value)]
        return self.other(value, keys, depth)

    def other(self, value: Any, keys: tuple[Any, ...], depth: int) -> Json:
        kind = type(value)
        if _memory.is_torch(value):
            return self.array(value, keys, "torch")
        if _memory.is_jax(value):
            return self.array(value, keys, "jax")
        if _memory.is_numpy(value):
            node = self.array(value, keys, "numpy")
            # A scalar of numpy is not an array without dimensions.
            return {**node, "scalar": True} if _is_scalar(value) else node
        if kind is bytes or kind is bytearray:
            return {"$": kind.__name__, "v": base64.b64encode(value).decode()}
        if kind is complex:
            return {"$": "complex", "v": [_float(value.real), _float(value.imag)]}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = {f: self.node(getattr(value, f), (*keys, f), depth + 1) for f in value._fields}
            return {"$": "namedtuple", "n": kind.__name__, "v": fields}
        if kind is tuple or kind.__name__ == "Size":
            items = [self.node(v, (*keys, i), depth + 1) for i, v in enumerate(value)]
            return {"$": "tuple" if kind is tuple else "torch.Size", "v": items}
        if kind in (set, frozenset):
            items = [
                self.node(v, (*keys, i), depth + 1) for i, v in enumerate(sorted(value, key=repr))
            ]
            return {"$": kind.__name__, "v": items}
        if kind is collections.deque:
            items = [self.node(v, (*keys, i), depth + 1) for i, v in enumerate(value)]
            return {"$": "deque", "v": items, "max": value.maxlen}
        return self.foreign(value, keys, depth)

    def foreign(self, value: Any, keys: tuple[Any, ...], depth: int) -> Json:
        kind = type(value)
        if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
            return {"$": f"torch.{kind.__name__}", "v": str(value).removeprefix("torch.")}
        if isinstance(value, dict) and kind.__name__ == "defaultdict":
            return self.mapping(value, keys, depth)
        for known in _registered.values():
            if kind is known.type:
                stored = self.node(known.encode(value), keys, depth + 1)
                return {"$": "registered", "n": known.name, "v": stored}
        raise Invalid(
            f"{self.path(keys)} is a {kind.__module__}.{kind.__qualname__}, which cannot be stored without pickle; "
            "give it a state_dict() and a load_state_dict(), or teach lastgood the type by lg.register"
        )

    def mapping(self, value: Any, keys: tuple[Any, ...], depth: int) -> Json:
        kind = type(value)
        if is_plain(value):
            return {k: self.node(v, (*keys, k), depth + 1) for k, v in value.items()}
        items = []
        for k, v in value.items():
            if type(k) not in (str, int, bool, float, tuple, type(None)):
                raise Invalid(
                    f"{self.path(keys)} has a key of {type(k).__name__}, {k!r}; "
                    "keys are strings, numbers, None or tuples of them"
                )
            items.append(
                [self.node(k, (*keys, "key"), depth + 1), self.node(v, (*keys, k), depth + 1)]
            )
        return {"$": kind.__name__, "v": items}

    def array(self, value: Any, keys: tuple[Any, ...], kind: str) -> Json:
        name = ".".join(map(str, keys)) or "value"
        while name in self.arrays:
            name += "'"
        self.arrays[name] = value
        if kind == "torch" and not value.is_complex():
            # There are many, and of no other is anything to be told.
            return {"$": kind, "n": name}
        return {"$": kind, "n": name, **_memory.told(value)}


def is_plain(value: Any) -> bool:
    """True for a dict that is an object of JSON: strings are its keys, and none of them has a meaning of ours."""
    return type(value) is dict and _STRINGS.issuperset(map(type, value)) and "$" not in value


def _is_scalar(value: Any) -> bool:
    import numpy

    return isinstance(value, numpy.generic)


def _float(value: float) -> Json:
    if value - value == 0.0:
        return value
    # JSON has no infinities, and a NaN may carry a payload.
    return {"$": "float", "v": struct.pack("<d", value).hex()}


def arrays_of(tree: Json) -> dict[str, str]:
    """The arrays that ``tree`` names, and which kind each is (``torch``, ``numpy``, ``jax``)."""
    found: dict[str, str] = {}
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if node.get("$") in ("torch", "numpy", "jax") and "n" in node:
                found[node["n"]] = node["$"]
            else:
                stack.extend(v for k, v in node.items() if k != "$")
    return found


def frameworks_of(tree: Json) -> set[str]:
    """The frameworks whose values ``tree`` names (``torch``, ``numpy``, ``jax``), arrays and others."""
    found = set()
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            found.add(str(node.get("$")).partition(".")[0])
            stack.extend(node.values())
    return found & {"torch", "numpy", "jax"}


def decode(tree: Json, arrays: dict[str, Any], where: str, template: Any = None) -> Any:
    """The value that was encoded. ``template`` is a value of the same structure, which gives named tuples their
    classes.

    Raises:
        Incompatible: if it holds what this version or this process does not know.
    """
    return _Decoder(arrays, where).node(tree, template)


class _Decoder:
    def __init__(self, arrays: dict[str, Any], where: str) -> None:
        self.arrays = arrays
        self.where = where

    def node(self, tree: Json, like: Any) -> Any:
        if isinstance(tree, list):
            return [self.node(v, _item(like, i)) for i, v in enumerate(tree)]
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return {k: self.node(v, _item(like, k)) for k, v in tree.items()}
        return self.tagged(tree["$"], tree, like)

    def tagged(self, kind: str, tree: Json, like: Any) -> Any:
        if kind in ("torch", "numpy", "jax"):
            array = self.arrays[tree["n"]]
            if kind == "jax" and not _memory.is_jax(array):
                from lastgood import jax as lg_jax

                return lg_jax.from_numpy(array, tree)
            if kind == "numpy" and "dtype" in tree and array.dtype.name != tree["dtype"]:
                array = array.view(_memory.numpy_dtype_called(tree["dtype"]))
            if kind == "torch" and tree.get("dtype") == "complex128" and not array.is_complex():
                import torch

                array = torch.view_as_complex(array)
            return array[()] if tree.get("scalar") else array
        value = tree.get("v")
        if kind == "float":
            return struct.unpack("<d", bytes.fromhex(value))[0]
        if kind == "complex":
            return complex(self.node(value[0], None), self.node(value[1], None))
        if kind in ("bytes", "bytearray"):
            raw = base64.b64decode(value)
            return raw if kind == "bytes" else bytearray(raw)
        if kind == "namedtuple":
            return self.namedtuple(tree, like)
        if kind in ("dict", "OrderedDict", "Counter", "defaultdict"):
            return self.mapping(kind, value, like)
        if kind.startswith("torch."):
            return self.torch(kind, value)
        if kind == "registered":
            known = _registered.get(tree["n"])
            if known is None:
                raise Incompatible(
                    f"{self.where} holds a {tree['n']}, which lg.register has not been told of; "
                    "register it as when it was saved"
                )
            return known.decode(self.node(value, None))
        if kind == "jax.tree":
            raise Incompatible(
                f"{self.where} was a pytree of jax arrays when it was saved, and a {type(like).__name__} is in its "
                "place: open the run with the tree that was saved"
            )
        return self.sequence(kind, tree, like)

    def sequence(self, kind: str, tree: Json, like: Any) -> Any:
        items = [self.node(v, _item(like, i)) for i, v in enumerate(tree["v"])]
        if kind == "tuple":
            return tuple(items)
        if kind == "set":
            return set(items)
        if kind == "frozenset":
            return frozenset(items)
        if kind == "deque":
            return collections.deque(items, tree["max"])
        raise Incompatible(f"{self.where} holds a value of kind {kind!r}; use a newer lastgood")

    def mapping(self, kind: str, items: Json, like: Any) -> Any:
        decoded = {}
        for key, value in items:
            key = self.node(key, None)
            decoded[key] = self.node(value, _item(like, key))
        if kind == "OrderedDict":
            return collections.OrderedDict(decoded)
        if kind == "Counter":
            return collections.Counter(decoded)
        if kind == "defaultdict" and isinstance(like, collections.defaultdict):
            return collections.defaultdict(like.default_factory, decoded)
        return decoded

    def namedtuple(self, tree: Json, like: Any) -> Any:
        fields = {k: self.node(v, getattr(like, k, None)) for k, v in tree["v"].items()}
        if hasattr(like, "_fields") and set(like._fields) == set(fields):
            return type(like)(**fields)
        raise Incompatible(
            f"{self.where} holds a named tuple {tree['n']}({', '.join(fields)}); "
            f"there is a {type(like).__name__} in its place: open the run with the same structure"
        )

    def torch(self, kind: str, value: Json) -> Any:
        torch = _memory.need("torch")
        if kind == "torch.Size":
            return torch.Size(value)
        if kind == "torch.device":
            return torch.device(value)
        if kind == "torch.dtype" and isinstance(getattr(torch, value, None), torch.dtype):
            return getattr(torch, value)
        raise Incompatible(f"{self.where} holds a {kind} {value!r}, which this torch does not have")


def _item(like: Any, key: Any) -> Any:
    if isinstance(like, (list, tuple)) and isinstance(key, int):
        return like[key] if key < len(like) else None
    return like.get(key) if isinstance(like, dict) else None
