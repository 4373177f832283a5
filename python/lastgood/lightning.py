"""Lightning: checkpoints go to a run, with the generators that Lightning leaves out, and `fit` goes on from the last
good one.

    trainer = L.Trainer(callbacks=[lg.lightning.LastGood("s3://bucket/runs"), ModelCheckpoint(every_n_train_steps=100)])
    trainer.fit(model, ckpt_path=lg.lightning.last_good("s3://bucket/runs"))

`ModelCheckpoint` decides when to save, as ever. What it writes is a few bytes that name the checkpoint in the store;
strategies that write checkpoints by themselves (FSDP, ModelParallel) have the folder that they wrote stored whole. Each
step of an optimizer is recorded, so that it can be replayed: by rank 0, or by every rank if each stores its part.
Works with ``lightning`` and with ``pytorch_lightning``.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lastgood import (
    _folders,
    _journal,
    _lastgood,
    _memory,
    _preflight,
    _resume,
    _rng,
    _steps,
    _tree,
    _values,
    _world,
)
from lastgood._lastgood import Corrupt, Incompatible, LastgoodError, NotFound
from lastgood._peers import Peers
from lastgood._run import Run
from lastgood._state import World

__all__ = ["CheckpointIO", "LastGood", "last_good"]

_OWNER = "lightning"
_COMPONENT = "checkpoint"
#: What `last_good` gives to `fit`; resolved when all ranks are there.
_TOKEN = "lastgood:last-good"
#: The key in Lightning's checkpoint under which the generators are.
_RNG_KEY = "lastgood_rng"


def _callback_base() -> Any:
    """The `Callback` of the Lightning that the program uses: the same library has two names."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        names.reverse()
    missing: list[ModuleNotFoundError] = []
    for name in names:
        try:
            return importlib.import_module(f"{name}.callbacks").Callback
        except ModuleNotFoundError as error:
            missing.append(error)
    raise missing[0]


def _reader(place: str, name: str) -> Any:
    return _lastgood.Reader(place, _world.store_options(), name)


def last_good(store: str | os.PathLike[str] | None = None, run: str | None = None) -> str | None:
    """What to give to ``fit(ckpt_path=…)``: the last good checkpoint of the run, or None if there is none yet. It is
    looked up, read and verified when `fit` loads it, on all ranks alike; a damaged one is passed over.

    Args:
        store, run: as given to `LastGood` or `CheckpointIO`.

    Raises:
        Unavailable, Denied, Corrupt: if the ledger cannot be read.

    Example:
        >>> import lastgood as lg, tempfile
        >>> print(lg.lightning.last_good(tempfile.mkdtemp()))
        None
    """
    place, name = _world.place_of(store, run)
    replayed = _steps.plan()
    if replayed is not None:
        return _TOKEN if replayed["from"] is not None else None
    try:
        _reader(place, name).find("last-good")
    except NotFound:
        return None
    return _TOKEN


