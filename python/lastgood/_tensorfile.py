"""The layout of safetensors files: which bytes are which tensor, without loading any.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

#: What follows a file's path in the names of its header and of a file that is stored as it is.
HEADER = ":header"
WHOLE = ""

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


@dataclass(frozen=True)
class Piece:
    """Bytes ``begin`` to ``end`` of a file, as a tensor with this dtype and shape; ``name`` follows the path."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header(length: int) -> Piece:
    """The first ``length`` bytes: the header with its length in front."""
    return Piece(HEADER, "U8", (length,), 0, length)


def opaque(length: int) -> list[Piece]:
    """A file of ``length`` bytes of which nothing is known."""
    return [Piece(WHOLE, "U8", (length,), 0, length)]


def pieces(data: Any) -> list[Piece] | None:
    """The pieces of a safetensors file, which cover each of its bytes once; None if it is none, is not whole, or has
    tensors of another dtype: such a file is stored as it is."""
    size = len(data)
    if size < 8:
        return None
    begin = 8 + int.from_bytes(bytes(data[:8]), "little")
    if begin > size:
        return None
    try:
        tensors = json.loads(bytes(data[8:begin]))
        tensors.pop("__metadata__", None)
        found = [_piece(name, tensor, begin) for name, tensor in tensors.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    found.sort(key=lambda piece: (piece.begin, piece.end))
    position = begin
    for piece in found:
        if (
            piece.begin != position
            or piece.end - piece.begin != math.prod(piece.shape) * _BYTES[piece.dtype]
        ):
            return None
        position = piece.end
    return [header(begin), *found] if position == size else None


def _piece(name: str, tensor: Any, base: int) -> Piece:
    dtype, shape = tensor["dtype"], tuple(tensor["shape"])
    begin, end = tensor["data_offsets"]
    if dtype not in _BYTES or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name}: {dtype} {shape}")
    return Piece(f"/{name}", dtype, shape, base + begin, base + end)
