"""What a checkpoint of torch.distributed.checkpoint is in lastgood, and the way there and back.

Component ``dcp`` holds every tensor under its fully qualified name, with the geometry that DCP's plan gives it, and
for each rank a blob ``table@rankN``: JSON with the rank's part of the plan and the values that are no tensors. A save
without collectives has no common plan: each rank stores its chunks as tensors of its own, ``rankN/FQN#i``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType

from lastgood import _lastgood, _memory, _tree
from lastgood._lastgood import Incompatible, Invalid
from lastgood._state import World

COMPONENT = "dcp"
TABLE = "table"
VERSION = 1


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor as DCP knows it, and the stored tensor that holds it, which begins at ``origin``."""

    stored: str
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass
class Table:
    """Everything that the tables of the ranks say."""

    metadata: Metadata
    chunks: dict[tuple[str, tuple[int, ...]], Chunk] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def is_per_rank(checkpoint: Any) -> bool:
    """True for a checkpoint that was saved without collectives."""
    return bool(checkpoint.metadata().get("dcp.collectives") == "no")


def declare(
    capture: Any, plan: SavePlan, planner: SavePlanner, world: World, *, alone: bool
) -> None:
    """Names everything of ``plan`` in ``capture``; ``alone`` for a rank without a common plan.

    Raises:
        Invalid: naming the FQN of what cannot be stored without pickle.
    """
    component = capture.component(COMPONENT, "torch.distributed.checkpoint", "durable")
    rows: list[Any] = []
    values: dict[str, Any] = {}
    for number, item in enumerate(plan.items):
        if item.type == WriteItemType.BYTE_IO:
            arrays = values.setdefault(item.index.fqn, _value(item, planner))
            for name, array in arrays.pop("arrays").items():
                _declare_array(
                    capture, component, f"{item.index.fqn}/{name}@rank{world.rank}", array
                )
        else:
            prefix = f"rank{world.rank}/" if alone else ""
            suffix = f"#{number}" if alone else ""
            name = f"{prefix}{item.index.fqn}{suffix}"
            rows.append(_declare_tensor(capture, component, name, item, planner, alone))
    table = {
        "version": VERSION,
        "tensors": rows,
        "values": values,
        "planner": _tree.encode(plan.planner_data, "planner_data").tree,
    }
    text = json.dumps(table, allow_nan=False, separators=(",", ":")).encode()
    capture.blob(component, TABLE, text, False)


def _declare_tensor(
    capture: Any, component: int, name: str, item: WriteItem, planner: SavePlanner, alone: bool
) -> list[Any]:
    fqn, data = item.index.fqn, item.tensor_data
    if data is None:
        raise Invalid(f"{fqn}: the planner gives no geometry; use a planner that fills tensor_data")
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor):
        raise Invalid(f"{fqn}: the planner gives a {type(tensor).__name__} for a tensor")
    plain = _memory.plain_torch(tensor, fqn, copy=False)
    size, offsets = tuple(data.size), tuple(data.chunk.offsets)
    sizes = tuple(data.chunk.sizes)
    if tuple(plain.shape) != sizes:
        raise Invalid(f"{fqn}: the plan says {list(sizes)}, the tensor is {list(plain.shape)}")
    row = [fqn, _dtype_text(plain.dtype), data.properties.requires_grad, size, offsets, sizes, name]
    shape, at, part = (sizes, (0,) * len(sizes), sizes) if alone else (size, offsets, sizes)
    # What has no element is in the table alone; a tensor without any is stored, so that it is not missed.
    if 0 not in sizes or 0 in size:
        _declare_part(capture, component, name, plain, fqn, (shape, at, part))
    return row


Box = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _declare_part(
    capture: Any, component: int, name: str, plain: torch.Tensor, path: str, box: Box
) -> None:
    shape, offsets, sizes = box
    if plain.dtype == torch.complex128:
        # There is no stored name for it: it is two float64.
        plain = torch.view_as_real(plain)
        shape, offsets, sizes = (*shape, 2), (*offsets, 0), (*sizes, 2)
    memory = _memory.of_torch(plain)
    capture.tensor(
        component,
        name,
        _memory.torch_dtype_name(plain.dtype, path),
        shape,
        offsets,
        sizes,
        memory.address,
        memory.bytes,
        memory.owner,
        "shard",
    )


def _declare_array(capture: Any, component: int, name: str, array: Any) -> None:
    if _memory.is_torch(array):
        plain = _memory.plain_torch(array, name, copy=False)
    else:
        plain = torch.from_numpy(_memory.plain_numpy(array, name, copy=True))
    shape = tuple(plain.shape)
    _declare_part(capture, component, name, plain, name, (shape, (0,) * len(shape), shape))


def _value(item: WriteItem, planner: SavePlanner) -> dict[str, Any]:
    """A value that is no tensor. It is taken before the planner pickles it; what a planner of the user's own
    makes bytes of stays these bytes."""
    fqn = item.index.fqn
    if _is_stock(planner):
        value = planner.lookup_object(item.index)
        if isinstance(value, io.BytesIO):
            return _raw(value.getvalue(), "bytesio")
        encoded = _tree.encode(value, fqn)
        kinds = _tree.arrays_of(encoded.tree)
        for name, array in encoded.arrays.items():
            if kinds.get(name) == "jax" or not _storable(array):
                raise Invalid(
                    f"{fqn}: the array {name} in it cannot be stored in a value; "
                    "convert it, or give it a key of its own in the state dict"
                )
        return {"tree": encoded.tree, "arrays": encoded.arrays}
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        raise Invalid(f"{fqn}: the planner gives a {type(data).__name__} for bytes")
    raw = data.getvalue()
    if raw[:4] == b"PK\x03\x04" or raw[:1] == b"\x80":
        raise Invalid(
            f"{fqn}: {type(planner).__name__} pickles it, and nothing is pickled here; leave transform_object and "
            "resolve_data of DefaultSavePlanner as they are, or give bytes that are no pickle"
        )
    return _raw(raw, "bytes")


