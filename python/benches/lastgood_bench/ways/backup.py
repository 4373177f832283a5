"""Backup tools over dumped files, which is how people keep many checkpoints."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from lastgood_bench.tensors import Flat, Layout
from lastgood_bench.ways.base import Way


class Backup(Way):
    """Dumps by safetensors, then backs up the dump; what is restored is loaded by safetensors."""

    modules = ("safetensors.torch",)
    syncs, differences = True, True
    in_w1, in_w3, in_w4 = False, False, False
    program: ClassVar[str]
    #: Debian's package of it.
    debian: ClassVar[str]

    @classmethod
    def absent(cls) -> str | None:
        if shutil.which(cls.program) is None:
            return f"{cls.program} is not installed: apt-get install {cls.debian}"
        return None

    @classmethod
    def versions(cls) -> dict[str, str]:
        if cls.absent() is not None:
            return {}
        option = "version" if cls.program == "restic" else "--version"
        told = subprocess.run([cls.program, option], capture_output=True, text=True, check=True)
        return {cls.program: told.stdout.split()[1]}

    def _call(self, *arguments: str, cwd: Path | None = None) -> None:
        known = {"RESTIC_PASSWORD": "bench", "BORG_BASE_DIR": str(self.folder / "own")}
        known |= {"RESTIC_CACHE_DIR": str(self.folder / "own")}
        ended = subprocess.run(
            [self.program, *arguments],
            env=os.environ | known,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"{self.program} {arguments[0]} failed: {ended.stderr.strip()}")

    @property
    def repository(self) -> str:
        """Where the backups are."""
        return str(self.folder / "repository")

    def _dump(self) -> Path:
        from safetensors.torch import save_file

        where = self.folder / "dump"
        where.mkdir(exist_ok=True)
        save_file(self.flat(), where / "state")
        return where

    def _loaded(self, number: int, into: Path) -> Flat:
        from safetensors.torch import load_file

        found = load_file(next(into.rglob("state")))
        return found

    def forget(self, number: int) -> None:
        """Later saves are made of it."""


class Restic(Backup):
    """`restic backup` with its defaults: encrypted, compressed by zstd, chunks by content."""

    name = "safetensors + restic"
    program, debian = "restic", "restic"

    def save(self, number: int) -> None:
        where = self._dump()
        if not Path(self.repository).exists():
            self._call("init", "-q", "-r", self.repository)
        self._call("backup", "-q", "-r", self.repository, "--tag", f"{number}", "state", cwd=where)

    def load(self, number: int, layout: Layout) -> Flat:
        into = self.folder / f"out{number}"
        options = ["-q", "-r", self.repository, "--tag", f"{number}", "--target", str(into)]
        self._call("restore", *options, "latest")
        return self._loaded(number, into)


class Borg(Backup):
    """`borg create` with its defaults (lz4, chunks by content) and without encryption."""

    name = "safetensors + borg"
    program, debian = "borg", "borgbackup"

    def save(self, number: int) -> None:
        where = self._dump()
        if not Path(self.repository).exists():
            self._call("init", "--encryption=none", self.repository)
        self._call("create", f"{self.repository}::{number}", "state", cwd=where)

    def load(self, number: int, layout: Layout) -> Flat:
        into = self.folder / f"out{number}"
        into.mkdir()
        self._call("extract", f"{self.repository}::{number}", cwd=into)
        return self._loaded(number, into)


WAYS: list[type[Way]] = [Restic, Borg]
