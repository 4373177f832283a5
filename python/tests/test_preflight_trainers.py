"""Whoever goes on from a checkpoint by a trainer, or by DCP, asks first whether this process computes as the one that
saved; whoever only reads one is told at most."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import fsspec
import lastgood as lg
import pytest
import torch
import torch.distributed.checkpoint as dcp
import trainers
from lastgood import _folders, _peers, _preflight, _resume
from lastgood._peers import Peers
from lastgood._state import World
from lastgood.torch import _dcp
from test_replay_trainers import Training, command, files_of, place, tool

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

KEY = "env.OMP_SCHEDULE"
OTHER = {"OMP_SCHEDULE": "static,7"}
TOLD = f"{KEY} was nothing, is static,7"
HF = Training("small_hf.py", ("--block",), 12, (3, 6, 9, 12))
LIGHTNING = Training("small_lightning.py", ("one",), 16, (3, 6, 9, 12, 15))
ACCELERATE = Training("small_accelerate.py", (), 12, (3, 6, 9, 12))
SEVERAL = [
    HF,
    Training("small_lightning.py", ("ddp",), 16, (3, 6, 9, 12, 15)),
    Training("small_lightning.py", ("fsdp2",), 16, (3, 6, 9, 12, 15)),
    ACCELERATE,
]


def name(training: Training) -> str:
    return "-".join(
        [training.program.removeprefix("small_").removesuffix(".py"), *training.arguments]
    )


def killed(training: Training, out: Path, ranks: int = 1) -> None:
    """Leaves a run that was killed behind its second checkpoint."""
    last = ["--kill-at", 8, "--kill-rank", ranks - 1]
    words = [*training.arguments, "--out", out, *last]
    codes = trainers.run(training.program, out.parent / "log", *words, ranks=ranks)
    assert codes[-1] == -9, trainers.output(out.parent / "log")


def again(training: Training, out: Path, **env: str) -> tuple[int, str]:
    """Exit code and output of the next start."""
    log = out.parent / "log"
    words = [*training.arguments, "--out", out]
    (code,) = trainers.run(training.program, log, *words, more={0: env})
    return code, trainers.output(log)


def folders_of(out: Path) -> dict[str, tuple[int, bytes]]:
    """What the trainer has there, without the store."""
    kept = {path: file for path, file in files_of(out).items()}
    stores = (str(out / "_lastgood"), str(out / "store"))
    return {path: file for path, file in kept.items() if not path.startswith(stores)}


@pytest.mark.parametrize("training", [HF, LIGHTNING, ACCELERATE], ids=name)
def test_another_setting_is_refused_warned_of_or_accepted(
    tmp_path: Path, training: Training
) -> None:
    out = tmp_path / "out"
    killed(training, out)
    # It would be written back, if it were gone on from.
    shutil.rmtree(out / "checkpoint-6", ignore_errors=True)
    before = folders_of(out)
    code, said = again(training, out, **OTHER)
    assert code == 1 and "Incompatible: checkpoint" in said and TOLD in said, said
    assert f"--accept {KEY} --reason" in said, said
    assert folders_of(out) == before, "nothing was changed"
    warned, accepted = tmp_path / "warned", tmp_path / "accepted"
    for copy in (warned, accepted):
        shutil.copytree(out, copy)
    code, said = again(training, warned, LASTGOOD_PREFLIGHT="warn", **OTHER)
    assert code == 0 and f"goes on although {TOLD}" in said, said
    assert trainers.began(warned) == 6
    given = json.dumps({"keys": ["env."], "reason": "the new queue sets it"})
    code, said = again(training, accepted, LASTGOOD_ACCEPT=given, **OTHER)
    assert code == 0 and "although" not in said, said
    assert "the new queue sets it" in tool("log", *place(accepted))
    assert again(training, out)[0] == 0 and trainers.began(out) == 6


@pytest.mark.parametrize("training", SEVERAL, ids=name)
def test_if_one_rank_differs_all_are_refused_and_none_waits(
    tmp_path: Path, training: Training
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    killed(training, out, 2)
    # It would be written back, if it were gone on from.
    shutil.rmtree(out / "checkpoint-6", ignore_errors=True)
    before = folders_of(out)
    words = [*training.arguments, "--out", out]
    # A rank that waits would be killed.
    codes = trainers.run(training.program, log, *words, ranks=2, more={1: OTHER})
    said = [trainers.output(log, rank) for rank in range(2)]
    assert codes == [1, 1], said
    assert "Incompatible: rank 1: checkpoint" in said[0] and TOLD in said[0], said[0]
    assert "Incompatible: checkpoint" in said[1] and TOLD in said[1], said[1]
    assert folders_of(out) == before


@pytest.mark.parametrize(
    ("training", "ranks"),
    [(HF, 1), (LIGHTNING, 1), (ACCELERATE, 1), (HF, 2), (SEVERAL[1], 2)],
    ids=["hf", "lightning", "accelerate", "hf-2", "lightning-2"],
)
def test_the_job_is_asked_by_the_command(tmp_path: Path, training: Training, ranks: int) -> None:
    out = tmp_path / "out"
    killed(training, out, ranks)
    before = files_of(out)
    words = [
        "preflight",
        "--json",
        *place(out),
        "--ranks",
        str(ranks),
        "--",
        *command(training, out),
    ]
    said = json.loads(tool(*words))
    assert said["verdict"] == "passed" and len(said["ranks"]) == ranks, said
    assert all(rank["memory_needed"] > 0 and not rank["problems"] for rank in said["ranks"])
    said = json.loads(tool(*words, code=5, **OTHER))
    assert len(said["ranks"]) == ranks
    for rank in said["ranks"]:
        found = [each["key"] for each in rank["findings"] if each["effect"] != "information"]
        assert found == [KEY], said
    assert files_of(out) == before, "it writes nothing, neither into the store nor beside it"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Each test is as a process of its own."""
    yield
    started_anew()


