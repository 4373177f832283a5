"""Single tensors: the memory that is saved of one, and the memory that one is restored from."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lastgood import _memory, _state
from lastgood._state import Columns, Saved, SavedTensor, Shard, Wholes, World
from lastgood.torch._sharding import Spread, is_dtensor, local_part

#: The stored names of element types. Complex numbers may be conjugated without a word in their memory.
_PLAIN = {
    getattr(torch, name): stored
    for name, stored in _memory.TORCH_DTYPES.items()
    if hasattr(torch, name) and not name.startswith("complex")
}
_DTYPE, _SHAPE, _BYTES = map(operator.attrgetter, ("dtype", "shape", "nbytes"))
_STRIDED, _TENSOR, _PARAMETER = torch.strided, torch.Tensor, torch.nn.Parameter

#: What is smaller is copied rather than looked at.
_LARGE = 64 << 10
#: How many tensors and storage objects share a storage; not every torch can tell.
_users_of = getattr(torch._C, "_storage_Use_Count", None)


class PlainTensors(Wholes):
    """Whole tensors of which the memory is what is stored: contiguous and on the CPU. Nothing of them is kept from one
    save to the next: a tensor may get other memory, another shape or another dtype."""

    def __init__(self, role: str, *, changes: bool) -> None:
        super().__init__(role, changes=changes)
        self.tensors: list[Any] = []

    def take(self, name: str, tensor: Any) -> bool:
        """Adds ``tensor`` if it is such a one; False if `shards_of` must look at it."""
        kind = type(tensor)
        if (
            (kind is not _TENSOR and kind is not _PARAMETER)
            or tensor.dtype not in _PLAIN
            or not tensor.is_cpu
            or tensor.layout is not _STRIDED
            or tensor.is_nested
            or not tensor.is_contiguous()
            or tensor.is_neg()
        ):
            return False
        self.names.append(name)
        self.tensors.append(tensor)
        return True

    def columns(self, rows: slice) -> Columns:
        tensors = self.tensors[rows]
        # The storage keeps the memory, even if the tensor gets another storage while this one is copied.
        return Columns(
            [_PLAIN[dtype] for dtype in map(_DTYPE, tensors)],
            list(map(_SHAPE, tensors)),
            list(map(torch.Tensor.data_ptr, tensors)),
            list(map(_BYTES, tensors)),
            list(map(torch.Tensor.untyped_storage, tensors)),
        )


def add_tensors(
    wholes: list[Wholes], tensors: dict[str, Any], where: str, role: str, deferred: bool
) -> list[Shard]:
    """Adds tensors that may be changed as soon as the call of the save has returned; gives the shards of those that are
    not plain memory."""
    plain = PlainTensors(role, changes=True)
    wholes.append(plain)
    shards: list[Shard] = []
    for name, tensor in tensors.items():
        if not plain.take(name, tensor):
            shards += shards_of(name, tensor, f"{where}[{name!r}]", role, copy=deferred)
    return shards


def shards_of(
    name: str, tensor: Any, path: str, role: str, copy: bool, spread: Spread | None = None
) -> list[Shard]:
    """The part of ``tensor`` that this rank holds; of a DTensor it is what its placements say, whatever ``role``."""
    dtype = _dtype_name(tensor, path)
    if not is_dtensor(tensor):
        plain = _real(_memory.plain_torch(tensor, path, copy))
        return [_state.whole(name, dtype, plain.shape, _memory.of_torch(plain), role)]
    part = local_part(tensor, path, spread)
    shape = tuple(tensor.shape)
    if part.empty and 0 not in shape:
        return []
    plain = _memory.plain_torch(part.tensor, path, copy)
    memory = _memory.of_torch(plain)
    return [Shard(name, dtype, shape, part.offsets, part.sizes, memory, part.role)]


def _dtype_name(tensor: Any, path: str) -> str:
    # There is no stored name for complex128: it is two float64, in a dimension after the others.
    if tensor.dtype == torch.complex128 and not is_dtensor(tensor):
        return "F64"
    return _memory.torch_dtype_name(tensor.dtype, path)


def _real(tensor: Any) -> Any:
    return torch.view_as_real(tensor) if tensor.dtype == torch.complex128 else tensor


def stage(
    saved: Saved, name: str, tensor: SavedTensor, world: World, like: Any
) -> tuple[Shard, Callable[[], Any]]:
    """Memory for a tensor of a checkpoint, or for the part of it that ``like`` holds, and how to get the tensor."""
    dtype = _memory.torch_dtype(tensor.dtype)
    if like is not None and is_dtensor(like):
        part = local_part(like, name)
        memory, held = _memory_for(saved, name, (part.offsets, part.sizes), dtype)
        target = Shard(name, tensor.dtype, tensor.shape, part.offsets, part.sizes, held, "shard")
        return target, lambda: _as_dtensor(memory, like)
    role = _state.role_of(saved, name, world)
    stored = f"{name}@rank{world.rank}" if role == "own" else name
    part_of_all = ((0,) * len(tensor.shape), tensor.shape)
    memory, held = _memory_for(saved, stored, part_of_all, dtype)
    target = _state.whole(name, tensor.dtype, tensor.shape, held, role)
    complex128 = like is not None and like.dtype == torch.complex128

    return target, lambda: torch.view_as_complex(memory) if complex128 else memory


def _memory_for(
    saved: Saved, stored: str, part: tuple[Iterable[int], Iterable[int]], dtype: Any
) -> tuple[Any, _memory.Memory]:
    """A tensor for the part (offsets, sizes) of a stored one: as a crash has left it in memory, or to be filled."""
    taken = saved.take(stored, part)
    if taken is None:
        tensor = torch.empty(part[1], dtype=dtype)
        return tensor, _memory.of_torch(tensor)
    storage = torch.frombuffer(_memory.buffer_of(taken), dtype=torch.uint8).untyped_storage()
    tensor = torch.empty(0, dtype=dtype).set_(storage, 0, torch.Size(part[1]))
    return tensor, _memory.Memory(taken.address, taken.bytes, taken)


def _as_dtensor(local: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def local(tensor: Any) -> Any:
    return tensor._local_tensor if is_dtensor(tensor) else tensor


def fits(component: str, name: str, tensor: Any, saved: SavedTensor) -> str | None:
    shape, dtype = tuple(tensor.shape), _dtype_name(tensor, name)
    if tensor.dtype == torch.complex128:
        shape = (*shape, 2)
    if shape != saved.shape:
        return f"{component}/{name} has shape {list(shape)}, in the checkpoint {list(saved.shape)}"
    if dtype != saved.dtype:
        return f"{component}/{name} is {dtype}, in the checkpoint {saved.dtype}"
    return None


def swap(live: Any, staged: Any) -> None:
    """Exchanges what ``live`` and ``staged`` hold, so that a second call takes the first back."""
    live = local(live)
    if _can_change_storage(live, staged):
        # Nobody else sees the memory of either, so that it can change hands without a copy.
        live.data, staged.data = staged.data, live.data
        torch.autograd.graph.increment_version(live)
        return
    before = live.detach().to("cpu", copy=True)
    fill(live, staged)
    with torch.inference_mode(staged.is_inference()), torch.no_grad():
        staged.copy_(before)


def _can_change_storage(live: Any, staged: Any) -> bool:
    return (
        live.nbytes >= _LARGE
        and type(live) in (_TENSOR, _PARAMETER)
        and live.layout is _STRIDED
        and live.is_cpu
        and live.stride() == staged.stride()
        and _has_all_of_its_storage(live)
        and _has_all_of_its_storage(staged)
        and not live.is_shared()
        and not live.is_pinned()
    )


def _references_if_alone() -> int:
    """What is counted for a storage object that nobody else holds, which differs between versions of Python."""
    tensor = torch.empty(1)
    storage = tensor.untyped_storage()
    return sys.getrefcount(storage)


_ALONE = _references_if_alone()


def _has_all_of_its_storage(tensor: Any) -> bool:
    """True if no other tensor and no array can share the memory of ``tensor``."""
    if _users_of is None or tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
        return False
    storage = tensor.untyped_storage()
    # Two: the tensor, and the object that asks. Whoever else holds that object is seen by its references.
    users: int = _users_of(storage._cdata)
    return users == 2 and sys.getrefcount(storage) == _ALONE and storage.nbytes() == tensor.nbytes


def fill(live: Any, values: Any) -> None:
    """Puts ``values`` into ``live``, which stays the same tensor."""
    with torch.inference_mode(live.is_inference()), torch.no_grad():
        if torch._debug_has_internal_overlap(live) == 1:
            # Elements of an expanded tensor share memory, and each has a value of its own now.
            live.set_(values.to(live.device, copy=True))
        else:
            live.copy_(values)
