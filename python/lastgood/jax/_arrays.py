"""jax arrays as memory and back: what they are stored as, which shards this process stores, and where they are put.

The only file that knows of shardings. An array is stored as the bits that it has, under its global shape; how it was
cut over devices is not stored, so that it can be restored onto any other number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy

from lastgood import _memory
from lastgood._lastgood import Incompatible, Invalid
from lastgood._memory import NUMPY_DTYPES
from lastgood._state import Mismatch, Saved, Shard, World, role_of, whole

#: Elements of less than a byte lie in a byte each, and are stored so; these 8-bit floats have no stored name either.
BYTES: tuple[str, ...] = (
    "int2",
    "uint2",
    "int4",
    "uint4",
    "float4_e2m1fn",
    "float6_e2m3fn",
    "float6_e3m2fn",
)
BYTES += ("float8_e3m4", "float8_e4m3b11fnuz")

#: What a tree tells of an array beyond its name: dtype, and ``weak`` or ``key``.
Node = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """What elements of a dtype are stored as: a stored dtype, and dimensions that are added at the end."""

    dtype: str
    tail: tuple[int, ...] = ()


def is_key(array: Any) -> bool:
    """True for an array, or the shape of one, of typed random keys."""
    return bool(jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key))


def form_of(dtype: Any, path: str) -> Form:
    """What elements of ``dtype``, a plain one, are stored as.

    Raises:
        Invalid: if there is nothing.
    """
    if dtype.name in NUMPY_DTYPES:
        return Form(NUMPY_DTYPES[dtype.name])
    if dtype.name == "complex128":
        return Form("F64", (2,))
    if dtype.name in BYTES:
        return Form("U8")
    raise Invalid(f"{path}: arrays of {dtype} cannot be stored; store a view of another dtype")


def node_of(array: Any) -> Node:
    """What a tree tells of ``array``, so that it can be made again from stored memory."""
    if is_key(array):
        return {"key": str(jax.random.key_impl(array)), "dtype": "uint32"}
    weak = {"weak": True} if getattr(array, "weak_type", False) else {}
    return {"dtype": numpy.dtype(array.dtype).name, **weak}


def stored(array: Any, path: str) -> tuple[str, tuple[int, ...]]:
    """The stored dtype and shape of an array, or of a ``ShapeDtypeStruct``.

    Raises:
        Invalid: if it cannot be stored.
    """
    if is_key(array):
        abstract: Any = jax.ShapeDtypeStruct
        data = jax.eval_shape(jax.random.key_data, abstract(array.shape, array.dtype))
        return "U32", tuple(data.shape)
    form = form_of(numpy.dtype(array.dtype), path)
    return form.dtype, tuple(array.shape) + form.tail


def _plain(array: Any) -> Any:
    return jax.random.key_data(array) if is_key(array) else array


def _stored_numpy(array: Any, form: Form, copy: bool) -> Any:
    """A numpy array or the data of one device as what is stored, row-major. Without ``copy`` it may be the memory of
    the device itself."""
    host = numpy.asarray(array)
    plain = host if host.flags.c_contiguous and not copy else host.copy(order="C")
    return _as_stored(plain, form)


def _as_stored(plain: Any, form: Form) -> Any:
    if form.tail:
        return plain.view(numpy.float64).reshape(*plain.shape, 2)
    return plain.view(numpy.uint8) if plain.dtype.name in BYTES else plain


def shards_of(
    name: str, array: Any, path: str, role: str, *, copy: bool = True, parts: bool = False
) -> list[Shard]:
    """The shards of ``array`` that this process stores: of an array over several processes those of replica 0 that lie
    here; of one that is all here the whole, or with ``parts`` each part as a shard. With ``copy`` they are memory of
    their own, since the array may be donated to the next step.

    Raises:
        Invalid: if it was donated or deleted, or its dtype cannot be stored.
    """
    if array.is_deleted():
        raise Invalid(f"{path} was deleted or donated to a computation; give what came out of it")
    data = _plain(array)
    form = form_of(numpy.dtype(data.dtype), path)
    shape = tuple(data.shape) + form.tail
    here = [shard for shard in data.addressable_shards if shard.replica_id == 0]
    if data.is_fully_addressable and (not parts or len(here) == 1 or not data.size):
        if len(here) == 1:
            host = _stored_numpy(here[0].data, form, copy)
        else:
            gathered = numpy.empty(data.shape, data.dtype)
            for shard in here:
                gathered[shard.index] = numpy.asarray(shard.data)
            host = _as_stored(gathered, form)
        return [whole(name, form.dtype, shape, _memory.of_numpy(host), role)]
    shards = []
    for shard in here:
        host = _stored_numpy(shard.data, form, copy)
        offsets = tuple(part.start or 0 for part in shard.index) + (0,) * len(form.tail)
        memory = _memory.of_numpy(host)
        shards.append(Shard(name, form.dtype, shape, offsets, tuple(host.shape), memory, "shard"))
    return shards


@dataclass
class Staged:
    """Memory for an array, and what makes the array once it is filled."""

    targets: list[Shard]
    make: Callable[[], Any]


def placement(like: Any) -> Any:
    """The sharding that an array is restored onto: that of ``like``, unless it lies wherever jax put it."""
    if isinstance(like, jax.Array):
        return _plain(like).sharding if getattr(like, "committed", True) else None
    return getattr(like, "sharding", None)


def stage(saved: Saved, name: str, node: Node, world: World, like: Any = None) -> Staged:
    """Memory for the parts of tensor ``name`` that this process needs, to become an array with the placement of
    ``like``: an array, a ``ShapeDtypeStruct``, or None for the default device.

    Raises:
        Mismatch: if this process cannot hold the dtype.
    """
    tensor = saved.tensors[name]
    dtype = _memory.numpy_dtype_called(node["dtype"])
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        at = f"{saved.component}/{name} is {dtype}"
        raise Mismatch([f"{at}, which jax holds only with JAX_ENABLE_X64=1 (jax_enable_x64)"])
    form = form_of(dtype, name)
    shape = tensor.shape[: len(tensor.shape) - len(form.tail)]
    sharding = placement(like)
    abstract_key = "key" in node and not isinstance(like, jax.Array)
    role = role_of(saved, name, world)
    if sharding is None or role == "own" or abstract_key:
        host = numpy.empty(shape, dtype)
        memory = _memory.of_numpy(host)
        targets = [whole(name, form.dtype, tensor.shape, memory, role)]
        return Staged(targets, lambda: finish(_put_whole(host, sharding, node), node))
    where = sharding.addressable_devices_indices_map(shape)
    hosts: dict[Any, Any] = {}
    targets = []
    for index in where.values():
        offsets, sizes = _box(index, shape)
        if (offsets, sizes) in hosts:
            continue
        host = hosts[offsets, sizes] = numpy.empty(sizes, dtype)
        offsets, sizes = offsets + (0,) * len(form.tail), sizes + form.tail
        memory = _memory.of_numpy(host)
        targets.append(Shard(name, form.dtype, tensor.shape, offsets, sizes, memory, role))

    def make() -> Any:
        kind = sharding.memory_kind
        parts = [
            jax.device_put(
                hosts[_box(index, shape)],
                jax.sharding.SingleDeviceSharding(device, memory_kind=kind),
            )
            for device, index in where.items()
        ]
        return finish(jax.make_array_from_single_device_arrays(shape, sharding, parts), node)

    return Staged(targets, make)


def _box(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds)


def _put_whole(host: Any, sharding: Any, node: Node) -> Any:
    if sharding is None:
        return jax.device_put(host)
    if "key" in node:
        key = jax.random.wrap_key_data(jax.device_put(host), impl=node["key"])
        return jax.device_put(key, sharding)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def finish(array: Any, node: Node) -> Any:
    """``array`` as a key or weakly typed, if ``node`` says so."""
    if "key" in node:
        return array if is_key(array) else jax.random.wrap_key_data(array, impl=node["key"])
    return _weak(array) if node.get("weak") else array


def _weak(array: Any) -> Any:
    """``array`` as one whose dtype gives way to that of others, as those made of Python's numbers do. jax has no public
    name for it."""
    try:
        from jax._src.lax.lax import _convert_element_type as convert

        found = convert(array, weak_type=True)
    except (ImportError, TypeError):
        return array
    return found if found.weak_type and found.dtype == array.dtype else array


def from_numpy(host: Any, node: Node) -> Any:
    """The jax array that was stored as ``host``, on the default device.

    Raises:
        Incompatible: if this process cannot hold the dtype.
    """
    dtype = _memory.numpy_dtype_called(node.get("dtype", host.dtype.name))
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise Incompatible(
            f"a jax array of {dtype} is in the checkpoint; set JAX_ENABLE_X64=1 (jax_enable_x64)"
        )
    if dtype.name == "complex128":
        host = host.view(dtype).reshape(host.shape[:-1])
    elif host.dtype != dtype:
        host = host.view(dtype)
    return finish(jax.device_put(host), node)
