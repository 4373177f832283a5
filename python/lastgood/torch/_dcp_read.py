"""`Reader`: what `torch.distributed.checkpoint.load` reads through."""

from __future__ import annotations

import io
import math
import os
import re
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from lastgood import _lastgood, _preflight, _steps, _world
from lastgood._lastgood import Corrupt, Incompatible, LastgoodError, NotFound
from lastgood.torch import _dcp_table
from lastgood.torch._dcp import is_written, step_of
from lastgood.torch._dcp_table import Table


class NoCommonMetadata(NotFound):
    """DCP is told to ask for the metadata of its rank."""


def _with_kind(error: LastgoodError) -> LastgoodError:
    """The error with its kind in the text, which is all that DCP keeps of it."""
    return type(error)(f"lastgood.{type(error).__name__}: {error}")


_TOLD = re.compile(r"metadata read failed: lastgood\.(\w+): (.*?)(?:; rank local|$)", re.DOTALL)


def from_assertion(error: BaseException) -> BaseException:
    """What a rank could not read the metadata for, out of the assertion that DCP makes of it."""
    found = _TOLD.search(str(error)) if isinstance(error, AssertionError) else None
    if found is None:
        return error
    kind = getattr(_lastgood, found[1], Corrupt)
    told: BaseException = kind(found[2])
    return told