def started_anew() -> None:
    for run in _resume._opened.values():
        run.close()
    _resume._opened.clear()
    _resume._given.clear()
    _preflight._told.clear()
    _dcp._process = _dcp._Process()


def folder_of(out: Path, owner: str) -> None:
    """A checkpoint of ``owner`` that is stored alone, and not there."""
    folder = out / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "weights.dat").write_bytes(b"weights")
    run = _resume.open_run(str(out / "_lastgood"), None)
    _folders.ingest(run, folder, 2, owner, Peers(World())).durable.result()
    shutil.rmtree(folder)
    started_anew()


def of_hf(out: Path, **asked: Any) -> str | None:
    return lg.hf.last_good(out, **asked)


def of_accelerate(out: Path, **asked: Any) -> str | None:
    import accelerate

    return lg.accelerate.attach(accelerate.Accelerator(cpu=True), out, **asked).last_good()


@pytest.mark.parametrize(
    ("owner", "resume"), [("transformers", of_hf), ("accelerate", of_accelerate)]
)
def test_a_trainer_says_what_is_done_as_lg_open_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, resume: Callable[..., str | None]
) -> None:
    folder_of(tmp_path, owner)
    monkeypatch.setenv(*next(iter(OTHER.items())))
    folder = str(tmp_path / "checkpoint-2")
    with pytest.raises(lg.Incompatible, match=TOLD):
        resume(tmp_path)
    assert not Path(folder).exists()
    # The same process asks again, otherwise.
    with pytest.warns(RuntimeWarning, match=f"goes on although {TOLD}"):
        assert resume(tmp_path, preflight="warn") == folder
    assert resume(tmp_path, preflight="off") == folder
    with pytest.raises(lg.Incompatible):
        resume(tmp_path, preflight="refuse")
    assert resume(tmp_path, preflight="refuse", accept={KEY: "another queue"}) == folder
    started_anew()
    assert resume(tmp_path) == folder, "it is in the ledger"
    with pytest.raises(lg.Invalid, match="perhaps"):
        resume(tmp_path, preflight="perhaps")


def test_a_folder_on_the_disk_alone_tells_of_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    folder_of(tmp_path, "accelerate")
    monkeypatch.setenv(*next(iter(OTHER.items())))
    newer = tmp_path / "checkpoint-3"
    newer.mkdir()
    (newer / "weights.dat").write_bytes(b"weights")
    keeper = lg.accelerate.attach(accelerate.Accelerator(cpu=True), tmp_path)
    with pytest.warns(RuntimeWarning, match="is not whole in the store, and is whole here"):
        assert keeper.last_good() == str(newer)


def test_lightning_refuses_to_fit_and_warns_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.trainer.states import TrainerFn

    store, path = tmp_path / "store", str(tmp_path / "5.ckpt")
    lg.lightning.CheckpointIO(store).save_checkpoint({"global_step": 5}, path)
    started_anew()
    monkeypatch.setenv(*next(iter(OTHER.items())))
    io = lg.lightning.CheckpointIO(store)
    with pytest.raises(lg.Incompatible, match=TOLD):
        io.load_checkpoint("lastgood:last-good")
    # A file may be read by anyone; that it is gone on from, `LastGood` says.
    with pytest.warns(RuntimeWarning, match=f"was saved by a process.*{TOLD}"):
        assert io.load_checkpoint(path)["global_step"] == 5
    keeper = lg.lightning.LastGood(store)

    def load(purpose: str, what: str) -> Any:
        wrapped = SimpleNamespace(checkpoint_io=io)
        strategy = SimpleNamespace(checkpoint_io=wrapped)
        trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn(purpose)), strategy=strategy)
        return keeper._load(trainer, io.load_checkpoint, what)

    for what in (path, "lastgood:last-good"):
        with pytest.raises(lg.Incompatible, match=TOLD):
            load("fit", what)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load("test", what)["global_step"] == 5, "it was told before"
    io = lg.lightning.CheckpointIO(store, accept={KEY: "another queue"})
    assert io.load_checkpoint("lastgood:last-good")["global_step"] == 5
    assert load("fit", path)["global_step"] == 5, "it is in the ledger"
    with pytest.raises(lg.Invalid, match="perhaps"):
        lg.lightning.LastGood(store, preflight="perhaps")


