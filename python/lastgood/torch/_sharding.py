"""DTensors: which part of one this rank holds, and who else holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lastgood._lastgood import Invalid


def is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


@dataclass(frozen=True)
class LocalPart:
    """The part of a DTensor that this rank holds."""

    tensor: Any
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    #: ``shard`` if no other rank holds it; else ``stored`` on the rank at the beginning of every replicated dimension
    #: of the mesh, and ``witnessed`` on the others.
    role: str

    @property
    def empty(self) -> bool:
        return 0 in self.sizes


class Spread:
    """Over which dimensions of its root mesh a job spreads its parameters.

    With two-dimensional parallelism a parameter may be spread over one dimension alone, by a mesh that knows nothing of
    the other one: all ranks along that other dimension hold the same part. A dimension that no parameter is spread over
    is something else (the stages of a pipeline hold different parameters).
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        self._used: set[int] = set()
        self._known: dict[int, tuple[Any, set[int], list[int]]] = {}
        for tensor in tensors:
            if is_dtensor(tensor):
                self._used |= self._look(tensor.device_mesh)[1]

    def _look(self, mesh: Any) -> tuple[Any, set[int], list[int]]:
        """The mesh itself, which dimensions of the root it covers, and this rank's place in the root."""
        found = self._known.get(id(mesh))
        if found is None:
            root = mesh._get_root_mesh()
            mine = list(root.get_coordinate() or ())
            covered: set[int] = set()
            for rank in mesh.mesh.flatten().tolist():
                place = (root.mesh == rank).nonzero().flatten().tolist()
                covered |= {
                    d for d, at in enumerate(mine) if len(place) == len(mine) and place[d] != at
                }
            found = self._known[id(mesh)] = (mesh, covered, mine)
        return found

    def role(self, mesh: Any) -> str:
        """Whether ranks outside of ``mesh`` hold the same as those in it, as a role of `LocalPart`."""
        _, covered, mine = self._look(mesh)
        missing = self._used - covered
        if not missing:
            return "shard"
        return "witnessed" if any(mine[d] for d in missing if d < len(mine)) else "stored"


def local_part(tensor: Any, path: str, spread: Spread | None = None) -> LocalPart:
    """The part of the DTensor ``tensor`` that this rank holds.

    Raises:
        Invalid: if it is no state (partial sums), or no box of the global tensor.
    """
    mesh, placements, shape = tensor.device_mesh, tensor.placements, tuple(tensor.shape)
    if any(placement.is_partial() for placement in placements):
        raise Invalid(f"{path}: a DTensor with partial sums is no state; redistribute it first")
    local = tensor._local_tensor
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return LocalPart(local, (0,) * len(shape), (0,) * len(shape), "shard")
    rows: dict[int, list[range]] = {dim: [range(size)] for dim, size in enumerate(shape)}
    role = spread.role(mesh) if spread is not None else "shard"
    for axis, placement in enumerate(placements):
        parts, mine = mesh.size(axis), coordinate[axis]
        if placement.is_replicate():
            if parts > 1 and role != "witnessed":
                role = "witnessed" if mine else "stored"
            continue
        # FSDP over tensor parallelism cuts each part of the other mesh dimension.
        groups = getattr(placement, "split_factor", 1)
        cut = [_chunk(group, parts, mine) for group in _groups(rows[placement.dim], groups)]
        rows[placement.dim] = [run for runs in cut for run in runs]
    boxes = [_joined(rows[dim]) for dim in range(len(shape))]
    sizes = tuple(sum(len(run) for run in rows[dim]) for dim in range(len(shape)))
    if sizes != tuple(local.shape) or any(len(runs) > 1 for runs in boxes):
        raise Invalid(
            f"{path}: the part of {list(shape)} that this rank holds by {placements} is no box of it; redistribute it "
            "so that each rank holds consecutive rows"
        )
    offsets = tuple(runs[0].start if runs else 0 for runs in boxes)
    return LocalPart(local, offsets, sizes, role)


def _groups(runs: list[range], groups: int) -> list[list[range]]:
    return [runs] if groups == 1 else [_chunk(runs, groups, i) for i in range(groups)]


def _chunk(runs: list[range], parts: int, mine: int) -> list[range]:
    """Part ``mine`` of the positions in ``runs``, as torch.chunk cuts them."""
    count = sum(len(run) for run in runs)
    width = -(-count // parts)
    begin, end = min(count, mine * width), min(count, (mine + 1) * width)
    cut, passed = [], 0
    for run in runs:
        piece = run[max(0, begin - passed) : max(0, end - passed)]
        cut += [piece] if piece else []
        passed += len(run)
    return cut


def _joined(runs: list[range]) -> list[range]:
    joined: list[range] = []
    for run in runs:
        if joined and joined[-1].stop == run.start:
            joined[-1] = range(joined[-1].start, run.stop)
        else:
            joined.append(run)
    return joined
