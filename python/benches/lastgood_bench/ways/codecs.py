"""Codecs for weights, which leave storing to their user: here, one file a save, written whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lastgood_bench.live import State
from lastgood_bench.tensors import Flat, Layout
from lastgood_bench.ways.base import Way


class ZipNn(Way):
    """ZipNN on each tensor, with its default settings (`input_format="torch"`) and two threads. It syncs nothing. It
    reorders the bytes of the memory that it is given, so it gets a copy."""

    name = "zipnn"
    packages = ("zipnn",)
    modules = ("zipnn",)

    #: Below this it makes things larger, or fails.
    SMALLEST = 4096

    def _codec(self) -> Any:
        from zipnn import ZipNN

        return ZipNN(input_format="torch", threads=2)

    def save(self, number: int) -> None:
        codec = self._codec()
        out: dict[str, Any] = {}
        for name, tensor in self.flat().items():
            floats = tensor.is_floating_point() and tensor.nbytes >= self.SMALLEST
            out[name] = codec.compress(tensor.detach().clone()) if floats else tensor
        with self.place(number).open("wb") as file:
            pickle.dump(out, file, protocol=5)

    def load(self, number: int, layout: Layout) -> Flat:
        codec = self._codec()
        # This process wrote it.
        found = pickle.loads(self.place(number).read_bytes())
        return {
            name: value if isinstance(value, torch.Tensor) else codec.decompress(value)
            for name, value in found.items()
        }


class Z4aiDelta(Way):
    """z4ai's delta of a whole checkpoint against the one before (`z4ai.model_delta`), as it documents for sequences of
    checkpoints; the first is kept as it is. The base stays in memory; with two threads. It syncs nothing."""

    name = "z4ai delta"
    packages = ("z4ai",)
    modules = ("z4ai.model_delta", "safetensors.torch")
    differences = True
    #: It takes a minute for a gigabyte.
    in_w1, in_w4 = False, False

    def __init__(self, folder: Path, state: State | None) -> None:
        super().__init__(folder, state)
        self._base: bytes | None = None

    def save(self, number: int) -> None:
        from safetensors.torch import save
        from z4ai import model_delta

        whole = save(self.flat())
        base, stored = self._base, whole
        if base is not None:
            stored = model_delta.compress(whole, base, threads=2)
        self.place(number).write_bytes(stored)
        self._base = whole

    def load(self, number: int, layout: Layout) -> Flat:
        from safetensors.torch import load
        from z4ai import model_delta

        files = sorted(file for file in self.folder.iterdir() if file.name <= f"{number:06}")
        whole = files[0].read_bytes()
        for file in files[1:]:
            whole = bytes(model_delta.decompress(file.read_bytes(), whole))
        return load(whole)

    def forget(self, number: int) -> None:
        """Later saves are made of it."""


WAYS: list[type[Way]] = [ZipNn, Z4aiDelta]
