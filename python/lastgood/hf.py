"""Hugging Face `Trainer`: every checkpoint that it writes is kept in a run, and it resumes from the last good one.

    trainer = Trainer(…, callbacks=[lg.hf.LastGoodCallback()])
    trainer.train(resume_from_checkpoint=lg.hf.last_good(trainer.args.output_dir))

The trainer goes on to write, read and rotate its folders as ever. A folder counts once it is committed in the store:
what a crash leaves half written is set aside, and what is missing or damaged is written back. Each step of the
optimizer is recorded, so that it can be replayed; a replay writes its folders aside.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lastgood import _batches, _folders, _resume, _steps, _whole
from lastgood._handle import SaveHandle
from lastgood._lastgood import Closed, LastgoodError
from lastgood._peers import Peers
from lastgood._policy import Policy
from lastgood._run import Run
from lastgood._state import World

__all__ = ["LastGoodCallback", "last_good"]

_OWNER = "transformers"
_NAME = re.compile(r"checkpoint-(\d+)")
#: What the trainer leaves in a folder that a preemption kept it from finishing, and never reads.
_INCOMPLETE = "checkpoint-is-incomplete.txt"
#: What a log says that is of this process alone: how long something took, and the mean loss since it last said it,
#: or since it was started. Of each step the loss itself is recorded.
_OF_PROCESS = re.compile(r"loss|.*_runtime|.*_per_second")
_ARGUMENTS = "training_args.bin"
_STATE = "trainer_state.json"
#: What a checkpoint must have to be resumed from, one of each line.
_NEEDED = (
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "pytorch_model.bin",
    ),
    ("optimizer.pt",),
    ("scheduler.pt",),
    ("rng_state.pth", "rng_state_0.pth"),
    (_STATE,),
)


class LastGoodCallback(TrainerCallback):
    """Saves each finished ``checkpoint-N`` folder of a `Trainer` to a run: whole or not at all, deduplicated against
    the one before, read back and verified behind the training.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``, else the folder ``_lastgood`` in the output folder.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        block: return from a save only when it is committed.
        strict: a failed save ends the training; by default it warns and training goes on.
        verify: read every saved byte back, and mark the checkpoint verified.
        exact_batches: let random numbers of the data collator depend on nothing but the seed, the epoch and the
            batch, so that batches which the trainer fetched ahead are the same after a resume.
        policy: a `Policy` that says at which steps the trainer saves too, beside those of its arguments. With a
            ``grace`` time SIGTERM lets it save, and ends the process with `Policy.PREEMPTED`.

    With several ranks each stores the files that it alone sees; a save needs memory for the files of the folder.

    Example:
        >>> import lastgood as lg
        >>> lg.hf.LastGoodCallback("s3://bucket/runs", run="bert")
        lg.hf.LastGoodCallback(store='s3://bucket/runs', run='bert')
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        run: str | None = None,
        *,
        block: bool = False,
        strict: bool = False,
        verify: bool = True,
        exact_batches: bool = True,
        policy: Policy | None = None,
    ) -> None:
        self._store = None if store is None else os.fspath(store)
        self._name = run
        self._block = block
        self._strict = strict
        self._verify = verify
        self._exact_batches = exact_batches
        self._policy = policy
        self._ends = False
        self._collators: list[_batches.SeededCollator] = []
        self._pending: list[tuple[SaveHandle, str]] = []
        self._verifying: list[threading.Thread] = []
        self._run: Run | None = None
        self._steps = _steps.Steps()
        self._listened: Any = None
        self._replaced: Any = None
        self._output_dir: str | None = None

    def __repr__(self) -> str:
        return f"lg.hf.LastGoodCallback(store={self._store!r}, run={self._name!r})"

    def _open(self, args: Any, before: int | None = None) -> Run:
        place = _resume.place_of(self._store, Path(args.output_dir))
        self._run = _resume.open_run(place, self._name, before=before)
        if self._policy is not None:
            self._run._follow(self._policy)
        return self._run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the run, so that a store that cannot be used is found out before the first step."""
        run = self._open(args, before=state.global_step + 1)
        if run._heartbeat is not None:
            run._heartbeat(state.global_step)
        self._listen()
        if run._replays:
            # The folders of the run stay as they are.
            self._output_dir, args.output_dir = args.output_dir, str(_steps.aside())
        loader = kwargs.get("train_dataloader")
        if self._exact_batches and loader is not None:
            seed = args.data_seed if args.data_seed is not None else args.seed
            self._collators = _batches.seed_collators(loader, seed, int(state.epoch or 0))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the collator of the next epoch."""
        for collator in self._collators:
            collator.epoch = round(state.epoch)

    def _listen(self) -> None:
        """Hears each batch's loss where the trainer has it: callbacks are told means of several steps."""
        self._steps.forget()
        trainer = _calling_trainer()
        if trainer is None or trainer is self._listened:
            return
        train = trainer.training_step
        self._listened, self._replaced = trainer, vars(trainer).get("training_step")

        @functools.wraps(train)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = train(*args, **kwargs)
            self._steps.add_loss(loss)
            return loss

        trainer.training_step = training_step

    def _stop_listening(self) -> None:
        """Gives the trainer its own method back, so that nothing keeps it alive."""
        trainer, self._listened = self._listened, None
        if trainer is not None:
            del trainer.training_step
            if self._replaced is not None:
                trainer.training_step = self._replaced

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the learning rates of the step."""
        optimizer = kwargs.get("optimizer")
        if optimizer is not None:
            self._steps.add_rates(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells a supervisor of the step, and records it."""
        run, step = self._run, state.global_step
        if run is None:
            return
        data = _steps.place(state.epoch, kwargs.get("train_dataloader"))
        self._steps.done(run, step, data=data)
        if run._replays and run._native.is_due(step):
            control.should_save = True
        elif _steps.is_over(run):
            _steps.end(run)
        elif self._policy is not None and not run._replays:
            want = run._wants(step)
            if want == "end":
                run._end(step, None)
            self._ends = want == "save-and-end"
            control.should_save = control.should_save or want != "nothing"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets a replay say what the run said, of what no two processes say alike: it is part of the checkpoint."""
        if not state.log_history:
            return
        entry = state.log_history[-1]
        said = {name: value for name, value in entry.items() if _OF_PROCESS.fullmatch(name)}
        if said:
            key = f"log of step {state.global_step}: {', '.join(sorted(said))}"
            entry.update(_steps.read_external(self._run, key, said))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves the folder that the trainer has just finished."""
        step = state.global_step
        folder = Path(args.output_dir) / f"checkpoint-{step}"
        if self._run is not None and self._run._replays:
            self._replay_save(self._run, args, step, folder)
            return
        try:
            self._settle()
            run = self._open(args, before=step)
            peers = Peers(World(run.rank, run.world_size))
            # No rank lists the files before every rank has written its own.
            peers.gather("written", step)
            handle = _folders.ingest(run, folder, step, _OWNER, peers)
            _resume.saved(run, step)
            self._pending.append((handle, folder.name))
            if self._ends:
                run._end(step, handle)
            if self._block:
                self._settle(wait=True)
            if self._verify and run.rank == 0:
                self._start_verifying(handle)
        except (LastgoodError, OSError) as error:
            _resume.tell_failure(error, folder.name, self._strict)
            if self._ends:
                raise SystemExit(Policy.PREEMPTED) from None

    def _replay_save(self, run: Run, args: Any, step: int, folder: Path) -> None:
        """As `on_save` in a replay, where a failure is one, and the last save is the end."""
        peers = Peers(World(run.rank, run.world_size))
        if args.should_save:
            self._name_places(args, folder)
        peers.gather("written", step)
        handle = _folders.ingest(run, folder, step, _OWNER, peers)
        if _steps.is_over(run):
            handle.durable.result()
            _steps.end(run)

    def _name_places(self, args: Any, folder: Path) -> None:
        """Lets the files name the output folder of the run, and not where a replay writes."""
        import torch

        aside, args.output_dir = args.output_dir, self._output_dir
        if (folder / _ARGUMENTS).exists():
            torch.save(args, folder / _ARGUMENTS)
        state = folder / _STATE
        if state.exists():
            text = state.read_text(encoding="utf-8")
            state.write_text(text.replace(aside, str(self._output_dir)), encoding="utf-8")
        args.output_dir = aside

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits until the last save is committed and verified."""
        self._stop_listening()
        try:
            self._settle(wait=True)
        except LastgoodError as error:
            _resume.tell_failure(error, "the last checkpoint", self._strict)
        for thread in self._verifying:
            thread.join()

    def _settle(self, wait: bool = False) -> None:
        """Tells of the saves that failed; with ``wait``, of those on their way too."""
        pending, self._pending = self._pending, []
        for handle, name in pending:
            if not wait and not handle.durable.done():
                self._pending.append((handle, name))
                continue
            try:
                handle.durable.result()
            except LastgoodError as error:
                _resume.tell_failure(error, name, self._strict)

    def _start_verifying(self, handle: SaveHandle) -> None:
        def verify() -> None:
            try:
                handle.verified.result()
            except Closed:
                return
            except LastgoodError as error:
                # A save that failed is told by the handle; what was committed and is damaged is marked bad.
                if handle.status == "committed":
                    _resume.tell(
                        f"the checkpoint of step {handle.step} does not read back: {error}"
                    )

        self._verifying = [thread for thread in self._verifying if thread.is_alive()]
        thread = threading.Thread(target=verify, name="lastgood-verify", daemon=True)
        self._verifying.append(thread)
        thread.start()


def last_good(
    output_dir: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    run: str | None = None,
    *,
    adopt: bool = True,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
) -> str | None:
    """The folder to resume from, for ``trainer.train(resume_from_checkpoint=…)``; None for a fresh run.

    The newest good checkpoint of the run is verified in the store and compared with its folder; a folder that is
    missing, partial or different is written back, byte for byte. Newer folders that were never committed are moved to
    ``_lastgood-quarantine`` in ``output_dir``, with the reason; nothing is deleted. With several ranks all call this,
    after the trainer is made.

    Args:
        output_dir: that of the `TrainingArguments`.
        store, run: as given to `LastGoodCallback`.
        adopt: take a newer folder that a crash kept from being saved, if it is proven whole: it has every file that
            its predecessor had and the trainer's state, which is written last; each file passes the checks of its
            format; and the system was not started since. It is saved first.
        preflight, accept: as for `lg.open`: what is done if this process, on any rank, computes otherwise than the one
            that saved. Nothing is moved or written before. A folder that is adopted tells of no process.

    Raises:
        Incompatible: if a process computes otherwise, and nobody accepted it.
        Corrupt: if what is stored is damaged and there is nothing to go back to.
        Invalid: with several ranks, before there is a process group.
        Unavailable, Denied: as the store says.

    Example:
        >>> import lastgood as lg, tempfile
        >>> print(lg.hf.last_good(tempfile.mkdtemp()))
        None
    """
    parent = Path(output_dir)
    place = _resume.place_of(store, parent)
    opened = _resume.open_run(place, run, preflight=preflight, accept=accept)
    return _resume.Resume(opened, parent, _OWNER, lambda: _folders_of(parent), _doubt, adopt).find()


def _calling_trainer() -> Any:
    """The trainer that calls its callbacks: it tells them of everything but itself."""
    kind = sys.modules["transformers.trainer"].Trainer
    frame: Any = sys._getframe(2)
    while frame is not None:
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, kind):
            return trainer
        frame = frame.f_back
    return None


def _folders_of(parent: Path) -> dict[int, Path]:
    found = {}
    for path in parent.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return found


def _doubt(step: int, folder: Path, names: set[str]) -> str | None:
    """Why the trainer's folder is not proven whole."""
    there = _folders.files_in(folder)
    if _INCOMPLETE in there:
        return f"{_INCOMPLETE} is there: the trainer was stopped while it saved"
    for path in sorted(names):
        if path not in there:
            return f"{path} is missing"
    for choice in () if names else _NEEDED:
        if not any(path in there for path in choice):
            return f"{choice[0]} is missing"
    for path in sorted(there):
        doubt = _whole.doubt(folder / path)
        if doubt is not None:
            return doubt
    state = json.loads((folder / _STATE).read_bytes())
    if not isinstance(state, dict) or state.get("global_step") != step:
        return f"trainer_state.json is not of step {step}"
    index = folder / "model.safetensors.index.json"
    if index.exists():
        missing = sorted(set(json.loads(index.read_bytes())["weight_map"].values()) - set(there))
        if missing:
            return f"{missing[0]} is missing"
    return None
