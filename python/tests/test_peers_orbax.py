"""P2: a flipped bit in a file that orbax wrote is restored as a wrong array; in ours it is found."""

from __future__ import annotations

import logging
import os
import pathlib
import warnings
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax.numpy as jnp
import lastgood as lg
import numpy as np
import orbax.checkpoint as ocp
import pytest

logging.getLogger("absl").setLevel(logging.ERROR)
FLIPS = 8


def weights(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal((256, 1024)).astype(np.float32)


def largest(folder: pathlib.Path, without: set[pathlib.Path]) -> pathlib.Path:
    files = {p for p in folder.rglob("*") if p.is_file()} - without
    return max(files, key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path, i: int) -> tuple[int, int]:
    """Flips one bit, the ``i``-th of `FLIPS`, and gives what takes it back."""
    place = path.stat().st_size * (2 * i + 1) // (2 * FLIPS)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << i % 8)]))
    return place, byte


def back(path: pathlib.Path, place: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))


def judge(manager: Any, folder: pathlib.Path, step: int | None) -> str:
    """What a restore gives: ``right``, ``wrong`` without a word, or the error's name."""
    try:
        with warnings.catch_warnings(), manager(folder) as mngr:
            warnings.simplefilter("error", lg.SaveWarning)
            found = np.asarray(
                mngr.restore(step, args=ocp.args.StandardRestore({"w": jnp.zeros((256, 1024))}))[
                    "w"
                ]
            )
    except (Exception, lg.SaveWarning) as error:
        return type(error).__name__
    return "right" if found.tobytes() == weights(2).tobytes() else "wrong"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_flipped_bit_is_restored_by_orbax_and_found_by_ours(tmp_path: pathlib.Path) -> None:
    found: dict[str, list[str]] = {}
    newest: list[str] = []
    for name, manager in (
        ("orbax", ocp.CheckpointManager),
        ("lastgood", lg.orbax.CheckpointManager),
    ):
        folder = tmp_path / name
        with manager(folder) as mngr:
            mngr.save(1, args=ocp.args.StandardSave({"w": jnp.asarray(weights(1))}))
            mngr.wait_until_finished()
            before = {p for p in folder.rglob("*") if p.is_file()}
            mngr.save(2, args=ocp.args.StandardSave({"w": jnp.asarray(weights(2))}))
        assert judge(manager, folder, 2) == "right"
        data = largest(folder, before)
        assert data.stat().st_size > 900_000
        found[name] = []
        for i in range(FLIPS):
            undo = flip(data, i)
            found[name].append(judge(manager, folder, 2))
            if name == "lastgood":
                newest.append(judge(manager, folder, None))
            back(data, *undo)
        assert judge(manager, folder, 2) == "right"
    # As of orbax-checkpoint 0.12.8; nothing above its key-value store checks the bytes of an array.
    assert found["orbax"].count("wrong") >= FLIPS // 2, found
    assert found["lastgood"] == ["Corrupt"] * FLIPS
    assert newest == ["SaveWarning"] * FLIPS, "the step before it is restored, and that is said"


def test_going_back_gives_the_step_before(tmp_path: pathlib.Path) -> None:
    with lg.orbax.CheckpointManager(tmp_path) as mngr:
        first: set[pathlib.Path] = set()
        for step in (1, 2):
            mngr.save(step, args=ocp.args.StandardSave({"w": jnp.asarray(weights(step))}))
            mngr.wait_until_finished()
            first = first or {p for p in tmp_path.rglob("*") if p.is_file()}
        data = largest(tmp_path, first)
        flip(data, 3)
    with lg.orbax.CheckpointManager(tmp_path) as mngr:
        with pytest.warns(lg.SaveWarning, match="went back to step 1"):
            found = mngr.restore(None)
        assert np.asarray(found["w"]).tobytes() == weights(1).tobytes()
        assert mngr.all_steps() == [1]
        mngr.save(2, args=ocp.args.StandardSave({"w": jnp.asarray(weights(3))}))
    with lg.orbax.CheckpointManager(tmp_path) as mngr:
        assert np.asarray(mngr.restore(2)["w"]).tobytes() == weights(3).tobytes()
    with lg.open(tmp_path) as run:
        assert [c.standing for c in run.history()] == ["committed", "bad", "committed"]
