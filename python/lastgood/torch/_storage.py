"""`StorageConfig`: storage for `torch_checkpointing`, on the files of a run."""

from __future__ import annotations

import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_checkpointing.storage.base_storage import ReadArgs, Storage
from torch_checkpointing.storage.base_storage import StorageConfig as BaseStorageConfig

from lastgood import _world
from lastgood.fs import LastgoodFileSystem


@dataclass
class StorageConfig(BaseStorageConfig):
    """Lets `torch_checkpointing.CheckpointManager` keep its checkpoints in a run: every byte that is read is verified,
    and a checkpoint appears with the rename that commits it, all at once.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``. Files need a run of their own.

    Raises:
        Invalid: by `create_storage`, if there is no store.

    Example:
        >>> import lastgood as lg, tempfile
        >>> from pathlib import Path
        >>> storage = lg.torch.StorageConfig(tempfile.mkdtemp(), "tc").create_storage()
        >>> storage.write(Path("step-1/meta.json"), b"{}")
        >>> storage.read(Path("step-1/meta.json"))
        b'{}'
    """

    store: str | os.PathLike[str] | None = None
    run: str | None = None

    def create_storage(self) -> LastgoodStorage:
        """The storage itself."""
        return LastgoodStorage(*_world.place_of(self.store, self.run))


class LastgoodStorage(Storage):
    """Files of one run behind the interface of `torch_checkpointing`; absolute paths begin at the run, too."""

    def __init__(self, store: str, run: str) -> None:
        self._fs = LastgoodFileSystem(store=store, skip_instance_cache=True)
        self._store = store
        self._run = run

    def __reduce__(self) -> Any:
        return LastgoodStorage, (self._store, self._run)

    def _path(self, path: Any) -> str:
        inner = os.path.normpath(os.fspath(path)).strip("/")
        return self._run if inner in ("", ".") else f"{self._run}/{inner}"

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> Any:
        """The file as a stream; read whole at once if ``read_args`` says so, which is the default."""
        stream = self._fs.open(self._path(path), "rb")
        if read_args is not None and not read_args.pre_read_full_file:
            return stream
        with stream:
            return io.BytesIO(stream.read())

    def stream_write(self, path: Path) -> Any:
        """A stream whose file exists once it is closed without an error."""
        return self._fs.open(self._path(path), "wb")

    def write(self, path: Path, data: Any) -> None:
        """Writes a whole file."""
        with self.stream_write(path) as stream:
            stream.write(data)

    def delete(self, path: Path) -> None:
        """Removes a file."""
        self._fs.rm_file(self._path(path))

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Makes a folder, which is stored with its first file."""
        self._fs.makedirs(self._path(path), exist_ok=recursive)

    def rmdir(self, path: Path) -> None:
        """Removes a folder with all its files."""
        self._fs.rm(self._path(path), recursive=True)

    def rename(
        self,
        src_path: Path,
        dst_path: Path,
        is_directory: bool = False,
        background_cleanup: bool = False,
    ) -> None:
        """Renames a file or a folder in one commit, as the table of `Storage.rename` says.

        Raises:
            FileExistsError: if the destination is occupied.
            FileNotFoundError: if there is no source.
        """
        source, target = self._path(src_path), self._path(dst_path)
        if self._fs.isdir(source):
            if self._fs.isfile(target) or (self._fs.isdir(target) and self._fs.ls(target)):
                raise FileExistsError(errno.ENOTEMPTY, f"{dst_path} is occupied; remove it first")
        elif self._fs.isdir(target):
            raise FileExistsError(errno.EISDIR, f"{dst_path} is a folder; remove it first")
        self._fs.mv(source, target)

    def ls(self, path: Path) -> list[str]:
        """The names in a folder."""
        rows = self._fs.ls(self._path(path), detail=False)
        return [row.rsplit("/", 1)[-1] for row in rows]

    def exists(self, path: Path) -> bool:
        """True if there is a file or a folder."""
        return bool(self._fs.exists(self._path(path)))

    def getsize(self, path: Path) -> int:
        """The size of a file in bytes.

        Raises:
            FileNotFoundError: if there is none.
        """
        return int(self._fs.info(self._path(path))["size"])

    def isdir(self, path: Path) -> bool:
        """True for a folder."""
        return bool(self._fs.isdir(self._path(path)))

    def remap_path(self, path: Path) -> str:
        """The path as a URL."""
        return f"lastgood://{self._path(path)}"
