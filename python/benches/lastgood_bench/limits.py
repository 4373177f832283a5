"""What memory, disk and processors do at best, measured in the same run."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path

import torch

from lastgood_bench import measure

#: What each is, and in which unit.
ABOUT = {
    "memcpy_warm": "copy between memory that is there, bytes a second",
    "memcpy_fresh": "copy into memory that was never touched, bytes a second",
    "write_direct": "write past the page cache and sync, bytes a second",
    "write_buffered": "write through the page cache and sync, bytes a second",
    "read_cold": "read what is not in the page cache, past it, bytes a second",
    "read_hot": "read what is in the page cache into memory that is there, bytes a second",
    "blake3": "BLAKE3 on all cores, bytes a second",
    "zstd_1": "zstd at level 1 of trained fp32 weights on one core, bytes a second",
    "commit_s": "create a file of 4 KiB, sync, rename and sync the folder, seconds",
}


def find(folder: Path, size: int = 512 << 20, times: int = 3) -> dict[str, float]:
    """Every limit; ``size``: the bytes of each measurement."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "limit"
    try:
        return {
            **_memory(size, times),
            **_disk(file, size, times),
            **_processors(min(size, 128 << 20), times),
            "commit_s": _commit(folder),
        }
    finally:
        file.unlink(missing_ok=True)


def _memory(size: int, times: int) -> dict[str, float]:
    source, out = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    warm = measure.best_of(times, lambda: out.copy_(source))
    fresh = measure.best_of(times, lambda: source.clone())
    return {"memcpy_warm": size / warm, "memcpy_fresh": size / fresh}


def _disk(file: Path, size: int, times: int) -> dict[str, float]:
    memory = mmap.mmap(-1, size)
    memory.write(os.urandom(1 << 20) * (size >> 20))
    view = memoryview(memory)
    found: dict[str, float] = {}

    def write(flags: int, part: int) -> None:
        file.unlink(missing_ok=True)
        handle = os.open(file, os.O_CREAT | os.O_WRONLY | flags, 0o600)
        try:
            for begin in range(0, size, part):
                os.write(handle, view[begin : begin + part])
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(flags: int, part: int) -> None:
        handle = os.open(file, os.O_RDONLY | flags)
        try:
            for begin in range(0, size, part):
                os.preadv(handle, [view[begin : begin + part]], begin)
        finally:
            os.close(handle)

    part = min(size, 8 << 20)
    # Some file systems have none, as tmpfs.
    with contextlib.suppress(OSError):
        found["write_direct"] = size / measure.best_of(times, lambda: write(os.O_DIRECT, part))
    found["write_buffered"] = size / measure.best_of(times, lambda: write(0, part))
    measure.evict(file)
    direct = os.O_DIRECT if "write_direct" in found else 0
    found["read_cold"] = size / measure.best_of(times, lambda: read(direct, part))
    measure.warm(file)
    found["read_hot"] = size / measure.best_of(times, lambda: read(0, 1 << 20))
    view.release()
    memory.close()
    return found


def _processors(size: int, times: int) -> dict[str, float]:
    found: dict[str, float] = {}
    weights = (torch.randn(size // 4) * 0.02).numpy().view("u1")
    try:
        import blake3
        import zstandard
    except ImportError:
        return found
    threads = len(os.sched_getaffinity(0))
    hash_s = measure.best_of(times, lambda: blake3.blake3(weights, max_threads=threads).digest())
    found["blake3"] = size / hash_s
    compress = zstandard.ZstdCompressor(level=1).compress
    found["zstd_1"] = size / measure.best_of(1, lambda: compress(weights))
    return found


def _commit(folder: Path) -> float:
    directory, taken = os.open(folder, os.O_RDONLY), []
    for _ in range(20):
        begin = time.perf_counter()
        handle = os.open(folder / "staged", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(handle, bytes(4096))
        os.fsync(handle)
        os.close(handle)
        os.rename(folder / "staged", folder / "committed")
        os.fsync(directory)
        taken.append(time.perf_counter() - begin)
    os.close(directory)
    (folder / "committed").unlink()
    return sorted(taken)[len(taken) // 2]