def saved_by_dcp(store: Path) -> None:
    lg.torch.save({"w": torch.ones(3)}, lg.torch.Writer(store), checkpoint_id=1)
    started_anew()


def test_dcp_refuses_who_writes_the_run_and_warns_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_by_dcp(tmp_path)
    monkeypatch.setenv(*next(iter(OTHER.items())))

    def load(**asked: Any) -> torch.Tensor:
        state = {"w": torch.zeros(3)}
        try:
            lg.torch.load(state, lg.torch.Reader(tmp_path, **asked))
        except lg.Incompatible:
            assert state["w"].sum() == 0, "nothing was changed"
            raise
        return state["w"]

    with pytest.warns(RuntimeWarning, match=f"was saved by a process.*{TOLD}"):
        assert load().sum() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert load().sum() == 3, "each difference is told once"
    with pytest.raises(lg.Incompatible, match=TOLD):
        load(preflight="refuse")
    lg.torch.Writer(f"{tmp_path}/")
    with pytest.raises(lg.Incompatible, match=f"--accept {KEY}"):
        load()
    with pytest.warns(RuntimeWarning, match=f"goes on although {TOLD}"):
        load(preflight="warn")
    assert load(accept={KEY: "another queue"}).sum() == 3
    assert load().sum() == 3, "it is in the ledger"
    with pytest.raises(lg.Invalid, match="perhaps"):
        lg.torch.Reader(tmp_path, preflight="perhaps")


def test_files_of_dcp_are_read_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lastgood.fs import LastgoodFileSystem
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    fsspec.register_implementation("lastgood", LastgoodFileSystem, clobber=True)
    monkeypatch.setenv("LASTGOOD_STORE", str(tmp_path))
    path = "lastgood://run/step-4"
    dcp.save({"w": torch.ones(3)}, storage_writer=FsspecWriter(path))
    started_anew()
    monkeypatch.setenv(*next(iter(OTHER.items())))
    state = {"w": torch.zeros(3)}
    with pytest.warns(RuntimeWarning, match=f"of step 4 was saved by a process.*{TOLD}"):
        dcp.load(state, storage_reader=FsspecReader(path))
    assert state["w"].sum() == 3


class Told(dict[str, bytes]):
    """What ranks tell each other, as the store of a process group."""

    def set(self, key: str, text: str) -> None:
        self[key] = text.encode()

    def wait(self, keys: list[str], timeout: Any) -> None:
        until = time.monotonic() + 10
        while not all(key in self for key in keys):
            assert time.monotonic() < until, f"nobody says {keys}"
            time.sleep(0.001)

    def get(self, key: str) -> bytes:
        self.wait([key], None)
        return self[key]


@pytest.mark.parametrize("way", ["in_turn", "agree"])
@pytest.mark.parametrize("failing", [0, 1])
def test_whatever_one_rank_fails_with_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, way: str, failing: int
) -> None:
    # Each rank of one process is the first of a node, and in its first round.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(_peers, "_rounds", itertools.repeat(0))
    told, ended = Told(), {}

    def work(rank: int) -> int:
        if rank == failing:
            raise OSError("no space left")
        return rank

    def run(rank: int) -> None:
        peers = Peers(World())
        peers.world, peers._store = World(rank, 2), told
        try:
            ended[rank] = getattr(peers, way)("work", lambda: work(rank))
        except Exception as error:
            ended[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(ended[failing], OSError)
    other = ended[1 - failing]
    assert isinstance(other, lg.Incompatible) and f"rank {failing}: no space" in str(other), other


PROGRAM = """
import sys
import lastgood as lg
import torch
writer = lg.torch.Writer()
state = {"w": torch.zeros(3)}
if sys.argv[1:] == ["first"]:
    lg.torch.save(state, writer, checkpoint_id=1)
elif sys.argv[1:] != ["blind"]:
    lg.torch.load(state, lg.torch.Reader())
    raise AssertionError("a preflight must not come here")
lg.torch.save(state, writer, checkpoint_id=2)
"""


def test_a_job_of_dcp_is_asked_by_the_command(tmp_path: Path) -> None:
    program, store = tmp_path / "train.py", tmp_path / "store"
    program.write_text(PROGRAM)
    env = forks.environment(LASTGOOD_STORE=str(store))
    first = [sys.executable, str(program), "first"]
    code, said = forks.run("torch", first, tmp_path / "log", env=env)
    assert code == 0, said
    before = files_of(store)
    asked = ["preflight", "--json", "--store", str(store), "--run", "default", "--"]
    words = [*asked, forks.python("torch"), str(program)]
    (rank,) = json.loads(tool(*words))["ranks"]
    assert rank["memory_needed"] > 0 and not rank["problems"]
    said = json.loads(tool(*words, code=5, **OTHER))
    assert any(found["key"] == KEY for found in said["ranks"][0]["findings"]), said
    # A job that saves before it looks is ended, and saves nothing.
    tool(*words, "blind", code=1)
    assert files_of(store) == before
