"""`lastgood://RUN/path`: files in a run, for everything that speaks fsspec, such as stock `dcp.save` and Lightning.

The store is ``LASTGOOD_STORE``, or the storage option ``store``. Installing lastgood is enough: fsspec finds the
protocol by itself.
"""

from __future__ import annotations

import datetime
import io
import os
import re
import threading
import warnings
from typing import Any

from fsspec.spec import AbstractFileSystem

from lastgood import _lastgood, _world
from lastgood._files import Catalog, Entry, Files, Upload, number_in
from lastgood._lastgood import Conflict, Invalid, NotFound

#: How much is read at once where less is asked for.
READ_BYTES = 1 << 20
_METADATA = ".metadata"


__all__ = ["LastgoodFileSystem"]


class LastgoodFileSystem(AbstractFileSystem):
    """The file system behind ``lastgood://``.

    A file exists from the moment that it is closed; a checkpoint of DCP from the moment that its ``.metadata`` is
    renamed into place, and then with all its files. What was there before under the same name stays until then. Every
    byte that is read is verified. Files cannot be changed in place; folders are what paths of files say. A process that
    opens a checkpoint of DCP and computes otherwise than the one that saved is warned, and not refused: what it reads
    files for nobody knows.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``.

    Raises:
        Invalid: if there is no store, a run's name is none, or a file is opened to append.
        FileNotFoundError: if there is no such file.
        Corrupt: if what is read is damaged: the text names the object.

    Example:
        >>> import fsspec, tempfile
        >>> fs = fsspec.filesystem("lastgood", store=tempfile.mkdtemp())
        >>> with fs.open("lastgood://notes/a.txt", "wb") as file:
        ...     _ = file.write(b"saved")
        >>> fs.cat("lastgood://notes/a.txt")
        b'saved'
    """

    protocol = "lastgood"
    root_marker = ""

    def __init__(self, store: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(store=store, **options)
        self._store = os.fspath(store) if store is not None else None
        self._runs: dict[tuple[str, str], Files] = {}
        self._made: set[str] = set()
        self._lock = threading.RLock()

    @property
    def fsid(self) -> str:
        """Names the store."""
        return f"lastgood-{self._url()}"

    def _url(self) -> str:
        url = self._store or os.environ.get("LASTGOOD_STORE")
        if not url:
            raise Invalid(
                "lastgood:// needs a store: set LASTGOOD_STORE, or give the storage option store=…"
            )
        return url

    def _split(self, path: str) -> tuple[Files, str]:
        run, _, inner = self._strip_protocol(path).partition("/")
        if not run:
            raise Invalid(f"{path!r} names no run; write lastgood://RUN/PATH")
        key = (self._url(), run)
        with self._lock:
            if key not in self._runs:
                self._runs[key] = Files(*key)
            return self._runs[key], inner

    def _catalog(self, files: Files) -> Catalog:
        try:
            return files.catalog()
        except NotFound:
            return {}

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        files, inner = self._split(path)
        if not inner:
            raise IsADirectoryError(path)
        if mode == "rb":
            entry = self._catalog(files).get(inner)
            if entry is None:
                raise FileNotFoundError(f"lastgood://{self._strip_protocol(path)} does not exist")
            folder, _, name = inner.rpartition("/")
            # Whoever reads a checkpoint of DCP begins with this file.
            for notice in files.differences(folder) if name == _METADATA else ():
                warnings.warn(f"lastgood: {notice}", RuntimeWarning, stacklevel=4)
            return _Reading(files, inner, entry)
        if mode not in ("wb", "xb"):
            raise Invalid(
                f"{path}: files are written once and never changed, mode {mode!r} is refused; write it anew"
            )
        if mode == "xb" and inner in self._catalog(files):
            raise FileExistsError(path)
        return _Writing(files, inner, self._strip_protocol(path), kwargs.get("autocommit", True))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The files and folders in a folder, or the file itself; the root has the runs."""
        path = self._strip_protocol(path)
        if not path:
            names = _lastgood.runs(self._url(), _world.store_options())
            # RUN.rankN holds the parts of RUN's files, and no files.
            parts = {
                name for name in names if re.sub(r"\.rank\d+$", "", name) in set(names) - {name}
            }
            found = [self._folder(name) for name in names if name not in parts]
        else:
            found = self._list(path)
        return found if detail else [row["name"] for row in found]

    def _list(self, path: str) -> list[dict[str, Any]]:
        files, inner = self._split(path)
        run = path.partition("/")[0]
        catalog = self._catalog(files)
        if inner in catalog:
            return [self._file(path, catalog[inner])]
        prefix = f"{inner}/" if inner else ""
        rows: dict[str, dict[str, Any]] = {}
        for name, entry in catalog.items():
            if name.startswith(prefix):
                first, _, rest = name[len(prefix) :].partition("/")
                full = f"{run}/{prefix}{first}"
                rows.setdefault(full, self._folder(full) if rest else self._file(full, entry))
        for made in self._made:
            if made.startswith(f"{path}/"):
                full = f"{path}/{made[len(path) + 1 :].partition('/')[0]}"
                rows.setdefault(full, self._folder(full))
        if not rows and path not in self._made:
            raise FileNotFoundError(f"lastgood://{path} does not exist")
        return [rows[name] for name in sorted(rows)]

    @staticmethod
    def _folder(path: str) -> dict[str, Any]:
        return {"name": path, "size": 0, "type": "directory"}

    @staticmethod
    def _file(path: str, entry: Entry) -> dict[str, Any]:
        return {"name": path, "size": entry.size, "type": "file", "modified": entry.modified}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name, size in bytes and type of a file or folder."""
        path = self._strip_protocol(path)
        if not path:
            return self._folder("")
        rows = self._list(path)
        if len(rows) == 1 and rows[0]["name"] == path and rows[0]["type"] == "file":
            return rows[0]
        return self._folder(path)

    def modified(self, path: str) -> datetime.datetime:
        """When a file was written, or the newest file of a folder, in UTC."""
        path = self._strip_protocol(path)
        files, inner = self._split(path)
        times = [
            entry.modified
            for name, entry in self._catalog(files).items()
            if name == inner or not inner or name.startswith(f"{inner}/")
        ]
        if not times:
            raise FileNotFoundError(f"lastgood://{path} does not exist")
        return datetime.datetime.fromtimestamp(max(times), tz=datetime.timezone.utc)

    created = modified

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Remembers a folder in this process; it is stored with its first file."""
        path = self._strip_protocol(path)
        self._made.add(path)
        if "/" in path:
            # A save of DCP begins so: what an earlier one of this process has left behind is not part of it.
            self._forget(*self._split(path))

    @staticmethod
    def _forget(files: Files, folder: str) -> None:
        lane = files.lane()
        with lane.lock:
            for name in [n for n in lane.waiting if n.rpartition("/")[0] == folder]:
                del lane.waiting[name]

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """As `mkdir`.

        Raises:
            FileExistsError: if it exists, and may not.
        """
        if not exist_ok and self.exists(path):
            raise FileExistsError(path)
        self.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Forgets an empty folder.

        Raises:
            OSError: if it has files.
        """
        path = self._strip_protocol(path)
        if path in self._made:
            self._made.discard(path)
            if not self.exists(path):
                return
        if self.ls(path):
            raise OSError(f"lastgood://{path} is not empty")

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Takes files, or with ``recursive`` folders, out of the catalog, all at once."""
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        for each in paths:
            self._remove(self._strip_protocol(os.fspath(each)), recursive)

    def rm_file(self, path: str) -> None:
        """Takes a file out of the catalog."""
        self._remove(self._strip_protocol(path), False)

    _rm = rm_file

    def _remove(self, path: str, recursive: bool) -> None:
        files, inner = self._split(path)
        lane = files.lane()
        with lane.lock:
            waited = lane.waiting.get(inner)
            if waited is not None:
                # DCP cleans up what it could not write. The file that is there under this name is the one of the
                # checkpoint before; and what was not written to its end must be missed at the commit.
                if not waited["open"]:
                    del lane.waiting[inner]
                return
        self._forget(files, inner)
        catalog = self._catalog(files)
        if inner.endswith(_METADATA) and f"{inner}.tmp" in lane.waiting and inner in catalog:
            # DCP removes the old one before it renames the new one into place: it stays until then.
            return
        below = [n for n in catalog if n == inner or not inner or n.startswith(f"{inner}/")]
        made = [m for m in self._made if m == path or m.startswith(f"{path}/")]
        self._made.difference_update(made)
        if not below:
            if not made:
                raise FileNotFoundError(f"lastgood://{path} does not exist")
            return
        if below != [inner] and not recursive:
            raise IsADirectoryError(f"lastgood://{path} is a folder; remove it with recursive=True")

        def edit(catalog: Catalog) -> None:
            for name in below:
                catalog.pop(name, None)

        files.change(edit)

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        """Renames a file, over another one if there is one, or a folder, in one commit. Renaming ``.metadata.tmp`` is
        what commits a checkpoint of DCP, with every file of it.

        Raises:
            FileNotFoundError: if there is no such file.
            FileExistsError: if a folder would lie over files.
            Conflict: if a file of the checkpoint was not written to its end.
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        files, old = self._split(source)
        others, new = self._split(target)
        if others is not files:
            raise Invalid(f"{source} and {target} are of different runs; copy the file")
        lane = files.lane()
        if old in lane.waiting:
            self._commit(files, old, new)
            return

        def edit(catalog: Catalog) -> None:
            moved = {n: e for n, e in catalog.items() if n == old or n.startswith(f"{old}/")}
            if not moved:
                raise FileNotFoundError(f"lastgood://{source} does not exist")
            below = [n for n in catalog if n.startswith(f"{new}/")]
            if below or (old not in moved and new in catalog):
                raise FileExistsError(f"lastgood://{target} exists")
            for name, entry in moved.items():
                del catalog[name]
                catalog[new + name[len(old) :]] = entry

        files.change(edit, number_in(new))
        if source in self._made:
            self._made.discard(source)

    rename = mv

    def _commit(self, files: Files, old: str, new: str) -> None:
        """Takes what waits in the folder of ``new`` into the catalog, with ``old`` as ``new``."""
        folder, _, name = new.rpartition("/")
        # ``__3.metadata`` is of a rank that saves without the others.
        waiting = files.waiting(folder, own=name != _METADATA)
        unfinished = sorted(path for path, record in waiting.items() if record["open"])
        if unfinished:
            raise Conflict(
                f"{', '.join(unfinished[:5])} was not written to its end, and so the checkpoint does not exist; "
                "the errors before this one say why: save again"
            )
        entries = {path: Entry.of(record["entry"]) for path, record in waiting.items()}
        if old not in entries:
            raise FileNotFoundError(f"{old} was written by another start of the job; save again")
        entries[new] = entries.pop(old)

        def edit(catalog: Catalog) -> None:
            catalog.update(entries)

        size = sum(entry.size for entry in entries.values())
        record = {"checkpoint": new, "files": len(entries), "bytes": size}
        files.change(edit, number_in(folder) if folder else None, record)
        lane = files.lane()
        with lane.lock:
            for path in waiting:
                lane.waiting.pop(path, None)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copies a file; its bytes are not stored again.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        files, old = self._split(path1)
        others, new = self._split(path2)
        if others is not files:
            raise Invalid(
                f"{path1} and {path2} are of different runs; read the one and write the other"
            )

        def edit(catalog: Catalog) -> None:
            if old not in catalog:
                raise FileNotFoundError(f"lastgood://{self._strip_protocol(path1)} does not exist")
            catalog[new] = catalog[old]

        files.change(edit, number_in(new))


def _waits(inner: str) -> bool:
    """True for files that are part of a checkpoint and exist only with it."""
    name = inner.rsplit("/", 1)[-1]
    return name.endswith((".distcp", f"{_METADATA}.tmp"))


class _Writing(io.RawIOBase):
    """A file being written; closed after an error, it was never there."""

    def __init__(self, files: Files, inner: str, path: str, autocommit: bool) -> None:
        super().__init__()
        self.path = path
        self._files = files
        self._inner = inner
        self._autocommit = autocommit
        self._upload = Upload(files, inner, waits=_waits(inner))
        self._ended = False
        self._entry: Entry | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("the file is closed")
        return self._upload.write(data)

    def tell(self) -> int:
        return self._upload.tell()

    def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            if not self._upload.failed:
                self._entry = self._upload.end()
                if self._autocommit:
                    self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        """Lets the file exist, at the end of a transaction."""
        entry = self._entry
        if entry is None:
            raise Conflict(f"{self.path} was not written to its end; write it again")
        if self._upload.waits:
            return

        def edit(catalog: Catalog) -> None:
            catalog[self._inner] = entry

        self._files.change(edit, number_in(self._inner))

    def discard(self) -> None:
        """Gives the file up."""
        self._ended = True
        super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.discard()
            return
        self.close()

    def __del__(self) -> None:
        # What nobody closed was not finished.
        self._ended = True


class _Raw(io.RawIOBase):
    def __init__(self, files: Files, entry: Entry) -> None:
        super().__init__()
        self._files = files
        self._entry = entry
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{start + offset} is before the start of the file")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if view.readonly:
            raise ValueError("the buffer cannot be written")
        read = self._files.read(self._entry, self._at, view)
        self._at += read
        return read


class _Reading(io.BufferedReader):
    """A file being read; whole reads go past the buffer."""

    def __init__(self, files: Files, path: str, entry: Entry) -> None:
        super().__init__(_Raw(files, entry), buffer_size=READ_BYTES)
        self.path = path
        self.size = entry.size
