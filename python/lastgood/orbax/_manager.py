"""orbax's ``CheckpointManager`` over a run of lastgood."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError

from lastgood import _open, _preflight, _run, _steps, _world
from lastgood import jax as lg_jax
from lastgood._lastgood import Corrupt, Invalid, LastgoodError, NotFound
from lastgood._peers import Peers
from lastgood._state import World
from lastgood.orbax import _items, _policies
from lastgood.orbax._policies import Info

#: The key of a checkpoint's metadata under which this file tells of items, metrics and the user's metadata.
KEY = "lastgood.orbax"


class CheckpointManager(ocp.AbstractCheckpointManager):
    """Saves and restores steps as orbax's class of this name does, in a store of lastgood.

    Args:
        directory: a folder, or the URL of any store that `lastgood.open` takes.
        options: orbax's ``CheckpointManagerOptions``. What decides when to save and what to keep is done as orbax
            does it; what says how orbax writes files (names, atomicity, threads) has no meaning here.
        metadata: of the run, kept with its first checkpoint.
        item_names: given if several items are saved by ``Composite``.
        run: the run's name in the store; default ``LASTGOOD_RUN``, else ``default``.
        preflight, accept: as for `lastgood.open`: what `restore` does if this process, or another one of its job,
            computes otherwise than the one that saved. With ``read_only`` nothing is refused: what evaluates a run is
            warned once of each difference.
        settings: as for `lastgood.open`.

    ``save`` returns when the state is copied; the save before it is waited for, and what that failed with is raised. A
    step that the policy drops is expired in the run's ledger once the new one is durable: it is listed no more, and a
    collection may delete its bytes. A restore without a step goes back if the newest is damaged. Each save is recorded,
    with its metrics, fingerprints of every array and the environment of each process. The first save begins an attempt
    of the run, which fences every other; before it, and with ``read_only``, nothing is written.

    Differences: arrays are restored with the dtype that they were saved with, or refused; without an abstract tree
    they are put on the default device; handlers of the user's own are refused.

    Raises:
        Invalid: for the arguments of orbax's old interface (``checkpointers``, ``item_handlers``, handlers).
        Unavailable, Denied, Corrupt, Incompatible: as the store and the run say.

    Example:
        >>> import lastgood as lg, orbax.checkpoint as ocp, jax.numpy as jnp, tempfile
        >>> options = ocp.CheckpointManagerOptions(save_interval_steps=2, max_to_keep=2)
        >>> with lg.orbax.CheckpointManager(tempfile.mkdtemp(), options=options) as mngr:
        ...     saved = [mngr.save(i, args=ocp.args.StandardSave({"w": jnp.ones(i + 1)})) for i in range(7)]
        ...     steps, last = mngr.all_steps(), mngr.restore(mngr.latest_step())
        >>> steps, last["w"].shape
        ([4, 6], (7,))
    """

    def __init__(
        self,
        directory: Any,
        checkpointers: Any = None,
        options: Any = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any = None,
        logger: Any = None,
        handler_registry: Any = None,
        *,
        run: str | None = None,
        preflight: str | None = None,
        accept: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        _preflight.check(preflight, accept)
        old = {"checkpointers": checkpointers, "item_handlers": item_handlers}
        old["handler_registry"] = handler_registry
        given = [name for name, value in old.items() if value is not None]
        if given:
            raise Invalid(
                f"{', '.join(given)} are orbax's own handlers; leave them out, and give args= to save"
            )
        self._store = os.fspath(directory)
        self._directory = epath.Path(directory)
        self._options = options or ocp.CheckpointManagerOptions()
        if self._options.create and "://" not in self._store:
            os.makedirs(self._store, exist_ok=True)
        self._name = run
        place = _world.place_of(self._store, run)
        self._is_asked = not self._options.read_only and _steps.is_asked(*place)
        if not self._options.read_only and not self._is_asked:
            _steps.refuse(*place, "lg.orbax.CheckpointManager")
        self._asked: dict[str, Any] = {"preflight": preflight, "accept": accept}
        self._settings = settings
        self._given = dict(metadata) if metadata is not None else None
        self._single: bool | None = False if item_names else None
        self._state: dict[str, Any] = {}
        self._writer: _run.Run | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saving: tuple[Info, list[Info]] | None = None
        self._damaged: dict[str, str] = {}
        self._save_policy = _policies.save_policy(self._options)
        self._preservation = _policies.preservation_policy(self._options)
        self._infos: list[Info] = self._load()

    @property
    def directory(self) -> epath.Path:
        """The folder or URL of the store."""
        return self._directory

    def _reader(self) -> Any:
        return lg_jax.open_reader(self._store, self._name)[0]

    def _load(self) -> list[Info]:
        """The checkpoints of the ledger that may be restored, by step; of two of one step the newer."""
        try:
            reader = self._reader()
        except NotFound:
            return []
        found: dict[int, Info] = {}
        for row in lg_jax.usable(reader.history()):
            time = datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00"))
            found[row["step"]] = Info(row["step"], time, None, row["id"])
        for info in found.values():
            if not self._options.lightweight_initialize:
                info.metrics = self._told(reader, info).get("metrics")
        return [found[step] for step in sorted(found)]

    def _told(self, reader: Any, info: Info) -> dict[str, Any]:
        """What this file told of a checkpoint when it was saved; nothing if another wrote it, or it is damaged."""
        try:
            found: dict[str, Any] = json.loads(
                reader.find(f"id:{info.id}").metadata().get(KEY, "{}")
            )
        except Corrupt:
            return {}
        return found

    def all_steps(self, read: bool = False) -> list[int]:
        """The steps that are kept, the one that is being saved among them; with ``read``, as `reload` finds them."""
        if read:
            self.reload()
        return [info.step for info in self._infos]

    def latest_step(self) -> int | None:
        """The step that was saved last, or None."""
        return self._infos[-1].step if self._infos else None

    def best_step(self) -> int | None:
        """The step with the best metrics by ``best_fn``; the latest without such a function; None without steps."""
        best = self._options.best_fn
        if best is None:
            return self.latest_step()
        told = [info for info in self._infos if info.metrics is not None]
        told.sort(key=lambda info: best(info.metrics), reverse=self._options.best_mode == "min")
        return told[-1].step if told else None

    def reload(self) -> None:
        """Reads the steps from the store again.

        Raises:
            Unavailable, Denied, Corrupt: if its ledger cannot be read.
        """
        self.wait_until_finished()
        self._infos = self._load()

    def reached_preemption(self, step: int) -> bool:
        """True if jax.distributed says that the job is about to be ended after ``step``."""
        return _policies.reached_preemption(step)

    def should_save(self, step: int) -> bool:
        """True if `save` would save ``step``: it is later than the last one, and the policy wants it."""
        latest = self.latest_step()
        if self._options.read_only or (latest is not None and latest >= step):
            return False
        check = self._options.enable_should_save_is_saving_in_progress_check
        return _policies.should_save(
            self._save_policy,
            step,
            self._infos,
            saving=check and self.is_saving_in_progress(),
            options=self._options.multiprocessing_options,
        )

    def is_saving_in_progress(self) -> bool:
        """True while a save is not yet durable."""
        return self._thread is not None and self._thread.is_alive()

    def _open(self) -> _run.Run:
        """The attempt that writes, which begins with the first thing to write."""
        if self._writer is None:
            self._writer = _open.open(
                self._store,
                self._state,
                run=self._name,
                rng=False,
                overlap=False,
                **self._asked,
                **self._settings,
            )
            for id, reason in self._damaged.items():
                self._writer.mark(f"id:{id}", "bad", reason)
        return self._writer

    def delete(self, step: int) -> None:
        """Takes ``step`` off the list for good: it is expired in the run's ledger.

        Raises:
            FileNotFoundError: if it is not listed.
        """
        if self._options.read_only:
            return
        if step not in self.all_steps():
            raise FileNotFoundError(f"Requested deleting a non-existent step: {step}.")
        self.wait_until_finished()
        for info in [info for info in self._infos if info.step == step]:
            self._open().expire(f"id:{info.id}", "deleted by the program")
            self._infos.remove(info)

    def _composite(self, args: Any) -> dict[str, Any]:
        """The items of ``args`` by name; a ValueError if one item is managed and several are given, or vice versa."""
        several = isinstance(args, ocp.args.Composite)
        if self._single is None:
            self._single = not several
        if self._single == several:
            kind = "a single, unnamed item" if self._single else "several items"
            raise ValueError(f"this manager has {kind}; `args` of {type(args).__name__} do not fit")
        return dict(args.items()) if several else {_items.SINGLE: args}

    def save(
        self,
        step: int,
        items: Any = None,
        save_kwargs: Any = None,
        metrics: Any = None,
        force: bool | None = False,
        args: Any = None,
        custom_metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Saves ``step`` if `should_save` says so, or with ``force``. Returns when the state is copied: True if it is
        saved. All processes call it.

        Args:
            step: at least 0.
            metrics: of this step, as JSON-like values; kept if ``best_fn`` is set.
            force: save whatever the policy says; an existing step is not replaced.
            args: ``ocp.args.StandardSave``, ``PyTreeSave``, ``ArraySave``, ``JsonSave``, ``JaxRandomKeySave`` or
                ``NumpyRandomKeySave``, or a ``Composite`` of these.
            custom_metadata: JSON-like values that travel with the step.
            items, save_kwargs: orbax's old interface: refused.

        Raises:
            ValueError: if the step exists already, or ``args`` are missing or do not fit.
            Invalid: if something cannot be stored; nothing is saved then.
            What the save before failed with.
        """
        if args is None or items is not None or save_kwargs is not None:
            raise ValueError("Must provide `args` for `save`, as ocp.args.StandardSave(tree).")
        step = int(step)
        parts = self._composite(args)
        if self._options.read_only or (not force and not self.should_save(step)):
            return False
        self.wait_until_finished()
        if step in self.all_steps():
            raise StepAlreadyExistsError(f"Checkpoint for step {step} already exists.")
        kept = (
            metrics if self._options.best_fn and not self._options.prevent_write_metrics else None
        )
        info = Info(step, _policies.now(), metrics)
        declared = {name: _items.component_of(name, part) for name, part in parts.items()}
        told = json.dumps(
            {
                "items": {name: told for name, (_, told) in declared.items()},
                "single": self._single,
                "metrics": kept,
                "custom": custom_metadata or {},
                "root": self._root() or self._given or {},
                "started": info.time.isoformat(),
            }
        )
        writer = self._open()
        self._state.update({name: component for name, (component, _) in declared.items()})
        if writer._recorder is not None:
            # A supervisor is not told: it would take the time between saves for that of a step.
            writer._recorder.step(step, metrics if isinstance(metrics, Mapping) else {})
        try:
            handle = writer.save(step, metadata={KEY: told})
        finally:
            # Nothing is held that the program may want to free.
            self._state.clear()
        self._infos.append(info)
        drop = _policies.dropped(self._preservation, self._infos)
        self._infos = [kept for kept in self._infos if kept not in drop]
        self._settle(info, drop, handle.durable.result)
        if not self._options.enable_async_checkpointing:
            self.wait_until_finished()
        return True

    def _settle(self, info: Info, drop: list[Info], durable: Callable[[], str]) -> None:
        """Expires what is dropped once the new step is durable, behind the call."""
        self._saving = (info, drop)

        def wait() -> None:
            try:
                info.id = durable()
                for old in drop:
                    self._open().expire(f"id:{old.id}", "the preservation policy drops it")
            except BaseException as error:
                self._failure = error

        self._thread = threading.Thread(target=wait, name="lastgood-orbax")
        self._thread.start()

    def wait_until_finished(self) -> None:
        """Waits until the last save is durable.

        Raises:
            What it failed with, once; the step is listed no more.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check_for_errors()

    def check_for_errors(self) -> None:
        """Raises what the last save failed with, if it has failed by now, once."""
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if self._saving is not None and self._saving[0].id is None:
            # The step does not exist, and what was to make room for it stays.
            info, drop = self._saving
            kept = [old for old in [*self._infos, *drop] if old is not info]
            self._infos = sorted(kept, key=lambda old: old.step)
        if self._writer is not None:
            # It is told here; the run need not tell it again.
            self._writer._native.take_failures()
        raise failure

    def restore(
        self,
        step: int | None,
        items: Any = None,
        restore_kwargs: Any = None,
        directory: Any = None,
        args: Any = None,
    ) -> Any:
        """Restores ``step``, and gives its item, or a ``Composite`` of its items.

        Args:
            step: the step; None for the latest, or for the one before it if that is damaged, with a warning.
            directory: another store to read from.
            args: ``ocp.args.StandardRestore(abstract_tree)`` and its like, or a ``Composite`` of these; None restores
                every item into dicts and lists.
            items, restore_kwargs: orbax's old interface: refused.

        Raises:
            FileNotFoundError: if there is no such step.
            Corrupt: if the step is damaged; with None, if all are.
            Incompatible: if leaves are missing, left over, or of another shape or dtype: each is named; or if a process
                computes otherwise than the one that saved, and nobody accepted it.
            What a save before failed with.
        """
        if items is not None or restore_kwargs is not None:
            raise ValueError(
                "Give `args` to `restore`, as ocp.args.StandardRestore(abstract_tree)."
            )
        if directory is not None:
            other = CheckpointManager(
                directory, options=ocp.CheckpointManagerOptions(read_only=True), run=self._name
            )
            return other.restore(step, args=args)
        self.wait_until_finished()
        if self._is_asked:
            _steps.look_at(*_world.place_of(self._store, self._name))
        if step is not None:
            self._compare_all(self._info(step))
            return self._restore(self._info(step), args)
        if not self._infos:
            raise FileNotFoundError(f"No steps found in {self.directory}.")
        first: Corrupt | None = None
        self._compare_all(self._infos[-1])
        for info in reversed(list(self._infos)):
            try:
                if first is not None:
                    self._compare(info)
                found = self._restore(info, args)
            except Corrupt as error:
                first = first or error
                self._reject(info, str(error))
                continue
            if first is not None:
                warnings.warn(
                    f"lastgood: went back to step {info.step}: {first}",
                    _run.SaveWarning,
                    stacklevel=2,
                )
            return found
        assert first is not None
        raise first

    def _compare_all(self, info: Info) -> None:
        """Lets every process compare itself before one of them reads: what one refuses, all do."""
        if self._options.read_only:
            self._compare(info)
            return
        try:
            peers = Peers(_world.find_world())
        except Invalid:
            # A job whose processes are started together and know nothing of each other.
            peers = Peers(World())
        peers.agree("preflight", lambda: self._compare(info), _preflight.WAIT)

    def _compare(self, info: Info) -> None:
        """Compares this process with the one that saved. What is damaged is found by the restore."""
        reader = self._reader()
        try:
            checkpoint = reader.find(f"id:{info.id}")
        except Corrupt:
            return
        if self._options.read_only:
            notices = _preflight.of_who_reads(reader, checkpoint, self._asked["preflight"])
        else:
            notices = _preflight.of_reader(reader, checkpoint, **self._asked)
        for notice in notices:
            warnings.warn(f"lastgood: {notice}", RuntimeWarning, stacklevel=5)

    def _reject(self, info: Info, reason: str) -> None:
        self._infos.remove(info)
        if self._writer is not None:
            self._writer.mark(f"id:{info.id}", "bad", reason)
        else:
            self._damaged[str(info.id)] = reason

    def _info(self, step: int) -> Info:
        for info in self._infos:
            if info.step == step:
                return info
        raise FileNotFoundError(f"Checkpoint of step {step} in {self.directory} not found.")

    def _described(self, info: Info) -> tuple[Any, dict[str, Any]]:
        """The reader, and what was told of a checkpoint."""
        reader = self._reader()
        told = json.loads(reader.find(f"id:{info.id}").metadata().get(KEY, "null"))
        if told is None:
            raise Invalid(
                f"step {info.step} was not saved by lg.orbax.CheckpointManager; restore it by lg.open or lg.jax.restore"
            )
        return reader, told

    def _restore(self, info: Info, args: Any) -> Any:
        reader, told = self._described(info)
        if self._single is None:
            self._single = told["single"]
        stored = told["items"]
        parts = dict.fromkeys(stored) if args is None else self._composite(args)
        unknown = sorted(set(parts) - set(stored))
        if unknown:
            raise NotFound(f"step {info.step} has no item {unknown}; it has {sorted(stored)}")
        templates = {
            name: _items.template_of(name, stored[name]["kind"], part)
            for name, part in parts.items()
        }
        world = lg_jax.open_reader(self._store, self._name)[1]
        values = lg_jax.read_into(reader, world, f"id:{info.id}", templates)
        found = {
            name: _items.value_of(stored[name]["kind"], value) for name, value in values.items()
        }
        if self._writer is not None:
            self._writer._native.build_on(reader.find(f"id:{info.id}"))
        return found[_items.SINGLE] if self._single else ocp.args.Composite(**found)

    def item_metadata(self, step: int) -> Any:
        """The shapes and dtypes of an item's tree, or a ``Composite`` of those of all items; None for JSON.

        Raises:
            FileNotFoundError: if there is no such step.
        """
        return self.metadata(step).item_metadata

    def metadata(self, step: int | None = None) -> Any:
        """orbax's ``StepMetadata`` of ``step``, or the ``RootMetadata`` of the run.

        Raises:
            FileNotFoundError: if there is no such step.
        """
        self.wait_until_finished()
        if step is None:
            return ocp.metadata.RootMetadata(custom_metadata=self._root() or self._given or {})
        info = self._info(step)
        reader, told = self._described(info)
        trees: dict[str, Any] = {name: _items.Told() for name in told["items"]}
        world = lg_jax.open_reader(self._store, self._name)[1]
        values = lg_jax.read_into(reader, world, f"id:{info.id}", trees)
        checkpoint = reader.find(f"id:{info.id}")
        items = {
            name: _items.metadata_of(self.directory, name, checkpoint, tree)
            if told["items"][name]["kind"] == "tree"
            else None
            for name, tree in values.items()
        }
        if self._single is None:
            self._single = told["single"]
        return _items.step_metadata(told, items, info.time)

    def _root(self) -> dict[str, Any] | None:
        """The metadata of the run, as the oldest checkpoint has them."""
        stored = [info for info in self._infos if info.id is not None]
        return self._told(self._reader(), stored[0]).get("root") if stored else None

    def metrics(self, step: int) -> Any:
        """The metrics of ``step``, or None if none were kept."""
        for info in self._infos:
            if info.step == step and info.id is not None:
                return self._told(self._reader(), info).get("metrics")
            if info.step == step:
                return info.metrics if self._options.best_fn else None
        return None

    def close(self) -> None:
        """Waits for the last save, and ends the attempt. A second call does nothing.

        Raises:
            What the last save failed with.
        """
        try:
            self.wait_until_finished()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                # What failed is raised above.
                with contextlib.suppress(LastgoodError):
                    writer.close()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
