"""What is measured of a process, a folder and a disk."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


def sync(folder: Path) -> None:
    """Syncs the file system that ``folder`` is on."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), f"cannot sync the file system of {folder}")
    finally:
        os.close(handle)


def files(place: Path) -> Iterator[Path]:
    """Every file at or below ``place``."""
    if place.is_file():
        yield place
    elif place.is_dir():
        for root, _, names in os.walk(place):
            yield from (Path(root, name) for name in names)


def bytes_in(place: Path) -> int:
    """The bytes of every file at or below ``place``; one of several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for file in files(place):
        try:
            known = file.stat()
        except FileNotFoundError:
            continue
        found[known.st_dev, known.st_ino] = known.st_size
    return sum(found.values())


def evict(place: Path) -> None:
    """Takes every file at or below ``place`` out of the page cache."""
    for file in files(place):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def warm(place: Path) -> None:
    """Reads every file at or below ``place`` into the page cache."""
    buffer = bytearray(4 << 20)
    for file in files(place):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def read_bytes() -> int:
    """The bytes that the kernel has read from disks for this process."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def anonymous(process: int | str = "self") -> int:
    """The bytes of a process's own memory and its part of what it shares; not those of mapped files."""
    found = 0
    with open(f"/proc/{process}/smaps_rollup") as lines:
        for line in lines:
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                found += int(line.split()[1]) << 10
    return found


def _tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for process in found:
        try:
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            threads = os.listdir(f"/proc/{process}/task")
            for thread in threads:
                if thread != str(process):
                    place = Path(f"/proc/{process}/task/{thread}/children")
                    children += place.read_text().split()
        except OSError:
            continue
        found += [int(child) for child in children if int(child) not in found]
    return found


class Peak:
    """The most memory that this process and its children have while it is open, looked at from another process."""

    #: The seconds between two looks.
    EVERY = 0.01

    def __enter__(self) -> Peak:
        command = [sys.executable, "-S", __file__, str(os.getpid())]
        self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._watcher.stdout is not None
        self._watcher.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        found, _ = self._watcher.communicate()
        #: In bytes.
        self.peak = int(found or 0)


def _watch(root: int) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    print("watching", flush=True)
    peak = 0
    while not ended.is_set():
        total = 0
        for process in _tree(root):
            if process != os.getpid():
                try:
                    total += anonymous(process)
                except OSError:
                    continue
        peak = max(peak, total)
        ended.wait(Peak.EVERY)
    print(peak)


def best_of(times: int, work: object) -> float:
    """The least seconds that ``work`` took."""
    least = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        work()  # type: ignore[operator]
        least = min(least, time.perf_counter() - begin)
    return least


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