class CheckpointIO:
    """A plugin that keeps Lightning's checkpoints in a run, as plain values and tensors: ``Trainer(plugins=[…])``.

    A save returns when the checkpoint is committed; wrapped in Lightning's `AsyncCheckpointIO` it does not hold up
    the training. At the path that Lightning gives there is then a text file that names the checkpoint; files of other
    plugins are read as before. What cannot be stored without pickle is an error that names its path in the checkpoint.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        strict: a failed save ends the training; by default it warns and training goes on.
        preflight, accept: as for `lg.open`: what is done if this process, on any rank, computes otherwise than the one
            that saved. It counts for `last_good`, and with `LastGood` for every checkpoint that ``fit`` goes on from;
            what is only read, as by ``test`` and ``predict``, is at most warned of.

    Raises:
        Invalid: if there is no store.

    Example:
        >>> import lastgood as lg, tempfile
        >>> io = lg.lightning.CheckpointIO(tempfile.mkdtemp())
        >>> io.save_checkpoint({"global_step": 5, "epoch": 0}, tempfile.mkdtemp() + "/5.ckpt")
        >>> io.load_checkpoint("lastgood:last-good")["global_step"]
        5
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        run: str | None = None,
        *,
        strict: bool = False,
        preflight: str | None = None,
        accept: Mapping[str, str] | None = None,
    ) -> None:
        self._place, self._name = _world.place_of(store, run)
        self._strict = strict
        _preflight.check(preflight, accept)
        self._preflight, self._accept = preflight, accept
        #: Whether what is loaded next is gone on from; None if nobody says.
        self._goes_on: bool | None = None
        for package in ("lightning.fabric", "lightning_fabric"):
            module = sys.modules.get(f"{package}.plugins.io.checkpoint_io")
            if module is not None:
                # A trainer knows a plugin by its class.
                module.CheckpointIO.register(type(self))

    def _run(self, before: int | None = None) -> Any:
        return _resume.open_run(
            self._place,
            self._name,
            alone=True,
            before=before,
            preflight=self._preflight,
            accept=self._accept,
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Saves ``checkpoint``, and writes the file at ``path`` that names it once it is committed.

        Raises:
            With ``strict`` whatever the save fails with.
        """
        step = int(checkpoint.get("global_step", 0))
        try:
            run = self._run(before=step)
            handle = _values.save(run, step, _COMPONENT, _OWNER, checkpoint)
            _resume.saved(run, step)
            stored = handle.durable.result()
        except (LastgoodError, OSError) as error:
            _resume.tell_failure(error, f"the checkpoint {path}", self._strict)
            return
        if _steps.plan() is not None:
            # What is there is of the run.
            return
        pointer = {
            "lastgood": {
                "store": self._place,
                "run": self._name,
                "checkpoint": stored,
                "step": step,
            }
        }
        _write_text(os.fspath(path), json.dumps(pointer) + "\n")

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint that ``path`` names; every byte is verified. Tensors are on the CPU, unless ``map_location``
        says a device.

        Raises:
            NotFound: if the file names a checkpoint that is not there.
            Incompatible: if a process computes otherwise than the one that saved, and nobody accepted it.
            Corrupt: if it is damaged (and, for `last_good`, all before it are).
        """
        text = os.fspath(path)
        if text == _TOKEN:
            value: Any = self._load_last_good()
        else:
            named = _read_pointer(text)
            if named is None:
                other: dict[str, Any] = _load_other(path, map_location, weights_only)
                return other
            value = self._load_named(named["store"], named["run"], named["checkpoint"])
        loaded: dict[str, Any] = _moved(value, map_location)
        return loaded

    @contextlib.contextmanager
    def _loading(self, goes_on: bool) -> Iterator[None]:
        """Says what a load is for, on every rank."""
        self._goes_on = goes_on
        try:
            yield
        finally:
            self._goes_on = None

    def _load_named(self, place: str, name: str, id_: str) -> Any:
        """What `ModelCheckpoint` has named. Every rank loads it if it is gone on from."""
        world = _world.find_world()

        def ask() -> None:
            self._compare(place, name, id_, world, goes_on=self._goes_on is True)

        if self._goes_on:
            Peers(world).agree("preflight", ask, _preflight.WAIT)
        else:
            ask()
        reader = _reader(place, name)
        return _values.load(reader, reader.find(f"id:{id_}"), _COMPONENT)

    def _compare(self, place: str, name: str, id_: str, world: World, *, goes_on: bool) -> None:
        """Compares this rank with the one that saved, as a rank that has no run open."""
        reader = _lastgood.Reader(place, _world.store_options(), name, world.rank, world.size)
        checkpoint = reader.find(f"id:{id_}")
        if goes_on:
            notices = _preflight.of_reader(reader, checkpoint, self._preflight, self._accept)
        else:
            notices = _preflight.of_who_reads(reader, checkpoint, self._preflight)
        for notice in notices:
            _resume.tell(notice)

    def _load_last_good(self) -> dict[str, Any]:
        """Rank 0, which saves, reads first and passes over what is damaged; the others read what it chose. Before
        that, each compares itself with the process that saved."""
        world = _world.find_world()
        if _steps.only_looks():
            self._look()
        peers = Peers(world)
        goes_on = self._goes_on is not False
        found: list[Any] = []
        while True:
            chosen = peers.agree("resume", lambda: None if world.rank else self._candidate())[0]
            if chosen is None:
                raise NotFound(f"run {self._name} has no checkpoint to go on from")

            def ask(id_: str = chosen) -> None:
                if world.rank == 0 and goes_on:
                    self._ask(id_)
                else:
                    self._compare(self._place, self._name, id_, world, goes_on=goes_on)

            peers.agree("preflight", ask, _preflight.WAIT)

            def read(id_: str = chosen) -> bool:
                return world.rank != 0 or self._read(id_, found)

            if peers.agree("read", read)[0]:
                break
        if world.rank != 0:
            reader = _reader(self._place, self._name)
            found.append(_values.load(reader, reader.find(f"id:{chosen}"), _COMPONENT))
        return found[0]  # type: ignore[no-any-return]

    def _look(self) -> None:
        """Ends a process that only looks whether it could go on. Each rank looks by itself."""
        run = _resume.open_run(
            self._place, self._name, preflight=self._preflight, accept=self._accept
        )
        checkpoint = run._native.candidate()
        # A look is a look at one.
        assert checkpoint is not None
        _steps.look(run, checkpoint, (checkpoint.bytes, checkpoint.bytes))

    def _candidate(self) -> str | None:
        checkpoint = self._run()._native.candidate()
        return checkpoint.id if checkpoint is not None else None

    def _ask(self, id_: str) -> None:
        """As `_compare`, of the rank that has the run open, in whose journal it is."""
        native = self._run()._native
        checkpoint = native.find(f"id:{id_}")
        for notice in _preflight.of_run(native, checkpoint, (checkpoint.bytes, checkpoint.bytes)):
            _resume.tell(notice)

    def _read(self, id_: str, found: list[Any]) -> bool:
        """Reads a checkpoint, on rank 0; False if it is damaged."""
        run = self._run()
        checkpoint = run._native.find(f"id:{id_}")
        try:
            found.append(_values.load(run._native, checkpoint, _COMPONENT))
        except Corrupt as error:
            for notice in run._native.reject(checkpoint, str(error)):
                _resume.tell(notice)
            return False
        run._native.build_on(checkpoint)
        return True

    def remove_checkpoint(self, path: Any) -> None:
        """Removes what is at ``path``. The checkpoint in the store is left to the store's retention."""
        if _steps.plan() is not None:
            return
        target = Path(path)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def teardown(self) -> None:
        """Nothing is under way between saves."""


