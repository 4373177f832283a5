"""Checkpoint folders that another library writes, kept in a run: stored whole, and written back byte for byte.

A folder's files are stored in the component ``folder``: of a safetensors file each tensor under its own name, so that
it is deduplicated and can be read alone; every other file as bytes. Nothing is unpickled. The tree holds the list of
files with their digests, which is what a folder on the disk is compared with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lastgood import _lastgood, _memory, _state, _tensorfile
from lastgood._handle import SaveHandle
from lastgood._lastgood import Corrupt, Incompatible, Invalid
from lastgood._peers import Peers
from lastgood._run import Run

#: The component that holds a folder, and the kind that its tree says.
COMPONENT = "folder"
KIND = "folder/1"


@dataclass(frozen=True)
class File:
    """One file of a stored folder: path in it, length, BLAKE2b of its bytes, and whether its tensors have names."""

    path: str
    bytes: int
    digest: str
    tensors: bool


@dataclass(frozen=True)
class Stored:
    """A folder in a checkpoint of the run: what it was called, and its files."""

    checkpoint: Any
    name: str
    files: tuple[File, ...]

    @property
    def step(self) -> int:
        """The step that it was saved at."""
        step: int = self.checkpoint.step
        return step


def digest(data: Any) -> str:
    """The digest that the tree has of a file's bytes."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def files_in(folder: Path) -> dict[str, int]:
    """The files below ``folder`` by relative path, with their lengths; none if it is not there.

    Raises:
        Invalid: if something in it is neither file nor folder.
    """
    found: dict[str, int] = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base, name)
            if not path.is_file():
                raise Invalid(
                    f"{path} is no plain file; a checkpoint folder holds only files and folders"
                )
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def read_file(path: Path) -> Any:
    """The bytes of a file in memory of their own: the library that wrote it may delete or replace it at any time.

    Raises:
        Corrupt: if it changes while it is read.
    """
    import numpy

    with path.open("rb", buffering=0) as file:
        data = numpy.empty(os.fstat(file.fileno()).st_size, numpy.uint8)
        view, done = data.data, 0
        while done < len(view):
            read = file.readinto(view[done:])
            if not read:
                raise Corrupt(f"{path} became shorter while it was read; save it again")
            done += read
        if file.read(1):
            raise Corrupt(f"{path} became longer while it was read; save it again")
    return data


def ingest(run: Run, folder: Path, step: int, owner: str, peers: Peers) -> SaveHandle:
    """Saves ``folder`` as the checkpoint of ``step``. With several ranks all call it, when each has written its
    files: a file is stored by the lowest rank that sees it.

    Raises:
        Invalid: if there is nothing to save.
        Overloaded, Fenced, Conflict, Closed: as `Run.save`.
    """
    views = peers.gather("files", files_in(folder))
    if not any(views):
        raise Invalid(f"{folder} is no folder with files; nothing is saved")
    earlier: set[str] = set().union(*views[: run.rank])
    capture = _lastgood.Capture()
    component = capture.component(COMPONENT, owner, "durable")
    files = []
    for path in sorted(set(views[run.rank]) - earlier):
        data = read_file(folder / path)
        pieces = _tensorfile.pieces(data) if path.endswith(".safetensors") else None
        files.append(File(path, data.nbytes, digest(data), pieces is not None))
        for piece in pieces or _tensorfile.opaque(data.nbytes):
            _declare(capture, component, path, piece, data)
    tree = {"kind": KIND, "name": folder.name, "files": [asdict(file) for file in files]}
    capture.blob(component, _state.TREE, _state.stored_tree(tree), False)
    capture.metadata("lastgood.python", _lastgood.__version__)
    # What led to the checkpoint is recorded before it.
    run._recorder_flush()
    # The files' bytes are in memory that nobody else has: they may be copied behind the call.
    return SaveHandle(run, run._native.save(step, capture, True))


def _declare(capture: Any, component: int, path: str, piece: _tensorfile.Piece, data: Any) -> None:
    address = _memory.of_numpy(data).address + piece.begin
    shape = list(piece.shape)
    capture.tensor(
        component,
        path + piece.name,
        piece.dtype,
        shape,
        [0] * len(shape),
        shape,
        address,
        piece.end - piece.begin,
        data,
        "shard",
    )


def stored(run: Run, owner: str, damaged: set[int]) -> Iterator[Stored]:
    """The folders of ``owner`` that the run can go back to, best first: those marked good, then the others, the newest
    of each first. Whoever resumes reads every byte, so that one which nobody has verified yet is no worse than another.
    ``damaged`` gets the steps of those whose list of files is damaged."""
    usable = [known for known in run.history() if known.standing != "bad" and not known.expired]
    for known in sorted(reversed(usable), key=lambda known: known.standing != "good"):
        try:
            yield stored_in(run, owner, run._native.find(f"id:{known.id}"))
        except Corrupt as error:
            damaged.add(known.step)
            reject(run, known.id, error)


def reject(run: Run, checkpoint: str, error: Corrupt) -> None:
    """Marks a damaged checkpoint bad.

    Raises:
        Corrupt: if there are several ranks, which go back together in their next start.
    """
    run.mark(f"id:{checkpoint}", "bad", str(error))
    if run.world_size > 1:
        raise error


