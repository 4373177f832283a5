"""Files in a run, for frameworks that know only files: written in parts, listed by commits, read by ranges.

The bytes of a file are parts, each a checkpoint of the run ``RUN.rankN`` of the rank that wrote it. What exists is what
the catalog says: the newest checkpoint of ``RUN`` itself, which names for every file its parts by checkpoint id, and so
by hash. A change of the catalog opens an attempt, reads, and commits: whoever opens a later one fences it, so that no
change is lost and none is half. Files of a checkpoint of several ranks wait in the ranks' own runs, in the list
``waiting`` of the newest part, until they are taken into the catalog all at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lastgood import _journal, _lastgood, _preflight, _steps, _world
from lastgood._lastgood import (
    Closed,
    Conflict,
    Corrupt,
    Fenced,
    Incompatible,
    LastgoodError,
    NotFound,
)

#: The bytes of a part: what a file being written takes of memory, twice.
PART_BYTES = 64 << 20
_COMPONENT = "files"
#: How long a change is tried again while other processes make theirs.
_TRY_SECONDS = 60


@dataclass
class Entry:
    """A file: its size in bytes, when it was written (seconds since 1970), and its parts: run, checkpoint, bytes."""

    size: int
    modified: float
    parts: list[tuple[str, str, int]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"size": self.size, "modified": self.modified, "parts": self.parts}

    @staticmethod
    def of(stored: Any) -> Entry:
        parts = [(str(r), str(c), int(n)) for r, c, n in stored["parts"]]
        return Entry(int(stored["size"]), float(stored["modified"]), parts)


Catalog = dict[str, Entry]


def number_in(name: str) -> int | None:
    """The last number in a file's name, or in its folder's: the step, as frameworks spell it."""
    for part in reversed(name.split("/")):
        numbers = re.findall(r"\d+", part.rsplit(".", 1)[0] if "." in part else part)
        if numbers and not part.startswith(("__", ".")):
            return int(numbers[-1])
    return None


def session() -> str:
    """Names this start of the job: for all its ranks under torch.distributed, without waiting for any."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        from torch.distributed import distributed_c10d

        store = distributed_c10d._get_default_store()
        return bytes(store.compare_set("lastgood/files", "", secrets.token_hex(16))).decode()
    return f"{_own_session}-{os.getpid()}"


_own_session = secrets.token_hex(16)


def _turns() -> Iterator[None]:
    """The tries of a change, with pauses that are never those of the others, so that one of them gets through."""
    until, pause = time.monotonic() + _TRY_SECONDS, 0.02
    while True:
        yield
        if time.monotonic() > until:
            return
        time.sleep(pause * secrets.randbelow(1000) / 1000)
        pause = min(2 * pause, 1.0)


class Lane:
    """The run that this process writes parts into."""

    def __init__(self, store: str, name: str) -> None:
        self.store = store
        self.name = name
        self.lock = threading.RLock()
        self.native: Any = None
        self.step = 0
        #: Files that no catalog names yet: path to session, whether it is still being written, and the entry.
        self.waiting: dict[str, dict[str, Any]] = {}

    def _open(self) -> Any:
        if self.native is None:
            self.native = _lastgood.Run(
                self.store, _world.store_options(), self.name, 0, 1, None, {}
            )
            self.step = 1 + max((row["step"] for row in self.native.history()), default=-1)
        return self.native

    def put(self, data: bytearray | None, like: str | None = None) -> str:
        """Stores a part with the list of what waits, and gives its id; ``like`` is the part whose chunks it may
        have too."""
        with self.lock:
            for _ in _turns():
                try:
                    return self._put(data, like)
                except (Fenced, Closed):
                    # Another process of this rank wrote meanwhile: parts do not get in each other's way.
                    _close(self.native)
                    self.native = None
            raise Conflict(
                f"run {self.name} was taken over again and again for {_TRY_SECONDS} s; let one process of each rank "
                "write at a time"
            )

    def _put(self, data: bytearray | None, like: str | None) -> str:
        native = self._open()
        if like is not None:
            # Only a saving: without it everything is stored again.
            with contextlib.suppress(LastgoodError):
                native.build_on(native.find(f"id:{like}"))
        capture = _lastgood.Capture()
        component = capture.component(_COMPONENT, "lastgood.fs", "durable")
        if data:
            memory = (ctypes.c_char * len(data)).from_buffer(data)
            address = ctypes.addressof(memory)
            shape = (len(data),)
            capture.tensor(
                component, "data", "U8", shape, (0,), shape, address, len(data), memory, "shard"
            )
        capture.blob(component, "waiting", json.dumps(self.waiting).encode(), False)
        step, self.step = self.step, self.step + 1
        handle = native.save(step, capture, False)
        try:
            committed: str = handle.wait_committed()
        except LastgoodError:
            # It is told here, and not once more at the end.
            native.take_failures()
            raise
        return committed