def _write_text(path: str, text: str) -> None:
    """The file is there whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.writing")
    with work.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    work.replace(target)
    _folders.sync_folder(target.parent)


def _read_pointer(path: str) -> dict[str, str] | None:
    """What the file names; None if another plugin wrote it."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if not head.startswith(b'{"lastgood"'):
        return None
    try:
        named = json.loads(head)["lastgood"]
        return {key: str(named[key]) for key in ("store", "run", "checkpoint")}
    except (ValueError, KeyError, TypeError) as error:
        raise Incompatible(f"{path} names no checkpoint of this version: {error!r}") from None


def _load_other(path: Any, map_location: Any, weights_only: bool | None) -> Any:
    name = "lightning.fabric" if "lightning.fabric" in sys.modules else "lightning_fabric"
    plugin = importlib.import_module(f"{name}.plugins").TorchCheckpointIO()
    location = map_location if map_location is not None else (lambda storage, _: storage)
    return plugin.load_checkpoint(path, map_location=location, weights_only=weights_only)


def _moved(value: Any, location: Any) -> Any:
    import torch

    if not isinstance(location, (str, torch.device)) or torch.device(location).type == "cpu":
        return value
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.to(location), value
    )


class LastGood(_callback_base()):  # type: ignore[misc]
    """A callback that makes a trainer's checkpoints recoverable: it installs `CheckpointIO`, adds every rank's random
    number generators, stores the folders of strategies that write by themselves, and tells a supervisor of the steps.

    Args:
        store, run, strict, preflight, accept: as for `CheckpointIO`.

    Example:
        >>> import lastgood as lg
        >>> lg.lightning.LastGood("s3://bucket/runs", run="digits")
        lg.lightning.LastGood(store='s3://bucket/runs', run='digits')
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        run: str | None = None,
        *,
        strict: bool = False,
        preflight: str | None = None,
        accept: Mapping[str, str] | None = None,
    ) -> None:
        self._place, self._name = _world.place_of(store, run)
        self._strict = strict
        _preflight.check(preflight, accept)
        self._preflight, self._accept = preflight, accept
        self._pending: Any = None
        self._heartbeat: Any = None
        self._steps = _steps.Steps()
        self._run: Run | None = None
        self._recorded = -1
        self._is_restored = False

    def __repr__(self) -> str:
        return f"lg.lightning.LastGood(store={self._place!r}, run={self._name!r})"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Takes its place in the strategy, before anything is loaded."""
        from lastgood._heartbeat import heartbeat

        self._heartbeat = heartbeat()
        strategy = trainer.strategy
        if type(strategy.checkpoint_io).__name__ == "TorchCheckpointIO":
            strategy.checkpoint_io = CheckpointIO(
                self._place,
                self._name,
                strict=self._strict,
                preflight=self._preflight,
                accept=self._accept,
            )
        if not getattr(strategy, "_lastgood", False):
            strategy._lastgood = True
            strategy.save_checkpoint = functools.partial(
                self._save, trainer, strategy.save_checkpoint
            )
            strategy.load_checkpoint = functools.partial(
                self._load, trainer, strategy.load_checkpoint
            )
        loop = trainer.fit_loop
        if stage == "fit" and not getattr(loop, "_lastgood", False):
            loop._lastgood = True
            loop.setup_data = functools.partial(self._setup_data, trainer, loop.setup_data)
            self._setup_files(trainer)
            if _steps.plan() is not None:
                trainer.callbacks.append(_End(self))

    def _setup_files(self, trainer: Any) -> None:
        """How a checkpoint is called depends on which files are there, and is part of it."""
        for callback in trainer.checkpoint_callbacks:
            if hasattr(callback, "file_exists"):
                callback.file_exists = functools.partial(self._file_exists, callback.file_exists)
            if _steps.plan() is not None:
                callback._link_checkpoint = lambda *_: None

    def _file_exists(self, exists: Any, path: Any, trainer: Any) -> bool:
        key = f"is there a file {path}?"
        answer = _steps.read_external(self._run, key, bool(exists(path, trainer)))
        if _steps.plan() is not None:
            answer = trainer.strategy.broadcast(answer)
        return bool(answer)

    def _save(
        self, trainer: Any, save: Any, checkpoint: dict[str, Any], filepath: Any, **kwargs: Any
    ) -> None:
        """What the strategy wrote as a folder is stored when every rank has written its part."""
        step = trainer.global_step
        if _steps.plan() is not None and _writes_folders(trainer.strategy):
            # The folders of the run stay as they are.
            filepath = _steps.aside() / Path(filepath).name
        save(checkpoint, filepath, **kwargs)
        folder = Path(trainer.strategy.broadcast(filepath))
        if trainer.strategy.reduce_boolean_decision(not folder.is_dir(), all=False):
            return
        try:
            run = self._open_run(before=step)
            peers = Peers(World(run.rank, run.world_size))
            peers.gather("written", step)
            handle = _folders.ingest(run, folder, step, _OWNER, peers)
            _resume.saved(run, step)
            handle.durable.result()
        except (LastgoodError, OSError) as error:
            _resume.tell_failure(error, f"the checkpoint {folder}", self._strict)

    def _load(self, trainer: Any, load: Any, checkpoint_path: Any, **kwargs: Any) -> Any:
        goes_on = trainer.state.fn == "fit"
        if os.fspath(checkpoint_path) != _TOKEN or not self._is_folder():
            plugin = _own_plugin(trainer.strategy)
            with plugin._loading(goes_on) if plugin is not None else contextlib.nullcontext():
                return load(checkpoint_path, **kwargs)
        run = self._open_run()
        parent = Path(trainer.default_root_dir) / "_lastgood-resume"
        found = _resume.Resume(
            run,
            parent,
            _OWNER,
            dict,
            lambda *_: "it is not asked for",
            adopt=False,
            goes_on=goes_on,
        )
        folder = found.find()
        if folder is None:
            raise NotFound(f"run {self._name} has no checkpoint to go on from")
        loaded = load(folder, **kwargs)
        Peers(World(run.rank, run.world_size)).gather("loaded", 0)
        if trainer.local_rank == 0:
            shutil.rmtree(parent, ignore_errors=True)
        return loaded

    def _open_run(self, **how: Any) -> Run:
        return _resume.open_run(
            self._place, self._name, preflight=self._preflight, accept=self._accept, **how
        )

    def _is_folder(self) -> bool:
        """True if the last good checkpoint is a folder that a strategy wrote."""
        checkpoint = _reader(self._place, self._name).find("last-good")
        return _folders.COMPONENT in {name for name, _, _ in checkpoint.components()}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the generators of every rank."""
        peers = Peers(World(trainer.global_rank, trainer.world_size))
        checkpoint[_RNG_KEY] = peers.gather("rng", _packed_generators())

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keeps the generators for when everything else is in place."""
        self._is_restored = True
        stored = checkpoint.get(_RNG_KEY)
        if stored is None:
            return
        if len(stored) != trainer.world_size:
            _resume.tell(
                f"{len(stored)} ranks saved their generators and there are {trainer.world_size} now: random numbers "
                "are not those of an undisturbed run"
            )
            return
        self._pending = stored[trainer.global_rank]

    def _setup_data(self, trainer: Any, setup: Any) -> None:
        """An iterator draws when it is made. At the start of an epoch that is part of the run; in the middle of one
        it was made before the state was saved."""
        pending, self._pending = self._pending, None
        if pending is None:
            if trainer.global_step == 0 and self._run is None:
                self._begin(trainer)
            setup()
            return
        _set_generators(pending)
        setup()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.current.ready > 0 and not progress.is_last_batch:
            _set_generators(pending)

    def _begin(self, trainer: Any) -> None:
        """Where a program does not seed the generators, they are an input."""
        run = self._open(trainer)
        if run is not None:
            _journal.start_generators(run._native)

    def _open(self, trainer: Any) -> Run | None:
        """The run that this rank records in; None if others save for it."""
        alone = not _writes_folders(trainer.strategy)
        if alone and trainer.global_rank != 0:
            return None
        step = trainer.global_step
        try:
            self._run = self._open_run(alone=alone, before=step)
        except LastgoodError as error:
            _resume.tell_failure(error, "what goes into the steps", self._strict)
        return self._run

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Opens the run, in which the steps are recorded."""
        self._steps.forget()
        self._recorded = trainer.global_step
        self._open(trainer)
        if not self._is_restored:
            return
        for callback in trainer.checkpoint_callbacks:
            # It would save the step again that it has restored, after a batch of the next one: with accumulated
            # gradients, which no checkpoint holds.
            if getattr(callback, "_last_global_step_saved", None) == 0:
                callback._last_global_step_saved = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Notes the learning rates of the step."""
        self._steps.add_rates(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Notes the loss of the batch, and if an optimizer has stepped, tells a supervisor and records it."""
        self._steps.add_loss(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
        step = trainer.global_step
        if step == self._recorded:
            return
        self._recorded = step
        run = self._open(trainer) if self._run is not None else None
        if run is None:
            self._steps.forget()
            if self._heartbeat is not None:
                self._heartbeat(step)
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        data = {"train": [trainer.current_epoch, progress.ready]}
        self._steps.done(run, step, data=data)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Gives the strategy and the checkpoints' callbacks their own methods back."""
        names = ["_lastgood", "save_checkpoint", "load_checkpoint", "setup_data"]
        names += ["file_exists", "_link_checkpoint"]
        for obj in (trainer.strategy, trainer.fit_loop, *trainer.checkpoint_callbacks):
            for name in names:
                with contextlib.suppress(AttributeError):
                    obj.__delattr__(name)


class _End(_callback_base()):  # type: ignore[misc]
    """Ends a replay on all ranks after its last step: the last of the callbacks, so that the program has saved what it
    saves there."""

    def __init__(self, keeper: LastGood) -> None:
        self._keeper = keeper
        self._to = (_steps.plan() or {})["to"]

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._end(trainer, may_wait=True)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._end(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._end(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end(trainer)

    def _end(self, trainer: Any, may_wait: bool = False) -> None:
        if trainer.global_step < self._to:
            return
        run = self._keeper._run
        is_due = waits = False
        if run is not None:
            is_due = run._native.is_due(self._to)
            # The run has saved after this step, and not here: behind an evaluation, or at the end of the epoch.
            waits = may_wait and any(row["step"] == self._to for row in run._native.history())
        is_due, waits = trainer.strategy.broadcast((is_due, is_due and waits))
        if waits:
            return
        if is_due:
            trainer.save_checkpoint(_steps.aside() / "last.ckpt")
        _steps.end(run)


def _own_plugin(strategy: Any) -> CheckpointIO | None:
    """The plugin of this module, which another one may wrap."""
    plugin = strategy.checkpoint_io
    while plugin is not None and not isinstance(plugin, CheckpointIO):
        plugin = getattr(plugin, "checkpoint_io", None)
    return plugin


def _writes_folders(strategy: Any) -> bool:
    """True if each rank writes its part of a checkpoint into a folder."""
    return (
        getattr(strategy, "_state_dict_type", None) == "sharded"
        or getattr(strategy, "_save_distributed_checkpoint", False)
        or "deepspeed" in type(strategy).__name__.lower()
    )


def _packed_generators() -> str:
    """The generators as text: it survives any way in which a strategy writes it."""
    encoded = _tree.encode(_rng._global_states(), "rng")
    arrays = {}
    for name, array in encoded.arrays.items():
        plain = array.numpy() if _memory.is_torch(array) else array
        arrays[name] = [
            _memory.numpy_dtype_name(plain.dtype, name),
            list(plain.shape),
            plain.tobytes(),
        ]
    packed = {
        name: [dtype, shape, base64.b64encode(data).decode()]
        for name, (dtype, shape, data) in arrays.items()
    }
    return json.dumps({"tree": encoded.tree, "arrays": packed}, allow_nan=False)


def _set_generators(text: str) -> None:
    import numpy
    import torch

    stored = json.loads(text)
    kinds = _tree.arrays_of(stored["tree"])
    arrays: dict[str, Any] = {}
    for name, (dtype, shape, data) in stored["arrays"].items():
        array = (
            numpy.frombuffer(base64.b64decode(data), _memory.numpy_dtype(dtype))
            .reshape(shape)
            .copy()
        )
        arrays[name] = torch.from_numpy(array) if kinds[name] == "torch" else array
    notices: list[str] = []
    _rng._set_global_states(_tree.decode(stored["tree"], arrays, "rng"), notices)
    for notice in notices:
        _resume.tell(notice)