def stored_in(run: Run, owner: str, checkpoint: Any) -> Stored:
    """The folder of ``owner`` in a checkpoint.

    Raises:
        Incompatible: if it holds something else.
        Corrupt: if its list of files is damaged.
    """
    held = {(name, of) for name, of, _ in checkpoint.components()}
    if held != {(COMPONENT, owner)}:
        found = ", ".join(f"{name} of {of}" for name, of in sorted(held))
        raise Incompatible(
            f"checkpoint {checkpoint.id[:16]} of step {checkpoint.step} holds {found}, no checkpoint folder of "
            f"{owner}; give this run a name of its own"
        )
    targets = _lastgood.Targets()
    ranks = range(checkpoint.world_size)
    numbers = [targets.blob(COMPONENT, f"{_state.TREE}@rank{rank}") for rank in ranks]
    run._native.read(checkpoint, targets)
    files: list[File] = []
    folder = ""
    for number in numbers:
        try:
            tree = json.loads(targets.take(number))
            if tree["kind"] != KIND:
                raise ValueError(f"its kind is {tree['kind']!r}")
            folder = folder or str(tree["name"])
            files += [File(**file) for file in tree["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Incompatible(
                f"checkpoint {checkpoint.id[:16]}: its list of files is none of this version: {error!r}"
            ) from None
    for name in (folder, *(file.path for file in files)):
        path = Path(name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or not path.parts
            or len(Path(folder).parts) != 1
        ):
            raise Incompatible(
                f"checkpoint {checkpoint.id[:16]} names what is not in its folder: {name!r}"
            )
    if not all(type(file.bytes) is int and file.bytes >= 0 for file in files) or (
        sum(file.bytes for file in files) > checkpoint.bytes
    ):
        raise Incompatible(
            f"checkpoint {checkpoint.id[:16]}: its list of files tells of more than the {checkpoint.bytes} bytes that "
            "it holds; no version of lastgood wrote it"
        )
    return Stored(checkpoint, folder, tuple(sorted(files, key=lambda file: file.path)))


def difference(stored: Stored, folder: Path) -> str | None:
    """What differs first between ``folder`` and what was stored; None if every byte is the same."""
    there = files_in(folder)
    if not there:
        return "it is not there"
    for file in stored.files:
        if file.path not in there:
            return f"{file.path} is missing"
        if there[file.path] != file.bytes:
            return f"{file.path} has {there[file.path]} bytes, {file.bytes} were saved"
    extra = sorted(set(there) - {file.path for file in stored.files})
    if extra:
        return f"{extra[0]} was not saved with it"
    for file in stored.files:
        if digest(read_file(folder / file.path)) != file.digest:
            return f"the bytes of {file.path} are not those that were saved"
    return None


def write(run: Run, stored: Stored, folder: Path, beside: Path) -> None:
    """Writes the folder back: under a name in ``beside`` first, synced, then renamed. ``folder`` must not be there.

    Raises:
        Corrupt: if what is stored is damaged; nothing is left behind then.
    """
    work = beside / f"_lastgood-writing-{folder.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        for file in stored.files:
            path = work / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                out.write(memoryview(_read(run, stored, file)))
                out.flush()
                os.fsync(out.fileno())
        for base, _, _ in os.walk(work):
            sync_folder(Path(base))
        work.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(run: Run, stored: Stored, file: File) -> Any:
    """The bytes of one file: verified by the engine as they are read, and as a whole here."""
    import numpy

    data = numpy.empty(file.bytes, numpy.uint8)
    targets = _lastgood.Targets()
    base = _memory.of_numpy(data).address
    if file.tensors:
        _read_tensors(run, stored, file, data, targets, base)
    else:
        for piece in _tensorfile.opaque(file.bytes):
            _target(targets, file.path, piece, base, data)
    run._native.read(stored.checkpoint, targets)
    if digest(data) != file.digest:
        raise Corrupt(
            f"{file.path} is put together from verified parts and is not what was saved; report this"
        )
    return data


def _read_tensors(run: Run, stored: Stored, file: File, data: Any, targets: Any, base: int) -> None:
    """The header says where the tensors lie, so it is read first."""
    wanted = (COMPONENT, file.path + _tensorfile.HEADER)
    for component, name, _, shape, _ in stored.checkpoint.tensors():
        if (component, name) == wanted and len(shape) == 1 and shape[0] <= file.bytes:
            break
    else:
        raise Incompatible(
            f"checkpoint {stored.checkpoint.id[:16]} has no header of {file.path}; no version of lastgood wrote it"
        )
    first = _lastgood.Targets()
    _target(first, file.path, _tensorfile.header(shape[0]), base, data)
    run._native.read(stored.checkpoint, first)
    pieces = _tensorfile.pieces(data)
    if pieces is None:
        raise Corrupt(f"{file.path}: the stored header does not describe {file.bytes} bytes")
    for piece in pieces:
        _target(targets, file.path, piece, base, data)


def _target(targets: Any, path: str, piece: _tensorfile.Piece, base: int, owner: Any) -> None:
    shape = list(piece.shape)
    targets.tensor(
        COMPONENT,
        path + piece.name,
        piece.dtype,
        shape,
        [0] * len(shape),
        shape,
        base + piece.begin,
        piece.end - piece.begin,
        owner,
    )


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` survive a loss of power."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def set_aside(folder: Path, reason: str, beside: Path) -> Path:
    """Moves a folder out of its library's sight, into a folder of ``beside``, with the reason in a text file. Nothing
    is deleted."""
    shelf = beside / "_lastgood-quarantine"
    shelf.mkdir(exist_ok=True)
    number = 0
    while (aside := shelf / f"{folder.name}.{number}").exists():
        number += 1
    folder.rename(aside)
    (shelf / f"{folder.name}.{number}.txt").write_text(f"{reason}\n", encoding="utf-8")
    sync_folder(shelf)
    sync_folder(folder.parent)
    return aside