class Reader(StorageReader):
    """Loads through `torch.distributed.checkpoint` from a run that `lg.torch.Writer` wrote, on any number of ranks.

    Every byte is verified, and every element of every tensor that is asked for is written, or nothing is. Nothing is
    unpickled. It is no rank of the run: a job that writes it is not disturbed.

    Args:
        store: as for `lg.open`; default ``LASTGOOD_STORE``.
        run: the run's name; default ``LASTGOOD_RUN``, else ``default``.
        at: ``last-good``, ``latest``, a step, or at least 8 digits of an id; a ``checkpoint_id`` of `dcp.load` has
            precedence. A damaged ``last-good`` is marked bad, and a rank alone goes back to the one before by itself;
            on several ranks it is an error, and the next start goes back.
        preflight, accept: as for `lg.open`: what a load does if this process computes otherwise than the one that
            saved, before anything is read. Without either it is refused in a process that has a `Writer` of the run,
            and goes on training; another one only reads, and is warned once of each difference.

    Raises:
        NotFound: if there is no such checkpoint, or it lacks what is asked for.
        Incompatible: if an element of a tensor that is asked for was not saved, or a rank computes otherwise.
        Corrupt: naming the object that is damaged. DCP wraps what is raised into a `CheckpointException`, which is no
            `Exception`; `lg.torch.load` does not.

    Example:
        >>> import lastgood as lg
        >>> reader = lg.torch.Reader("s3://bucket/llm", run="pretrain", at=1000)
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        run: str | None = None,
        at: str | int = "last-good",
        preflight: str | None = None,
        accept: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._place = _world.place_of(store, run)
        _preflight.check(preflight, accept)
        self._preflight, self._accept = preflight, accept
        self._at = str(at)
        self._id: Any = None
        self._checkpoint: Any = None
        self._table: Table | None = None
        self._rank: int | None = None
        self._native: Any = None
        #: What the metadata could not be read for: DCP tells it as text alone.
        self.refused: LastgoodError | None = None
        #: The id of the checkpoint that was loaded last, and its step.
        self.loaded: tuple[str, int] | None = None
        if _steps.is_asked(*self._place):
            # Not in the load: DCP takes the end of a process for a failure of its.
            _steps.look_at(*self._place)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_place", "_at", "_id", "_preflight", "_accept")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        place, at = state["_place"], state["_at"]
        asked = {"preflight": state["_preflight"], "accept": state["_accept"]}
        self.__init__(place[0], run=place[1], at=at, **asked)  # type: ignore[misc]
        self._id = state["_id"]

    @property
    def checkpoint_id(self) -> Any:
        """What `dcp.load` was told to load, or None."""
        return self._id

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """True if it names a step."""
        from lastgood.torch._dcp import Writer

        return Writer.validate_checkpoint_id(checkpoint_id)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begins a load of the step that ``checkpoint_id`` names.

        Raises:
            Invalid: if it names none.
        """
        self._id = checkpoint_id
        if checkpoint_id is not None:
            self._at = str(step_of(checkpoint_id))

    def _open(self) -> Any:
        if self._native is None:
            self._native = _lastgood.Reader(self._place[0], _world.store_options(), self._place[1])
        return self._native

    def _find(self, at: str) -> Any:
        """The checkpoint; a damaged last good one is marked bad, and a rank alone takes the one before."""
        native = self._open()
        while True:
            # Which one it is must be known before it is found damaged: another rank may have marked it meanwhile, and
            # the last good one would be another.
            id_ = native.resolve(at)
            try:
                return native.find(f"id:{id_}")
            except Corrupt as error:
                self._go_back(at, id_, error)

    def _go_back(self, at: str, id_: str, error: Corrupt) -> None:
        """Marks what is damaged; returns if the one before it may be taken.

        Raises:
            Corrupt: if there is nothing to go back to, or others must go back too.
        """
        if at != "last-good":
            raise error
        self._open().mark(f"id:{id_}", "bad", str(error))
        if _world.find_world().size > 1:
            raise error
        warnings.warn(
            f"lastgood: checkpoint {id_[:16]} is damaged, and the one before it is loaded: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        try:
            self._open().find("last-good")
        except NotFound:
            raise error from None
        except Corrupt:
            return

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is in the checkpoint, as DCP tells it.

        Raises:
            NotFound: if there is no such checkpoint, or it is none of DCP's.
            Corrupt, Unavailable, Denied: if its tables cannot be read.
        """
        rank = kwargs.get("rank")
        if rank is None:
            self.refused = None
        elif self.refused is not None and not isinstance(self.refused, NoCommonMetadata):
            # DCP asks again whatever the error was: a checkpoint that was found damaged is not passed over so.
            raise _with_kind(self.refused)
        try:
            return self._read_metadata(rank)
        except NoCommonMetadata as error:
            self.refused = error
            raise
        except LastgoodError as error:
            self.refused = error
            raise _with_kind(error) from error

    def _read_metadata(self, rank: int | None) -> Metadata:
        while True:
            self._checkpoint = self._find(self._at)
            alone = _dcp_table.is_per_rank(self._checkpoint)
            if alone and rank is None:
                raise NoCommonMetadata(
                    "each rank saved without collectives, so that there is no common metadata"
                )
            if rank is not None and alone and rank >= self._checkpoint.world_size:
                raise NotFound(
                    f"{self._checkpoint.world_size} ranks saved without collectives, and rank {rank} was none of "
                    "them; load on as many, or save with collectives"
                )
            try:
                self._table = _dcp_table.read(
                    self._open(), self._checkpoint, rank if alone else None
                )
            except Corrupt as error:
                self._go_back(self._at, self._checkpoint.id, error)
                continue
            metadata = self._table.metadata
            assert metadata.storage_meta is not None
            metadata.storage_meta.checkpoint_id = self._id
            metadata.storage_meta.load_id = uuid.uuid4().hex
            return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Learns which rank it is."""
        self._rank = kwargs.get("rank")

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing of the local plan is lastgood's. Every rank makes one, and what one fails with ends the load on all
        of them before anything is read: each compares itself here with the process that saved.

        Raises:
            Incompatible: if it computes otherwise, and nobody accepted it.
        """
        self._compare()
        return plan

    def _compare(self) -> None:
        world = _world.find_world()
        reader = _lastgood.Reader(
            self._place[0], _world.store_options(), self._place[1], world.rank, world.size
        )
        asked = self._preflight is not None or self._accept is not None
        if asked or is_written(self._place):
            notices = _preflight.of_reader(reader, self._checkpoint, self._preflight, self._accept)
        else:
            notices = _preflight.of_who_reads(reader, self._checkpoint)
        for notice in notices:
            warnings.warn(f"lastgood: {notice}", RuntimeWarning, stacklevel=4)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Lets every rank load the coordinator's checkpoint: another one may be committed meanwhile."""
        return [replace(plan, storage_data=self._checkpoint.id) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads and verifies everything, and then places it.

        Raises:
            Incompatible: if an element that is asked for was not saved.
            NotFound, Corrupt, Unavailable, Denied: as the checkpoint says. Nothing is changed then.
        """
        if plan.storage_data is not None and plan.storage_data != self._checkpoint.id:
            self._use(self._open().find(f"id:{plan.storage_data}"))
        while True:
            try:
                read = self._read(plan, planner)
                break
            except Corrupt as error:
                self._go_back(self._at, self._checkpoint.id, error)
                self._use(self._find(self._at))
        for item, memory in read:
            self._place_one(item, memory, planner)
        self.loaded = (self._checkpoint.id, self._checkpoint.step)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _use(self, checkpoint: Any) -> None:
        self._checkpoint = checkpoint
        self._compare()
        rank = self._rank if _dcp_table.is_per_rank(checkpoint) else None
        self._table = _dcp_table.read(self._open(), checkpoint, rank)

    def _read(self, plan: LoadPlan, planner: LoadPlanner) -> list[tuple[ReadItem, Any]]:
        table = self._table
        assert table is not None
        _check_coverage(plan, planner, table)
        targets = _lastgood.Targets()
        read: list[tuple[ReadItem, Any]] = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                fqn = item.storage_index.fqn
                if fqn not in table.values:
                    raise NotFound(f"{fqn} is no value of checkpoint {self._checkpoint.id[:16]}")
                read.append((item, None))
            elif 0 not in item.lengths:
                read.append((item, self._target(targets, item, table)))
        self._open().read(self._checkpoint, targets)
        return read

    def _target(self, targets: Any, item: ReadItem, table: Table) -> torch.Tensor:
        index = item.storage_index
        chunk = table.chunks.get(_dcp_table.index_key(index))
        known = table.metadata.state_dict_metadata.get(index.fqn)
        if chunk is None or known is None:
            raise NotFound(
                f"checkpoint {self._checkpoint.id[:16]} has no part of {index.fqn} at {list(index.offset or ())}"
            )
        memory = torch.empty(tuple(item.lengths), dtype=known.properties.dtype)
        start = index.offset or (0,) * len(item.storage_offsets)
        box = zip(start, item.storage_offsets, chunk.origin, strict=True)
        offsets = tuple(at + within - origin for at, within, origin in box)
        _dcp_table.add_target(targets, chunk.stored, memory, chunk.shape, offsets)
        return memory

    def _place_one(self, item: ReadItem, memory: Any, planner: LoadPlanner) -> None:
        if item.type == LoadItemType.BYTE_IO:
            self._place_value(item, planner)
            return
        target = planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(memory.shape):
            raise Incompatible(
                f"{item.dest_index.fqn}: the checkpoint has {list(memory.shape)}, there is {list(target.shape)}"
            )
        target.copy_(memory)
        planner.commit_tensor(item, target)

    def _place_value(self, item: ReadItem, planner: LoadPlanner) -> None:
        fqn = item.dest_index.fqn
        table = self._table
        assert table is not None
        template = getattr(planner, "state_dict", {}).get(fqn)
        kind, value = _dcp_table.value_of(table, item.storage_index.fqn, template)
        if kind == "bytes":
            planner.load_bytes(item, io.BytesIO(value))
            return
        if kind == "bytesio":
            value = io.BytesIO(value)
        plain = DefaultLoadPlanner.load_bytes
        if isinstance(planner, DefaultLoadPlanner) and type(planner).load_bytes is plain:
            if planner.flatten_state_dict:
                set_element(planner.original_state_dict, planner.mappings[fqn], value)
            else:
                planner.state_dict[fqn] = value
            return
        # A planner of the user's own unpickles what it is given: it gets what was made here and now, in memory.
        stream = io.BytesIO()
        torch.save(value, stream)
        stream.seek(0)
        planner.load_bytes(item, stream)


def _check_coverage(plan: LoadPlan, planner: LoadPlanner, table: Table) -> None:
    """Every element of every tensor that is asked for is written by an item of the plan: where the metadata has a
    gap, DCP plans nothing, and would leave what was in memory before."""
    state_dict = getattr(planner, "state_dict", None)
    if not isinstance(state_dict, dict):
        return
    planned: dict[str, int] = {}
    for item in plan.items:
        if item.type == LoadItemType.TENSOR:
            fqn = item.dest_index.fqn
            planned[fqn] = planned.get(fqn, 0) + math.prod(item.lengths)
    for fqn, value in state_dict.items():
        # What is not in the checkpoint at all was judged by the planner, which may allow it.
        if not isinstance(value, torch.Tensor) or fqn not in table.metadata.state_dict_metadata:
            continue
        local = value.to_local() if hasattr(value, "to_local") else value
        if planned.get(fqn, 0) != local.numel():
            raise Incompatible(
                f"{fqn}: {local.numel()} elements are asked for, and the checkpoint has {planned.get(fqn, 0)} of "
                "them; nothing was changed: ask only for what was saved"
            )
