"""Flat states: tensors by name, their bytes, and what of them changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

Flat = dict[str, torch.Tensor]
#: The shape and the dtype of each tensor.
Layout = dict[str, tuple[list[int], str]]

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Differs(Exception):
    """What was loaded is not what was saved."""


def size_of(flat: Mapping[str, torch.Tensor]) -> int:
    """The bytes of all tensors."""
    return sum(tensor.nbytes for tensor in flat.values())


def raw(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor, without a copy if it is contiguous."""
    tensor = tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)


def layout_of(flat: Mapping[str, torch.Tensor]) -> Layout:
    """What `allocate` makes the same tensors from."""
    return {
        name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in flat.items()
    }


def allocate(layout: Layout) -> Flat:
    """Memory for a state, which nothing was written to yet."""
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype))
        for name, (shape, dtype) in layout.items()
    }


def digest(flat: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The SHA-256 of each tensor's bytes, with its shape and dtype."""

    def one(tensor: torch.Tensor) -> str:
        found = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(raw(tensor))
        return found.hexdigest()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(flat, pool.map(one, flat.values()), strict=True))


def compare(expected: Mapping[str, str], flat: Mapping[str, torch.Tensor], way: str) -> None:
    """Raises `Differs` if a tensor is missing, left over or has other bytes."""
    found = digest(flat)
    wrong = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if wrong:
        raise Differs(f"{way} gave back other bytes in {len(wrong)} tensors, first {wrong[0]}")


def clone(flat: Mapping[str, torch.Tensor]) -> Flat:
    """A copy that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in flat.items()}


def changed_bytes(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> int:
    """The bytes of the elements that are not the same to the bit."""
    changed = 0
    for name, tensor in after.items():
        word = _WORDS[tensor.element_size()]
        old, new = before[name].detach().reshape(-1), tensor.detach().reshape(-1)
        differs = torch.ne(old.view(word), new.contiguous().view(word))
        changed += int(differs.sum()) * tensor.element_size()
    return changed


def clear(flat: Mapping[str, torch.Tensor]) -> None:
    """Writes zeros over everything, which also makes memory that was never touched be there."""
    with torch.no_grad():
        for tensor in flat.values():
            tensor.zero_()


def touch(flat: Mapping[str, torch.Tensor]) -> int:
    """Reads a byte of each page, so that what is mapped lazily is there."""
    return sum(int(raw(tensor)[::4096].sum()) for tensor in flat.values())


def nested(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The same tensors by component, as state dicts have them."""
    out: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        component, _, rest = name.partition(".")
        out.setdefault(component, {})[rest or component] = tensor
    return out
