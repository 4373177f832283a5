"""What the tests of `lastgood doctor` share: how it is run, what it says, and how files are damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
FIXTURES = Path(__file__).parent / "fixtures"


def command() -> list[str]:
    """How the command is run: the built binary, or the module's entry point."""
    named = os.environ.get("LASTGOOD_BIN")
    if named:
        return [named]
    if "LASTGOOD_INSTALLED" in os.environ:
        return [sys.executable, "-m", "lastgood"]
    built = ROOT / "target" / "debug" / "lastgood"
    return [str(built)] if built.exists() else [sys.executable, "-m", "lastgood"]


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command without a store in its environment."""
    env = {k: v for k, v in os.environ.items() if k not in ("LASTGOOD_STORE", "LASTGOOD_RUN")}
    args_ = [*command(), *map(str, args)]
    return subprocess.run(args_, capture_output=True, text=True, env=env, timeout=120)


class Report:
    """What doctor says about a path: each checkpoint by its name, and the folders."""

    def __init__(self, path: Path, *args: str) -> None:
        self.ran = run("doctor", path, "--json", *args)
        lines = [json.loads(line) for line in self.ran.stdout.splitlines()]
        assert lines, self.ran.stderr
        self.checkpoints = {Path(x["checkpoint"]).name: x for x in lines if "checkpoint" in x}
        self._all = [x for x in lines if "checkpoint" in x]
        self.folders = [x for x in lines if "stock" in x]
        assert self.ran.returncode == (0 if lines[-1]["ok"] else 3), self.ran.stderr

    def checkpoints_of(self) -> list[dict[str, Any]]:
        """All of them, where several have one name."""
        return self._all

    def verdict(self, name: str) -> str:
        return str(self.checkpoints[name]["verdict"])

    def kinds(self, name: str) -> set[str]:
        """The kinds of findings that are worse than a note."""
        findings = self.checkpoints[name]["findings"]
        return {x["kind"] for x in findings if x["severity"] != "note"}

    @property
    def last(self) -> str | None:
        [folder] = self.folders
        return Path(folder["last_trusted"]).name if folder["last_trusted"] else None

    @property
    def stock(self) -> tuple[str | None, str]:
        [folder] = self.folders
        takes = folder["stock"]["takes"]
        return (Path(takes).name if takes else None, folder["stock"]["outcome"])


def flip(path: Path, needle: bytes, at: int = 0) -> None:
    """Flips one bit of the bytes `needle` in a file."""
    data = bytearray(path.read_bytes())
    begin = data.find(needle)
    assert begin >= 0
    data[begin + at] ^= 1
    path.write_bytes(data)


def same_age(path: Path) -> None:
    """What was copied or damaged gets the age of its commit, so that ages tell nothing."""
    for file in path.rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))


def flip_record(path: Path, name: str) -> None:
    """Flips one bit in the middle of the record of a zip file whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        [record] = [x for x in archive.infolist() if x.filename.endswith(name)]
    data = bytearray(path.read_bytes())
    head = data[record.header_offset : record.header_offset + 30]
    names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    data[record.header_offset + 30 + names + record.file_size // 2] ^= 1
    path.write_bytes(data)


def unpack(name: str, into: Path) -> Path:
    """Checkpoints that a real tool wrote: python/tests/programs/NAME.py made them."""
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as packed:
        packed.extractall(into, filter="data")
    return into


def state(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def imported(path: Path, tmp_path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What the import says, and the tensors that an export of it has."""
    where = ("--store", tmp_path / "store", "--run", "r")
    ran = run("import", path, *where, "--step", "7", "--json")
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "export"
    exported = run("export", *where, "--to", out)
    assert exported.returncode == 0, exported.stderr
    from safetensors.torch import load_file as load_torch

    tensors = load_torch(out / "model.safetensors")
    blobs = out / "model.blobs.safetensors"
    values = load_file(blobs) if blobs.exists() else {}
    return {**json.loads(ran.stdout), "values": values}, tensors


def flat(path: str, value: Any, into: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        into[path] = value
    elif isinstance(value, dict):
        for key, inner in value.items():
            flat(f"{path}.{key}" if path else str(key), inner, into)
    return into


def assert_same_bytes(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        other = found[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        one, two = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other))
        assert torch.equal(one, two), name


def write_torch_file(path: Path) -> None:
    """A file of `torch.save` with every kind of tensor in it."""
    model, optimizer = state(0)
    weight = model[0].weight.detach()  # type: ignore[index]
    extra = {
        "bf16": torch.randn(3).bfloat16(),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "complex": torch.randn(2, dtype=torch.complex64),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "transposed": weight.t(),
        "slice": torch.arange(10)[3:7],
        "columns": torch.arange(12.0).reshape(3, 4)[:, 1:3],
        "empty": torch.zeros(0, 3),
        "tied": weight,
        "rng": torch.get_rng_state(),
    }
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "extra": extra}
    torch.save({**saved, "step": 3, "name": "x", "lrs": (0.1, 0.2)}, path)
