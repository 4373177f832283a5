"""Whether files that another library wrote are whole, as far as their own formats can tell. Nothing is unpickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from lastgood import _folders, _tensorfile


def doubt(path: Path) -> str | None:
    """What speaks against the file; None if it is whole: JSON that parses, a safetensors file of exactly the length
    that its header says, a torch file whose entries all have their checksums."""
    if path.stat().st_size == 0:
        return f"{path.name} is empty"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            return f"{path.name} is no whole JSON: {error}"
    elif path.suffix == ".safetensors":
        if _tensorfile.pieces(_folders.read_file(path)) is None:
            return f"{path.name} is not as long as its header says, or no safetensors file"
    elif path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".distcp"):
        return _torch_doubt(path)
    return None


def _torch_doubt(path: Path) -> str | None:
    if path.suffix == ".distcp":
        return f"{path.name} has no checksum that could prove it whole"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"{path.name} is no whole torch file: {error}"
    return f"{path.name}: the checksum of {broken} does not match" if broken else None
