"""Restoring in two halves: everything is planned, read and verified first; then it is applied, or taken back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lastgood import _lastgood, _memory, _preflight, _state, _tree
from lastgood._lastgood import Incompatible, NotFound
from lastgood._preflight import Report
from lastgood._state import Adapter, Loading, Mismatch, Saved, SavedTensor, World

Components = dict[str, tuple["_state.Declared", "Adapter | None"]]


class Plan:
    """A restore of ``components`` from ``checkpoint``."""

    def __init__(
        self,
        native: Any,
        checkpoint: Any,
        components: Components,
        world: World,
        *,
        partial: bool,
    ) -> None:
        self.native = native
        self.checkpoint = checkpoint
        self.components = components
        self.world = world
        self.loadings: list[Loading] = []
        self.problems: list[str] = []
        self.missing = False
        self.notices: list[str] = []
        #: Who only reads has no memory that outlives a process.
        self.taking = native.take(checkpoint) if isinstance(native, _lastgood.Run) else None
        self._compare_components(partial)
        self._load(self._read_trees())

    def _compare_components(self, partial: bool) -> None:
        there = {name: durability for name, _, durability in self.checkpoint.components()}
        durable = {name for name, durability in there.items() if durability == "durable"}
        asked = {name for name, (_, adapter) in self.components.items() if adapter is not None}
        for name in sorted(asked - durable):
            self.problems.append(f"component {name!r} is not in the checkpoint")
            self.missing = True
        if not partial:
            left = sorted(durable - asked)
            self.problems += [f"component {name!r} is only in the checkpoint" for name in left]
        self.asked = asked & durable

    def _read_trees(self) -> dict[str, dict[int, Any]]:
        """The trees of each component by rank: of this rank, or of all if the world has changed."""
        saved_by = self.checkpoint.world_size
        ranks = [self.world.rank] if saved_by == self.world.size else range(saved_by)
        targets = _lastgood.Targets()
        numbers = {}
        for name in sorted(self.asked):
            for rank in ranks:
                numbers[name, rank] = targets.blob(name, f"{_state.TREE}@rank{rank}")
        self.native.read(self.checkpoint, targets)
        trees: dict[str, dict[int, Any]] = {name: {} for name in self.asked}
        for (name, rank), number in numbers.items():
            try:
                stored = json.loads(targets.take(number))
                trees[name][rank] = {"tree": stored["tree"], "own": list(stored["own"])}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise Incompatible(
                    f"{name}/{_state.TREE}@rank{rank} is no tree of this version: {error!r}"
                ) from None
        return trees

    def _load(self, trees: dict[str, dict[int, Any]]) -> None:
        stored = self._tensors()
        for name in self.components:
            if name not in self.asked:
                continue
            adapter = self.components[name][1]
            assert adapter is not None
            if absent := _absent(list(trees[name].values())):
                self.problems += [f"{name}: {problem}" for problem in absent]
                continue
            saved = self._saved(name, trees[name], stored.get(name, {}))
            try:
                self.loadings.append(adapter.load(saved, self.world))
            except Mismatch as mismatch:
                self.problems += mismatch.problems
            self.notices += saved.notices
            saved.notices = self.notices

    def _tensors(self) -> dict[str, dict[str, SavedTensor]]:
        found: dict[str, dict[str, SavedTensor]] = {}
        for component, name, dtype, shape, _ in self.checkpoint.tensors():
            if dtype != "BLOB":
                found.setdefault(component, {})[name] = SavedTensor(dtype, tuple(shape))
        return found

    def _saved(self, name: str, trees: dict[int, Any], stored: dict[str, SavedTensor]) -> Saved:
        """The tensors as the adapter knows them: what each rank stored for itself is one tensor."""
        saved_by = self.checkpoint.world_size
        own = sorted({tensor for tree in trees.values() for tensor in tree["own"]})
        tensors = dict(stored)
        for base in own:
            for rank in range(saved_by):
                found = tensors.pop(f"{base}@rank{rank}", None)
                if found is not None and (rank == self.world.rank or base not in tensors):
                    tensors[base] = found
        plain = {rank: tree["tree"] for rank, tree in trees.items()}
        counts = dict.fromkeys(own, saved_by)
        return Saved(name, saved_by, plain, tensors, counts, taking=self.taking)

    def check(self) -> None:
        """Raises what does not fit."""
        if not self.problems:
            return
        shown = self.problems[:20]
        more = len(self.problems) - len(shown)
        text = "\n  ".join([*shown, *([f"and {more} more"] if more else [])])
        kind = NotFound if self.missing else Incompatible
        raise kind(
            f"checkpoint {self.checkpoint.id[:16]} of step {self.checkpoint.step} does not fit what is there; nothing "
            f"was changed:\n  {text}\nopen the run with the state that was saved, or restore only=[…] of it"
        )

    def read(self) -> tuple[int, int]:
        """Reads and verifies every byte into memory of its own. What was taken as it lies in memory is verified behind
        the call, and before anything that comes of it becomes durable."""
        targets = _lastgood.Targets()
        names = self._full_names()
        for name, loading in zip(names, self.loadings, strict=True):
            for target in loading.targets:
                _state.ask(targets, name, self._stored_name(name, target), target)
        placed, read = self.native.read(self.checkpoint, targets)
        if self.taking is not None:
            self.taking.verify()
        memories = [target.memory for loading in self.loadings for target in loading.targets]
        placed += sum(m.bytes for m in memories if isinstance(m.owner, _lastgood.Taken))
        return placed, read

    def _full_names(self) -> list[str]:
        return [name for name in self.components if name in self.asked]

    def _stored_name(self, component: str, target: _state.Shard) -> str:
        rank = self.world.rank
        if target.role == "own":
            return f"{target.name}@rank{rank}"
        return target.name

    def apply(self) -> None:
        """Puts everything in its place; if something fails, everything is as it was."""
        done: list[Loading] = []
        try:
            for loading in sorted(self.loadings, key=lambda loading: loading.last):
                done.append(loading)
                loading.apply()
        except BaseException as error:
            stuck = _take_back(done)
            if not isinstance(error, Exception):
                raise
            state = (
                "everything is as it was" if not stuck else f"NOT taken back: {'; '.join(stuck)}"
            )
            raise Incompatible(
                f"an object refused its state from checkpoint {self.checkpoint.id[:16]}; {state}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for declared, _ in self.components.values():
            after = getattr(declared, "after", None)
            if after is not None:
                after()

    def needs(self) -> tuple[int, int, list[str]]:
        """The bytes that are read, those of memory, and what does not fit."""
        # The memory of the targets is there already, but most of it was never touched.
        needed = sum(t.memory.bytes for loading in self.loadings for t in loading.targets)
        return needed, needed, self.problems

    def report(self, found: Mapping[str, Any], objects: tuple[int, int, int, float]) -> Report:
        """What the restore would do."""
        return _preflight.report_of(self.checkpoint.id, found, objects, list(self.notices))


def _absent(trees: list[Any]) -> list[str]:
    """What is said of each framework that values in ``trees`` need and that is not installed."""
    said = []
    for framework in sorted(_tree.frameworks_of(trees)):
        try:
            _memory.need(framework)
        except Incompatible as error:
            said.append(str(error))
    return said


def _take_back(done: list[Loading]) -> list[str]:
    """Undoes what was applied, and gives what could not be undone: the object that refused may refuse again."""
    stuck = []
    for loading in reversed(done):
        try:
            loading.undo()
        except Exception as error:
            stuck.append(f"{type(error).__name__}: {error}")
    return stuck