def _raw(raw: bytes, kind: str) -> dict[str, Any]:
    data = (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if raw
        else torch.empty(0, dtype=torch.uint8)
    )
    return {"raw": kind, "arrays": {"raw": data}}


def _storable(array: Any) -> bool:
    name = str(array.dtype).removeprefix("torch.")
    return (_memory.is_torch(array) or _memory.is_numpy(array)) and name in _memory.TORCH_DTYPES


def _is_stock(planner: SavePlanner) -> bool:
    return isinstance(planner, DefaultSavePlanner) and (
        type(planner).transform_object is DefaultSavePlanner.transform_object
        and type(planner).resolve_data is DefaultSavePlanner.resolve_data
    )


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read(native: Any, checkpoint: Any, rank: int | None) -> Table:
    """The tables of all ranks, or of one.

    Raises:
        NotFound: if the checkpoint is none of DCP's.
        Corrupt, Unavailable: if it cannot be read.
        Incompatible: if it was written by another version.
    """
    ranks = range(checkpoint.world_size) if rank is None else [rank]
    targets = _lastgood.Targets()
    numbers = [targets.blob(COMPONENT, f"{TABLE}@rank{r}") for r in ranks]
    native.read(checkpoint, targets)
    table = Table(Metadata({}, planner_data={}, storage_data={}, storage_meta=StorageMeta()))
    for number, r in zip(numbers, ranks, strict=True):
        try:
            _merge(table, json.loads(targets.take(number)), r, alone=rank is not None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Incompatible(
                f"{COMPONENT}/{TABLE}@rank{r} is no table of this version: {error!r}; use a newer lastgood"
            ) from None
    _check_arrays(native, checkpoint, table)
    return table


def _merge(table: Table, stored: Any, rank: int, *, alone: bool) -> None:
    if stored["version"] != VERSION:
        raise ValueError(f"version {stored['version']}")
    metadata = table.metadata
    planner_data = _tree.decode(stored["planner"], {}, "planner_data")
    if isinstance(planner_data, dict):
        metadata.planner_data.update(planner_data)
    elif planner_data is not None:
        metadata.planner_data = planner_data
    for fqn, dtype, requires_grad, size, offsets, sizes, name in stored["tensors"]:
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        known: Any = metadata.state_dict_metadata.get(fqn)
        if known is None:
            properties = TensorProperties(dtype=getattr(torch, dtype), requires_grad=requires_grad)
            known = TensorStorageMetadata(properties, torch.Size(size), [])
            metadata.state_dict_metadata[fqn] = known
        known.chunks.append(chunk)
        origin = tuple(offsets) if alone else (0,) * len(offsets)
        shape = tuple(sizes) if alone else tuple(size)
        table.chunks[fqn, tuple(offsets)] = Chunk(name, origin, shape, tuple(sizes))
    for fqn, value in stored["values"].items():
        if fqn not in table.values:
            metadata.state_dict_metadata[fqn] = BytesStorageMetadata()
            table.values[fqn] = {**value, "rank": rank}


def _check_arrays(native: Any, checkpoint: Any, table: Table) -> None:
    """Reads the arrays of values, so that all of them are there when the first one is placed."""
    wanted: list[tuple[Any, str, str, str]] = []
    for fqn, value in table.values.items():
        kinds = {"raw": "torch"} if "raw" in value else _tree.arrays_of(value["tree"])
        value["loaded"] = {}
        for name, kind in kinds.items():
            wanted.append((value, name, f"{fqn}/{name}@rank{value['rank']}", kind))
    if not wanted:
        return
    there = {n: (d, tuple(s)) for c, n, d, s, _ in checkpoint.tensors() if c == COMPONENT}
    targets = _lastgood.Targets()
    for value, name, stored, kind in wanted:
        dtype, shape = there[stored]
        memory = torch.empty(shape, dtype=_memory.torch_dtype(dtype))
        add_target(targets, stored, memory, shape, (0,) * len(shape))
        value["loaded"][name] = memory.numpy() if kind == "numpy" else memory
    native.read(checkpoint, targets)


def value_of(table: Table, fqn: str, template: Any = None) -> tuple[str, Any]:
    """The value of ``fqn``, and whether it is a ``value``, a ``bytesio``, or ``bytes`` of a planner's own."""
    value = table.values[fqn]
    if "raw" in value:
        return value["raw"], value["loaded"]["raw"].numpy().tobytes()
    return "value", _tree.decode(value["tree"], value["loaded"], fqn, template)


def add_target(
    targets: Any,
    stored: str,
    memory: torch.Tensor,
    shape: tuple[int, ...],
    offsets: tuple[int, ...],
) -> None:
    """Asks for the part at ``offsets`` of the stored tensor ``stored``, into the whole of ``memory``."""
    if memory.dtype == torch.complex128:
        memory = torch.view_as_real(memory)
        shape, offsets = (*shape, 2), (*offsets, 0)
    plain = _memory.of_torch(memory)
    name = _memory.torch_dtype_name(memory.dtype, stored)
    sizes = tuple(memory.shape)
    targets.tensor(
        COMPONENT, stored, name, shape, offsets, sizes, plain.address, plain.bytes, plain.owner
    )


def index_key(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    """How a table names the chunk of ``index``."""
    return index.fqn, tuple(index.offset or ())
