"""A forked child, as a worker of a `DataLoader` is, has none of its parent's threads: it must neither wait for them nor
tear down what is the parent's."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
from lastgood import _lastgood

SECONDS = 20


def in_a_fork(work: Callable[[], object]) -> object:
    """What ``work`` gives in a forked child, as text."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    limit = time.monotonic() + SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the forked child hangs")
        time.sleep(0.01)
    with os.fdopen(reads) as pipe:
        return pipe.read()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with lg.open(tmp_path, {"x": {"y": 1}}) as run:
        run.save(1, block=True)
    return tmp_path


def files(store: Path) -> Any:
    fsspec = pytest.importorskip("fsspec")
    found = fsspec.filesystem("lastgood", store=str(store))
    found.pipe_file("files/a", b"parent")
    assert found.cat_file("files/a") == b"parent"
    return found


OPENED: dict[str, Callable[[Path], Any]] = {
    "a run": lambda store: lg.open(store, {"x": {"y": 1}}),
    "a reader": lambda store: _lastgood.Reader(str(store), {}, "default"),
    "a file system": files,
}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("what", OPENED)
def test_the_child_may_drop_what_its_parent_opened(store: Path, what: str, closed: bool) -> None:
    held = {"it": OPENED[what](store)}
    if closed and hasattr(held["it"], "close"):
        held["it"].close()

    def drop() -> str:
        held.clear()
        # What hangs in cycles goes as well, and fsspec clears its cache by itself.
        gc.collect()
        return "dropped"

    assert in_a_fork(drop) == "dropped"
    # The parent's is whole.
    if what == "a file system":
        assert held["it"].cat_file("files/a") == b"parent"
    elif what == "a reader":
        assert len(held["it"].history()) == 1
    elif not closed:
        held["it"].save(2, block=True)
        held["it"].close()


def test_the_child_reads_with_a_reader_of_its_parent(store: Path) -> None:
    reader = _lastgood.Reader(str(store), {}, "default")
    assert in_a_fork(lambda: [row["step"] for row in reader.history()]) == "[1]"
    assert in_a_fork(lambda: in_a_fork(lambda: reader.find("latest").step)) == "1"


def test_the_child_reads_and_writes_files(store: Path) -> None:
    found = files(store)
    assert in_a_fork(lambda: found.cat_file("files/a")) == "b'parent'"
    assert in_a_fork(lambda: found.pipe_file("files/b", b"child")) == "None"
    found.invalidate_cache()
    assert found.cat_file("files/b") == b"child"
    found.pipe_file("files/c", b"parent again")
    assert found.cat_file("files/c") == b"parent again"


def test_the_child_is_told_that_the_run_is_its_parents(store: Path) -> None:
    with lg.open(store, {"x": {"y": 1}}) as run:
        handle = run.save(2)
        for call in (lambda: run.save(3), run.restore, lambda: handle.durable.result()):
            assert "Closed: " in str(in_a_fork(call))
        native = run._native
        for call in (native.history, native.close):
            assert "fork" in str(in_a_fork(call))
        handle.durable.result()
    with lg.open(store, {"x": {"y": 1}}) as run:
        assert [c.step for c in run.history()] == [1, 2]