class Files:
    """The files of run ``run`` in ``store``."""

    def __init__(self, store: str, run: str) -> None:
        self.store = store
        self.run = run
        self._readers: dict[str, Any] = {}
        self._opened: OrderedDict[str, Any] = OrderedDict()
        self._cached: tuple[str, Catalog] | None = None
        self._lock = threading.RLock()
        _opened_files.add(self)

    def lane(self) -> Lane:
        """This process's."""
        rank = _world.find_world().rank
        key = (self.store, f"{self.run}.rank{rank}")
        with _lanes_lock:
            lane = _lanes.get(key)
            if lane is None:
                lane = _lanes[key] = Lane(*key)
            return lane

    def _reader(self, run: str) -> Any:
        with self._lock:
            if run not in self._readers:
                self._readers[run] = _lastgood.Reader(self.store, _world.store_options(), run)
            return self._readers[run]

    def _checkpoint(self, run: str, checkpoint: str) -> Any:
        with self._lock:
            found = self._opened.get(checkpoint)
            if found is None:
                try:
                    found = self._reader(run).find(f"id:{checkpoint}")
                except NotFound as error:
                    raise Corrupt(f"a part of a file is gone: {error}") from None
                self._opened[checkpoint] = found
                while len(self._opened) > 64:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(checkpoint)
            return found

    def catalog(self) -> Catalog:
        """Every file, by path.

        Raises:
            Corrupt: if the newest catalog is damaged.
            Unavailable, Denied: if the store cannot be read.
        """
        try:
            rows = self._reader(self.run).history()
        except NotFound:
            return {}
        usable = [row for row in rows if row["standing"] != "bad" and not row["expired"]]
        if not usable:
            return {}
        newest = usable[-1]["id"]
        with self._lock:
            if self._cached is None or self._cached[0] != newest:
                checkpoint = self._checkpoint(self.run, newest)
                self._cached = (newest, _catalog_of(self._reader(self.run), checkpoint))
            return dict(self._cached[1])

    def change(
        self,
        edit: Callable[[Catalog], None],
        step: int | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Commits the catalog that ``edit`` makes of the newest one. It is called again if another change came
        between. With ``record``, which tells what is saved, it is recorded, with the environment of this process.

        Raises:
            What ``edit`` raises; Conflict: if others change it all the time; and what the save fails with.
        """
        _steps.refuse(self.store, self.run, "lastgood://")
        journal = _journal.of_saves(self.store) if record is not None else {}
        for _ in _turns():
            native = _lastgood.Run(
                self.store, _world.store_options(), self.run, 0, 1, None, {}, **journal
            )
            try:
                catalog = self.catalog()
                edit(catalog)
                rows = native.history()
                at = step if step is not None else (rows[-1]["step"] if rows else 0)
                if record is not None:
                    native.step(at, record, {})
                handle = native.save(at, _capture_of(catalog), False)
                handle.wait_committed()
                return
            except Fenced:
                continue
            finally:
                _close(native)
        raise Conflict(
            f"the files of run {self.run} were changed by others again and again for {_TRY_SECONDS} s; try again"
        )

    def differences(self, folder: str) -> list[str]:
        """What a process that reads the checkpoint of DCP in ``folder`` should know of the one that committed it."""
        with contextlib.suppress(LastgoodError):
            reader = self._reader(self.run)
            step = number_in(folder)
            ids = [row["id"] for row in reader.history() if row["step"] == step]
            if ids:
                return _preflight.of_who_reads(reader, self._checkpoint(self.run, ids[-1]))
        return []

    def waiting(self, folder: str, *, own: bool = False) -> dict[str, dict[str, Any]]:
        """What ranks of this start have written below ``folder``, or are writing, and no catalog names."""
        found: dict[str, dict[str, Any]] = {}
        now = session()
        mine = self.lane()
        lanes = [mine.name] if own else self._lanes()
        for name in lanes:
            rows = self._reader(name).history()
            listed = mine.waiting if name == mine.name else {}
            if rows and name != mine.name:
                listed = self._waiting_of(name, rows[-1]["id"])
            for path, record in listed.items():
                if path.startswith(f"{folder}/") and record["session"] == now:
                    found[path] = record
        return found

    def _lanes(self) -> list[str]:
        pattern = re.compile(re.escape(self.run) + r"\.rank\d+")
        return [
            n for n in _lastgood.runs(self.store, _world.store_options()) if pattern.fullmatch(n)
        ]

    def _waiting_of(self, run: str, checkpoint: str) -> dict[str, Any]:
        targets = _lastgood.Targets()
        number = targets.blob(_COMPONENT, "waiting@rank0")
        self._reader(run).read(self._checkpoint(run, checkpoint), targets)
        listed: dict[str, Any] = json.loads(targets.take(number))
        return listed

    def read(self, entry: Entry, offset: int, into: memoryview) -> int:
        """Fills ``into`` from the file's byte ``offset`` on, verified, and gives the number of bytes.

        Raises:
            Corrupt: if what is stored is damaged or gone.
        """
        want = max(min(len(into), entry.size - offset), 0)
        done, begin = 0, 0
        for run, checkpoint, size in entry.parts:
            at = offset + done - begin
            if 0 <= at < size and done < want:
                take = min(size - at, want - done)
                self._read_part(run, checkpoint, size, at, into[done : done + take])
                done += take
            begin += size
        if done != want:
            raise Corrupt(f"a file of {entry.size} bytes has parts of {begin} bytes")
        return done

    def _read_part(self, run: str, checkpoint: str, size: int, at: int, into: memoryview) -> None:
        memory = (ctypes.c_char * len(into)).from_buffer(into)
        targets = _lastgood.Targets()
        address = ctypes.addressof(memory)
        targets.tensor(
            _COMPONENT, "data", "U8", (size,), (at,), (len(into),), address, len(into), memory
        )
        self._reader(run).read(self._checkpoint(run, checkpoint), targets)


def _close(native: Any) -> None:
    """Closes a run whose saves are all decided and told."""
    with contextlib.suppress(LastgoodError):
        native.close()


_lanes: dict[tuple[str, str], Lane] = {}
_lanes_lock = threading.Lock()
_opened_files: weakref.WeakSet[Files] = weakref.WeakSet()


def _in_forked_child() -> None:
    """Another thread of the parent may have held a lock, and its lanes are not this process's to write."""
    global _lanes_lock
    _lanes_lock = threading.Lock()
    _lanes.clear()
    for files in _opened_files:
        files._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _capture_of(catalog: Catalog) -> Any:
    capture = _lastgood.Capture()
    component = capture.component(_COMPONENT, "lastgood.fs", "durable")
    stored = {path: entry.as_json() for path, entry in sorted(catalog.items())}
    text = json.dumps({"version": 1, "files": stored}, separators=(",", ":"))
    capture.blob(component, "catalog", text.encode(), False)
    capture.metadata("lastgood.python", _lastgood.__version__)
    return capture


def _catalog_of(native: Any, checkpoint: Any) -> Catalog:
    if _COMPONENT not in {name for name, _, _ in checkpoint.components()}:
        raise Incompatible(
            f"checkpoint {checkpoint.id[:16]} of step {checkpoint.step} holds no files: the run is written by "
            "lg.open or lg.torch.Writer too; give the files a run of their own"
        )
    targets = _lastgood.Targets()
    number = targets.blob(_COMPONENT, "catalog@rank0")
    native.read(checkpoint, targets)
    try:
        stored = json.loads(targets.take(number))
        if stored["version"] != 1:
            raise ValueError(f"version {stored['version']}")
        return {str(path): Entry.of(entry) for path, entry in stored["files"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise Incompatible(
            f"the catalog {checkpoint.id[:16]} is none of this version: {error!r}"
        ) from None


class Upload:
    """A file on its way. Nobody sees it before it is committed."""

    def __init__(self, files: Files, path: str, *, waits: bool) -> None:
        self.files = files
        self.path = path
        self.waits = waits
        self.lane = files.lane()
        self.buffer = bytearray()
        self.entry = Entry(0, 0.0)
        self.failed = False
        known = self.lane.waiting.get(path)
        previous = Entry.of(known["entry"]) if known else _like(files.catalog(), path)
        self.similar = (
            [c for run, c, _ in previous.parts if run == self.lane.name] if previous else []
        )
        if waits:
            # Said before the first byte, so that a file that never ends is missed at the commit.
            self._list(True)
            self.lane.put(None)

    def _list(self, is_open: bool) -> None:
        record = {"session": session(), "open": is_open, "entry": self.entry.as_json()}
        with self.lane.lock:
            self.lane.waiting[self.path] = record

    def write(self, data: Any) -> int:
        """Takes bytes; full parts are stored in the call."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            take = min(len(view) - at, PART_BYTES - len(self.buffer))
            self.buffer += view[at : at + take]
            at += take
            if len(self.buffer) == PART_BYTES:
                self._flush()
        return len(view)

    def _flush(self) -> None:
        number = len(self.entry.parts)
        like = self.similar[number] if number < len(self.similar) else None
        data, self.buffer = self.buffer, bytearray()
        try:
            part = self.lane.put(data, like)
        except BaseException:
            self.failed = True
            raise
        self.entry.parts.append((self.lane.name, part, len(data)))
        self.entry.size += len(data)

    def tell(self) -> int:
        """The bytes so far."""
        return self.entry.size + len(self.buffer)

    def end(self) -> Entry:
        """Stores the rest: from here on it only waits to be named by a catalog.

        Raises:
            Conflict: if a part of it was not stored.
        """
        if self.failed:
            raise Conflict(
                f"{self.path}: a part of it was not stored, and so it does not exist; write it again"
            )
        if self.buffer:
            self._flush()
        self.entry.modified = time.time()
        if self.waits:
            self._list(False)
            self.lane.put(None)
        return self.entry


def _like(catalog: Catalog, path: str) -> Entry | None:
    """The newest file that is probably much the same: of the same name, but for numbers."""

    def key(text: str) -> str:
        name = text.rsplit("/", 1)[-1]
        return name if name.startswith("__") else re.sub(r"\d+", "#", name)

    same = [entry for name, entry in catalog.items() if key(name) == key(path)]
    return max(same, key=lambda entry: entry.modified, default=None)
