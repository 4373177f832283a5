"""torch.distributed.checkpoint through `lg.torch.Writer` and `lg.torch.Reader`."""

from __future__ import annotations

import collections
import io
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import children
import forks
import lastgood as lg
import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from _worlds import worlds
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SCENARIOS = [
    "reshards",
    "asynchronous",
    "no_collectives",
    "one_rank_fails",
    "one_rank_differs",
    "killed_writer",
    "killed_anywhere",
    "torn_writer",
    "damaged",
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    return worlds(tmp_path_factory.mktemp("worlds"), *SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_real_process_groups(ended: tuple[set[str], str], scenario: str) -> None:
    assert scenario in ended[0], ended[1][-8000:]


def state() -> dict[str, Any]:
    torch.manual_seed(7)
    return {
        "model": {
            "w": torch.randn(6, 5, dtype=torch.bfloat16),
            "strided": torch.randn(4, 6).t()[::2],
            "c128": torch.randn(3, dtype=torch.complex128),
            "scalar": torch.tensor(3, dtype=torch.int64),
            "none": torch.empty(0, 3),
        },
        "epoch": 3,
        "nan": float("inf"),
        "list": [1, (2, "x"), torch.ones(2)],
        "bytes": b"\x80raw",
        "stream": io.BytesIO(b"hello"),
        "ordered": collections.OrderedDict(a=1),
        "array": numpy.arange(6, dtype=numpy.int16).reshape(2, 3),
    }


def blank(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, -1)
    if isinstance(value, dict):
        return {k: blank(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(blank(v) for v in value)
    return None


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, io.BytesIO):
        return a.getvalue() == b.getvalue()
    if isinstance(a, numpy.ndarray):
        return bool(a.dtype == b.dtype and (a == b).all())
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("flat", [True, False])
def test_every_kind_of_value_comes_back_and_nothing_is_pickled(tmp_path: Path, flat: bool) -> None:
    saved = state()
    writer = lg.torch.Writer(tmp_path)
    planner = DefaultSavePlanner(flat, flat)
    kept = saved if flat else {k: v for k, v in saved.items() if k not in ("model",)}
    dcp.save(kept, checkpoint_id="step-7", storage_writer=writer, planner=planner)
    found = blank(kept)
    reader = lg.torch.Reader(tmp_path)
    dcp.load(found, storage_reader=reader, planner=DefaultLoadPlanner(flat, flat))
    assert same(found, kept)
    assert reader.loaded is not None and reader.loaded[1] == 7
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        stored = path.read_bytes()
        assert b"PK\x03\x04" not in stored and b"torch._utils" not in stored, path


def test_steps_are_named_by_checkpoint_ids(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    for value, name in enumerate([3, "step-5", "runs/x/checkpoint_9", None]):
        lg.torch.save({"v": value}, writer, checkpoint_id=name)
    reader = lg.torch.Reader(tmp_path)
    for step, value in ((3, 0), (5, 1), (9, 2), (10, 3)):
        found = {"v": -1}
        lg.torch.load(found, reader, checkpoint_id=step)
        assert found == {"v": value}
    with pytest.raises(lg.Invalid, match="names no step"):
        lg.torch.save({"v": 0}, writer, checkpoint_id="final")
    with pytest.raises(lg.NotFound):
        lg.torch.load({"v": 0}, reader, checkpoint_id=77)


class Custom:
    pass


class Pickling(DefaultSavePlanner):
    def transform_object(self, write_item: Any, object: Any) -> Any:
        return super().transform_object(write_item, object)


class OwnBytes(DefaultSavePlanner):
    def transform_object(self, write_item: Any, object: Any) -> Any:
        return object if isinstance(object, torch.Tensor) else io.BytesIO(repr(object).encode())


class OwnLoad(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()


def test_what_needs_pickle_is_refused_by_name(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    with pytest.raises(
        lg.Invalid, match=r"deep\.custom.*cannot be stored without pickle.*lg\.register"
    ):
        lg.torch.save({"deep": {"custom": Custom()}}, writer, checkpoint_id=1)
    with pytest.raises(lg.Invalid, match=r"epoch: Pickling pickles it"):
        lg.torch.save({"epoch": 1}, writer, checkpoint_id=1, planner=Pickling())
    lg.torch.save({"epoch": 1}, writer, checkpoint_id=1, planner=OwnBytes())
    found: dict[str, Any] = {"epoch": 0}
    lg.torch.load(found, lg.torch.Reader(tmp_path), planner=OwnLoad())
    assert found == {"epoch": b"1"}


def test_loading_disturbs_no_job_and_goes_on_while_it_saves(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    for step in (1, 2, 3):
        lg.torch.save({"x": torch.full((3,), float(step))}, writer, checkpoint_id=step)
        found = {"x": torch.zeros(3)}
        lg.torch.load(found, lg.torch.Reader(tmp_path))
        assert found["x"].tolist() == [step] * 3
    with lg.open(tmp_path, {}) as run:
        assert [c.attempt for c in run.history()] == [1, 1, 1]


def test_a_job_that_was_replaced_stays_fenced(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    lg.torch.save({"x": 1}, writer, checkpoint_id=1)
    lg.open(tmp_path, {}).close()
    for _ in range(2):
        with pytest.raises(lg.Fenced):
            lg.torch.save({"x": 2}, writer, checkpoint_id=2)


def test_asynchronous_saves_warn_and_surface(tmp_path: Path) -> None:
    writer = lg.torch.Writer(tmp_path)
    futures = []
    for step in range(4):
        futures.append(
            lg.torch.async_save({"x": torch.full((1000,), float(step))}, writer, checkpoint_id=step)
        )
    for future in futures:
        future.result()
    bad = lg.torch.async_save({"x": torch.ones(2), "bad": Custom()}, writer, checkpoint_id=9)
    assert isinstance(bad.exception(), lg.Invalid)
    with pytest.warns(lg._run.SaveWarning, match="bad is a"):
        lg.torch.async_save({"x": torch.ones(2)}, writer, checkpoint_id=10).result()
    found = {"x": torch.zeros(1000)}
    lg.torch.load(found, lg.torch.Reader(tmp_path), checkpoint_id=2)
    assert found["x"].unique().tolist() == [2.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.close()


def test_what_others_mark_meanwhile_is_not_taken_for_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers find the manifest of the last good checkpoint damaged; the second is late to say so."""
    writer = lg.torch.Writer(tmp_path)
    for step in (1, 2):
        lg.torch.save({"x": step}, writer, checkpoint_id=step)
    writer.close()
    native = lg._lastgood.Reader(str(tmp_path), {}, "default")
    manifest = tmp_path / f"runs/default/checkpoints/{native.find('2').id}.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b"default", b"defaulT", 1))

    early, late = lg.torch.Reader(tmp_path), lg.torch.Reader(tmp_path)
    go_back = late._go_back

    def after_the_other(*about: Any) -> None:
        monkeypatch.undo()
        lg.torch.load({"x": 0}, early)
        go_back(*about)

    monkeypatch.setattr(late, "_go_back", after_the_other)
    found = {"x": 0}
    with pytest.warns(RuntimeWarning, match="the one before it is loaded"):
        lg.torch.load(found, late)
    assert early.loaded == late.loaded and found == {"x": 1}
    assert [row["standing"] for row in native.history()] == ["committed", "bad"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"chunk_bytes": 1}, "chunk_bytes"),
        ({"compression": "gzip"}, "compression"),
        ({"chunks": 65536}, "no setting"),
    ],
)
def test_a_wrong_setting_is_told_by_the_writer(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(lg.Invalid, match=said):
        lg.torch.Writer(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_writer_is_pickled_for_a_process_that_saves(tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(lg.torch.Writer(tmp_path, chunk_bytes=65536)))
    reader = pickle.loads(pickle.dumps(lg.torch.Reader(tmp_path, at=3)))
    lg.torch.save({"x": 5}, writer, checkpoint_id=3)
    found = {"x": 0}
    lg.torch.load(found, reader)
    assert found == {"x": 5}


IN_A_PROCESS = """
import os, sys, warnings, torch
import lastgood as lg, torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType as T
warnings.simplefilter("ignore")

def main(folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    writer = lg.torch.Writer(f"{folder}/store")
    for step in (1, 2, 3):
        x = torch.full((50000,), float(step))
        future = lg.torch.async_save({"x": x, "s": step}, writer, checkpoint_id=step,
                                     async_checkpointer_type=T.PROCESS)
        x.fill_(-1.0)
    future.result()
    writer.close()
    lg.torch.save({"x": torch.full((50000,), 4.0), "s": 4}, writer, checkpoint_id=4)
    for step in (1, 2, 3, 4):
        found = {"x": torch.zeros(50000), "s": 0}
        lg.torch.load(found, lg.torch.Reader(f"{folder}/store"), checkpoint_id=step)
        assert found["x"].unique().tolist() == [step] and found["s"] == step, found
    print("well")
    dist.destroy_process_group()

if __name__ == "__main__":
    main(sys.argv[1])
"""


def run_program(folder: Path, text: str, *args: str) -> str:
    """What a program prints, in a process of its own."""
    program = folder / "program.py"
    program.write_text(text)
    command = [sys.executable, str(program), *args]
    return forks.run("torch", command, folder / "output", env=children.environment())[1]


def test_saves_by_a_process_of_its_own(tmp_path: Path) -> None:
    said = run_program(tmp_path, IN_A_PROCESS, str(tmp_path))
    assert "well" in said, said


def test_an_untold_failure_is_told_at_exit(tmp_path: Path) -> None:
    said = run_program(
        tmp_path,
        "import sys, warnings, lastgood as lg, torch.distributed.checkpoint as dcp\n"
        "warnings.simplefilter('ignore')\n"
        "dcp.async_save({'x': object()}, checkpoint_id=1, storage_writer=lg.torch.Writer(sys.argv[1]))\n",
        str(tmp_path / "store"),
    )
    assert "lastgood: the save of step 1 failed: x is a builtins.object" in said, said


def test_stock_calls_wrap_errors_and_ours_do_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match="without pickle"):
        dcp.save({"x": Custom()}, checkpoint_id=1, storage_writer=lg.torch.Writer(tmp_path))
    with pytest.raises(lg.LastgoodError):
        lg.torch.save({"x": Custom()}, lg.torch.Writer(tmp_path), checkpoint_id=1)
    assert issubclass(lg.LastgoodError, Exception)
    assert AsyncCheckpointerType.PROCESS is not None


def test_each_save_is_recorded_and_a_replay_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = lg.torch.Writer(tmp_path)
    for step in (3, 5):
        lg.torch.save({"w": torch.ones(4) * step}, writer, checkpoint_id=f"step-{step}")
    events = children.events(tmp_path)
    steps = [event for event in events if event["kind"] == "step"]
    assert [(e["step"], e["event"]) for e in steps] == [
        (3, {"checkpoint": "step-3"}),
        (5, {"checkpoint": "step-5"}),
    ]
    kinds = [event["kind"] for event in events]
    # The last one is told when the run is closed, or with the next save.
    assert "state.digest" in kinds and kinds.count("environment") == 1, kinds
    monkeypatch.setenv("LASTGOOD_REPLAY", children.replay_of(tmp_path))
    with pytest.raises(lg.Invalid, match=r"by lg.torch.Writer, which records its saves and not"):
        lg.torch.Writer(tmp_path)
    lg.torch.Writer(tmp_path, run="another")


def test_two_runs_are_compared_by_their_saves(tmp_path: Path) -> None:
    for run in ("one", "two"):
        writer = lg.torch.Writer(tmp_path, run=run)
        for step in (3, 5, 7):
            weights = torch.arange(8.0) * step
            weights[3] += run == "two" and step >= 5
            lg.torch.save({"w": weights}, writer, checkpoint_id=step)
    words = ["bisect", "--json", "--store", str(tmp_path), "--run", "one", "--against", "two"]
    command = [sys.executable, "-m", "lastgood", *words]
    ran = subprocess.run(command, env=children.environment(), capture_output=True, text=True)
    assert ran.returncode == 6, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert (said["step"], said["first"]["what"], said["equal_to"]) == (5, "dcp/w", 3), said
