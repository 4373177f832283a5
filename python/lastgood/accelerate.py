"""Accelerate: every folder that `save_state` writes is kept in a run, and the job goes on from the last good one.

    accelerator = Accelerator()
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    keeper = lg.accelerate.attach(accelerator, "out")
    done = keeper.restore() or 0
    for step in range(done, steps):
        train_step()
        keeper.step(step + 1)
        if (step + 1) % 100 == 0:
            accelerator.save_state(f"out/checkpoint-{step + 1}")

Accelerate has hooks before it saves and none after, so `attach` wraps ``save_state`` of this accelerator; and
``backward``, which sees the loss. `Keeper.step` records a step of the optimizer, so that it can be replayed; a replay
writes its folders aside.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import accelerate as _accelerate

from lastgood import _folders, _resume, _steps, _whole
from lastgood._lastgood import Invalid, LastgoodError
from lastgood._peers import Peers
from lastgood._run import Run
from lastgood._state import World

__all__ = ["Keeper", "attach"]

_OWNER = "accelerate"
_NUMBER = re.compile(r".*?(\d+)")


def attach(
    accelerator: Any,
    folder: str | os.PathLike[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    run: str | None = None,
    *,
    strict: bool = False,
    preflight: str | None = None,
    accept: Mapping[str, str] | None = None,
) -> Keeper:
    """Keeps what ``accelerator.save_state`` writes in a run, once it is written; on several ranks, all call this.

    Args:
        accelerator: an `accelerate.Accelerator`, after ``prepare``.
        folder: where the checkpoint folders are, each with a name that ends in its step; default, with
            ``automatic_checkpoint_naming``, where Accelerate puts them.
        store: as for `lg.open`; default ``LASTGOOD_STORE``, else the folder ``_lastgood`` in ``folder`` or, with
            ``automatic_checkpoint_naming``, in the project's folder.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        strict: a failed save ends the training; by default it warns and training goes on.
        preflight, accept: as for `lg.open`: what `Keeper.restore` and `Keeper.last_good` do if this process, on any
            rank, computes otherwise than the one that saved.

    Raises:
        Invalid: if ``accelerator`` is none, or nothing says where its checkpoints are.
        Unavailable, Denied, Corrupt, Incompatible: as the store and the run say.

    Example:
        >>> import accelerate, tempfile
        >>> import lastgood as lg
        >>> keeper = lg.accelerate.attach(accelerate.Accelerator(cpu=True), tempfile.mkdtemp())
        >>> print(keeper.restore())
        None
    """
    if not isinstance(accelerator, _accelerate.Accelerator):
        raise Invalid(f"attach takes an accelerate.Accelerator, given {type(accelerator).__name__}")
    automatic = accelerator.project_configuration.automatic_checkpoint_naming
    if folder is None:
        if not automatic:
            raise Invalid(
                "say in which folder the checkpoints are: lg.accelerate.attach(accelerator, FOLDER)"
            )
        folder = Path(accelerator.project_dir) / "checkpoints"
    if automatic and _steps.plan() is not None and not _steps.only_looks():
        raise Invalid(
            "automatic_checkpoint_naming counts checkpoints and not steps, so that the steps between them cannot be "
            "replayed; give each folder a name that ends in its step"
        )
    parent = Path(folder)
    # Accelerate's own rotation fails if there is anything else among its folders.
    beside = Path(accelerator.project_dir) if automatic else parent
    place = _resume.place_of(store, beside)
    opened = _resume.open_run(place, run, preflight=preflight, accept=accept)
    keeper = Keeper(accelerator, parent, beside, (place, run), opened, strict)
    accelerator.save_state = functools.partial(keeper._save, accelerator.save_state)
    accelerator.backward = functools.partial(keeper._backward, accelerator.backward)
    return keeper


class Keeper:
    """What `attach` gives: the folders of ``save_state``, kept in a run.

    Example:
        >>> import lastgood as lg
        >>> lg.accelerate.Keeper.restore.__name__
        'restore'
    """

    def __init__(
        self,
        accelerator: Any,
        parent: Path,
        beside: Path,
        place: tuple[str, str | None],
        run: Run,
        strict: bool,
    ) -> None:
        self._accelerator = accelerator
        self._parent = parent
        self._beside = beside
        self._place, self._name = place
        self._strict = strict
        self._run = run
        self._steps = _steps.Steps()
        #: The last step that was told, and the optimizers that tell their learning rates.
        self._told = -1
        self._heard: weakref.WeakSet[Any] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"lg.accelerate.Keeper({str(self._parent)!r})"

    def _save(
        self, save: Callable[..., Any], output_dir: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if self._run._replays:
            return self._replay_save(save, output_dir, *args, **kwargs)
        written = save(output_dir, *args, **kwargs)
        folder = Path(written if written is not None else output_dir)
        try:
            step = _step_of(folder)
            self._run = _resume.open_run(self._place, self._name, before=step)
            peers = Peers(World(self._run.rank, self._run.world_size))
            # No rank lists the files before every rank has written its own.
            peers.gather("written", step)
            handle = _folders.ingest(self._run, folder, step, _OWNER, peers)
            _resume.saved(self._run, step)
            handle.durable.result()
        except (LastgoodError, OSError) as error:
            _resume.tell_failure(error, folder.name, self._strict)
        return written

    def _replay_save(
        self, save: Callable[..., Any], output_dir: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As `_save` in a replay: aside, and a failure is one."""
        folder = _steps.aside() / Path(output_dir or "").name
        written = save(str(folder), *args, **kwargs)
        peers = Peers(World(self._run.rank, self._run.world_size))
        peers.gather("written", folder.name)
        _folders.ingest(self._run, folder, _step_of(folder), _OWNER, peers).durable.result()
        if _steps.is_over(self._run):
            _steps.end(self._run)
        return written

    def _backward(self, backward: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> Any:
        self._end_replay()
        self._listen()
        steps = self._accelerator.gradient_accumulation_steps
        self._steps.add_loss(loss.detach() / steps if steps > 1 else loss)
        return backward(loss, *args, **kwargs)

    def _listen(self) -> None:
        """Hears of the learning rates of each step from the optimizers, which may be prepared at any time."""
        for wrapped in self._accelerator._optimizers:
            optimizer = wrapped.optimizer
            if optimizer not in self._heard and hasattr(optimizer, "register_step_pre_hook"):
                self._heard.add(optimizer)
                optimizer.register_step_pre_hook(lambda each, *_: self._steps.add_rates(each))

    def step(self, step: int, **metrics: Any) -> None:
        """Tells a supervisor of ``step``, the number of finished steps, and records it: the loss that ``backward`` was
        given, the learning rates that the optimizers stepped with, the generators, and ``metrics``, as `Run.step`.
        Call it before ``save_state``, with the number that the folder's name ends in, for the steps to be replayed.
        While gradients are accumulated, only the batch after which an optimizer steps counts.
        """
        if not self._accelerator.sync_gradients or step == self._told:
            return
        self._end_replay()
        self._told = step
        self._steps.done(self._run, step, **metrics)
        if _steps.is_over(self._run):
            if not self._run._native.is_due(step):
                _steps.end(self._run)
            # The program saves after this; and if it does not, this is done before anything changes.
            atexit.register(self._end_replay)

    def _end_replay(self) -> None:
        """Ends a replay, at the next sign of life after its last step."""
        if self._run._closed or not _steps.is_over(self._run):
            return
        atexit.unregister(self._end_replay)
        if self._run._native.is_due(self._told):
            folder = _steps.aside() / f"checkpoint-{self._told}"
            self._accelerator.save_state(str(folder))
        _steps.end(self._run)

    def last_good(self, *, adopt: bool = True) -> str | None:
        """The folder to give to ``accelerator.load_state``; None for a fresh run. As `lg.hf.last_good`: verified,
        written back if it is missing or damaged, and what was never committed is set aside, unless it is proven
        whole and ``adopt``.

        Raises:
            Incompatible: if a process computes otherwise than the one that saved, and nobody accepted it.
            Corrupt: if what is stored is damaged and there is nothing to go back to.
        """
        parent, beside = self._parent, self._beside
        return _resume.Resume(
            self._run, parent, _OWNER, lambda: _folders_of(parent), _doubt, adopt, beside
        ).find()

    def restore(self) -> int | None:
        """Loads the last good checkpoint into what the accelerator has prepared, and gives the number that its
        folder's name ends in; None for a fresh run.

        Raises:
            As `last_good`, and what ``load_state`` raises.
        """
        folder = self.last_good()
        if folder is None:
            return None
        self._accelerator.load_state(folder)
        self._steps.forget()
        self._told = step = _step_of(Path(folder))
        configuration = self._accelerator.project_configuration
        if configuration.automatic_checkpoint_naming:
            # Accelerate counts from 0 in each process, and refuses a folder that is there.
            configuration.iteration = step + 1
        return step


def _step_of(folder: Path) -> int:
    match = _NUMBER.fullmatch(folder.name)
    if match is None:
        raise Invalid(
            f"the name of the folder {folder.name!r} does not end in a step; call it checkpoint-STEP"
        )
    return int(match[1])


def _folders_of(parent: Path) -> dict[int, Path]:
    found = {}
    for path in parent.iterdir():
        match = _NUMBER.fullmatch(path.name)
        if match and path.is_dir() and not path.name.startswith("_lastgood"):
            found[int(match[1])] = path
    return found


def _doubt(step: int, folder: Path, names: set[str]) -> str | None:
    """Why a folder is not proven whole. Accelerate marks no end, so only the files of its predecessor tell."""
    there = _folders.files_in(folder)
    if not names:
        return "there is no stored checkpoint whose files it could be compared with"
    for path in sorted(names):
        if path not in there:
            return f"{path} is missing"
    for path in sorted(there):
        doubt = _whole.doubt(folder / path)
        if doubt is not None:
            return doubt
    return None
