"""Sums over ranks that have the same bytes on any number of processes.

An all-reduce adds in an order that depends on how many processes there are, and floating-point sums depend on their
order. Here each of L *logical ranks* computes with its own part of the batch, the processes hold consecutive ones of
them, and all sums are ``((c0 + c1) + c2) + …`` in the order of the logical ranks: a training that goes on with fewer
processes, or more, has the bits of one that was never disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lastgood._lastgood import Invalid
from lastgood.torch._sharding import is_dtensor

Op = Literal["sum", "mean"]

#: Gradients are exchanged in pieces of about so many bytes for each logical rank, as by DDP.
BUCKET_BYTES = 25 << 20
#: What is received of each logical rank before it is added: memory that is used again and again stays in the caches,
#: and fresh memory costs more than to send what it takes.
PIECE_BYTES = 4 << 20


class LogicalRanks:
    """``total`` logical ranks on the processes of ``group``: process p of W holds those from ``total * p // W`` to
    ``total * (p + 1) // W``.

    Args:
        total: how many there are. A training has the same results on every number of processes up to this one.
        group: a process group; default that of all processes, and this one alone without torch.distributed.

    Raises:
        Invalid: if a process would hold none, or this process is not in the group.

    Example:
        >>> import lastgood as lg
        >>> logical = lg.torch.LogicalRanks(4)
        >>> logical.total, logical.processes, logical.mine
        (4, 1, range(0, 4))
    """

    def __init__(self, total: int, group: Any = None) -> None:
        self.total = total
        self.processes, self.process = _place(group)
        if total < self.processes:
            raise Invalid(
                f"{total} logical ranks are fewer than {self.processes} processes; each process holds at least one, "
                f"so give {self.processes} or more, or start fewer processes"
            )

    def __repr__(self) -> str:
        return f"LogicalRanks({self.total}) on process {self.process} of {self.processes}"

    @property
    def mine(self) -> range:
        """The logical ranks that this process holds."""
        return self.of(self.process)

    def of(self, process: int) -> range:
        """The logical ranks that ``process`` holds."""
        return _part(self.total, self.processes, process)


def logical_ranks(total: int, group: Any = None) -> range:
    """Which of ``total`` logical ranks this process holds: `LogicalRanks.mine`.

    Raises:
        Invalid: as `LogicalRanks`.

    Example:
        >>> import lastgood as lg
        >>> lg.torch.logical_ranks(4)
        range(0, 4)
    """
    return LogicalRanks(total, group).mine


def ordered_all_reduce(
    contributions: Tensor | Sequence[Tensor],
    *,
    logical: LogicalRanks | int | None = None,
    op: Op = "sum",
    group: Any = None,
    accumulate: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The sum over all logical ranks in their order, with the same bytes on every number of processes.

    Every process of the group calls it, with tensors of the same shape and dtype; a call with others on another process
    is not noticed here, and hangs or fails as any collective does. With W processes each one sums a W-th of the
    elements for all logical ranks: as many bytes are sent as by an all-reduce if each process holds one logical rank,
    and more if it holds several. Without torch.distributed it is plain addition.

    Args:
        contributions: one tensor for each logical rank that this process holds, in their order. They are not changed.
        logical: how many logical ranks there are on all processes; default as many on each as are given here.
        op: ``sum``, or ``mean``, which divides the sum once.
        group: the process group; default that of all processes.
        accumulate: the dtype to add in, such as ``torch.float32`` for tensors of bfloat16: what is sent stays in their
            own, and is rounded once at the end. Default that of the tensors.
        out: a contiguous tensor for the sum; it may be the first contribution, and overlaps no other one. Default a
            new one, whose memory may take longer to get than the sum.

    Returns:
        The sum, on every process: ``out``, or a new contiguous tensor.

    Raises:
        Invalid: if the number of tensors, a shape, a dtype, a device or the operation is wrong. It is raised on
            this process alone, before anything is sent.

    Example:
        >>> import lastgood as lg, torch
        >>> parts = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8]), torch.tensor([1.0])]
        >>> lg.torch.ordered_all_reduce(parts)
        tensor([1.])
        >>> lg.torch.ordered_all_reduce(parts, op="mean", accumulate=torch.float64)
        tensor([0.5000])
    """
    parts = [contributions] if isinstance(contributions, Tensor) else list(contributions)
    spread = _spread(logical, len(parts), group)
    _check(parts, spread, op, accumulate)
    first = parts[0]
    if out is None:
        out = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    elif (_of(out), out.is_contiguous()) != (_of(first), True):
        raise Invalid(
            f"out is {_of(out)}, and the contributions are {_of(first)}; give a contiguous tensor like them"
        )
    elif any(part.data_ptr() == out.data_ptr() for part in parts[1:] if part.numel()):
        raise Invalid(
            "out is one of the later contributions; give the first one, or another tensor"
        )
    flat = [part.detach().reshape(-1) for part in parts]
    _reduce(flat, out.detach().view(-1), spread, group, op, accumulate)
    return out


def _reduce(
    flat: list[Tensor],
    out: Tensor,
    spread: LogicalRanks,
    group: Any,
    op: str,
    accumulate: torch.dtype | None,
) -> None:
    """Sums this process's cut of the elements, a piece after the other, and has the cuts of the others."""
    cuts = [_part(out.numel(), spread.processes, p) for p in range(spread.processes)]
    longest = max(map(len, cuts))
    turns = max(1, -(-longest * out.element_size() // PIECE_BYTES))
    others = spread.total - len(flat)
    shape = (others, -(-longest // turns))
    scratch = torch.empty(shape, dtype=out.dtype, device=out.device)
    for turn in range(turns):
        pieces = [cut[len(cut) * turn // turns : len(cut) * (turn + 1) // turns] for cut in cuts]
        rows = _rows(flat, pieces, spread, group, scratch)
        mine = pieces[spread.process]
        _add(rows, out[mine.start : mine.stop], spread.process > 0, op, accumulate)
    if spread.processes > 1:
        _share(out, cuts, spread, group)


def _place(group: Any) -> tuple[int, int]:
    """How many processes there are, and which of them this one is."""
    if not dist.is_available() or not dist.is_initialized():
        return 1, 0
    process = dist.get_rank(group)
    if process < 0:
        raise Invalid(
            "this process is not in the group; call it in the processes of the group only"
        )
    return dist.get_world_size(group), process


def _part(total: int, parts: int, part: int) -> range:
    return range(total * part // parts, total * (part + 1) // parts)


def _spread(logical: LogicalRanks | int | None, held: int, group: Any) -> LogicalRanks:
    if isinstance(logical, LogicalRanks):
        processes, process = _place(group)
        if (logical.processes, logical.process) != (processes, process):
            raise Invalid(
                f"{logical} was made for other processes than process {process} of {processes}, which call this; make "
                "LogicalRanks anew after each start, with the group that is given here"
            )
        return logical
    return LogicalRanks(_place(group)[0] * max(1, held) if logical is None else logical, group)


def _check(
    parts: list[Tensor], spread: LogicalRanks, op: str, accumulate: torch.dtype | None
) -> None:
    if op not in ("sum", "mean"):
        raise Invalid(f"op is {op!r}; give 'sum' or 'mean'")
    if len(parts) != len(spread.mine) or not parts:
        raise Invalid(
            f"process {spread.process} of {spread.processes} holds the logical ranks {list(spread.mine)} of "
            f"{spread.total}, and {len(parts)} tensors are given; give one for each of them"
        )
    first = parts[0]
    if first.layout != torch.strided or is_dtensor(first):
        raise Invalid(
            f"a {type(first).__name__} of layout {first.layout} is given; give dense local tensors (to_dense(), "
            "to_local())"
        )
    expected = (first.dtype, first.shape, first.device)
    for rank, part in zip(spread.mine, parts, strict=True):
        if (part.dtype, part.shape, part.device) != expected:
            raise Invalid(
                f"logical rank {rank} gives {_of(part)}, and logical rank {spread.mine[0]} {_of(first)}; give equal "
                "shapes, dtypes and devices"
            )
    kind = (first.is_floating_point(), first.is_complex())
    if first.dtype == torch.bool or (op == "mean" and not any(kind)):
        raise Invalid(f"there is no {op} of {first.dtype}; convert it first")
    if accumulate is not None and (
        kind != (accumulate.is_floating_point, accumulate.is_complex)
        or torch.promote_types(first.dtype, accumulate) != accumulate
    ):
        raise Invalid(
            f"accumulate={accumulate} cannot hold {first.dtype}; give a wider dtype of its kind, or none"
        )


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _rows(
    flat: list[Tensor], pieces: list[range], spread: LogicalRanks, group: Any, scratch: Tensor
) -> list[Tensor]:
    """This process's piece of what each logical rank contributes: the others' in ``scratch``."""
    mine = pieces[spread.process]
    rows: list[Tensor] = []
    sent: list[tuple[int, Tensor]] = []
    received: list[tuple[int, Tensor]] = []
    for process, piece in enumerate(pieces):
        if process == spread.process:
            rows += [tensor[mine.start : mine.stop] for tensor in flat]
            continue
        sent += [(process, tensor[piece.start : piece.stop]) for tensor in flat]
        for _ in spread.of(process):
            row = scratch[len(received)][: len(mine)]
            received.append((process, row))
            rows.append(row)
    _exchange(sent, received, group)
    return rows


def _add(
    rows: list[Tensor], out: Tensor, scratch: bool, op: str, accumulate: torch.dtype | None
) -> None:
    """Adds the rows one after the other, in the first one if that is ``scratch``. Each element alone has an order, so
    that it does not matter how the elements are cut, nor by how many threads they are added."""
    if accumulate not in (None, out.dtype):
        total = rows[0].to(accumulate)
    elif scratch:
        total = rows[0]
    else:
        total = out.copy_(rows[0])
    for row in rows[1:]:
        total.add_(row)
    if op == "mean":
        total.div_(len(rows))
    # Not before all rows are read: this may be where one of them is.
    if total is not out:
        out.copy_(total)


def _share(out: Tensor, cuts: list[range], spread: LogicalRanks, group: Any) -> None:
    """Gives every process each process's cut."""
    pieces = [out[cut.start : cut.stop] for cut in cuts]
    others = [process for process in range(len(cuts)) if process != spread.process]
    sent = [(process, pieces[spread.process]) for process in others]
    _exchange(sent, [(process, pieces[process]) for process in others], group)


def _exchange(
    sent: list[tuple[int, Tensor]], received: list[tuple[int, Tensor]], group: Any
) -> None:
    """Sends and receives all at once, as bytes, which every backend knows. What goes from one process to another
    arrives in its order. Gloo's own all_to_all and all_gather take several times as long."""
    calls = []
    for function, messages in ((dist.isend, sent), (dist.irecv, received)):
        for process, tensor in messages:
            peer = process if group is None else dist.get_global_rank(group, process)
            if tensor.numel():
                calls.append(dist.P2POp(function, tensor.view(torch.uint8), peer, group))
    for work in dist.batch_isend_irecv(calls) if calls else []:
        work.wait()


def ordered_all_reduce_grads(
    model: nn.Module | Iterable[Tensor],
    per_logical_grads: Sequence[Sequence[Tensor | None]],
    *,
    logical: LogicalRanks | int | None = None,
    op: Op = "mean",
    group: Any = None,
    accumulate: torch.dtype | None = None,
) -> None:
    """Sets the gradient of every parameter to the mean over all logical ranks, with the same bytes on every number of
    processes. For a model without DDP, whose processes hold several logical ranks each.

    What else a step depends on has to go by logical rank too: which samples it sees, and the seed of its dropout.
    Statistics that layers keep of their batches (batch norm) are those of each process alone, and stay different.

    Args:
        model: the module, or the parameters that are trained.
        per_logical_grads: for each logical rank that this process holds, in their order, the gradients of the
            parameters with ``requires_grad`` in theirs, as `torch.autograd.grad` gives them. None counts as zeros: an
            unused parameter gets a gradient of zeros on every process.
        logical, op, group, accumulate: as for `ordered_all_reduce`.

    Raises:
        Invalid: as `ordered_all_reduce`, and if gradients and parameters do not fit.

    Example:
        >>> import lastgood as lg, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = torch.arange(16.0).view(4, 2, 2)
        >>> logical = lg.torch.LogicalRanks(4)
        >>> grads = []
        >>> for rank in logical.mine:
        ...     loss = model(batches[rank]).square().mean()
        ...     grads.append(torch.autograd.grad(loss, list(model.parameters())))
        >>> lg.torch.ordered_all_reduce_grads(model, grads, logical=logical)
        >>> model.weight.grad.shape
        torch.Size([1, 2])
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    trained = [p for p in parameters if p.requires_grad]
    held = [list(grads) for grads in per_logical_grads]
    spread = _spread(logical, len(held), group)
    for rank, grads in zip(spread.mine, held, strict=False):
        _check_grads(rank, trained, grads)
    for bucket in _buckets(trained):
        flat = [torch.cat([_flat(grads[i], trained[i]) for i in bucket]) for grads in held]
        reduced = ordered_all_reduce(
            flat, logical=spread, op=op, group=group, accumulate=accumulate, out=flat[0]
        )
        begin = 0
        for i in bucket:
            end = begin + trained[i].numel()
            trained[i].grad = reduced[begin:end].view(trained[i].shape)
            begin = end


def _check_grads(rank: int, trained: list[Tensor], grads: list[Tensor | None]) -> None:
    if len(grads) != len(trained):
        raise Invalid(
            f"logical rank {rank} has {len(grads)} gradients, and {len(trained)} parameters are trained; give one for "
            "each, None for an unused one"
        )
    for i, (parameter, grad) in enumerate(zip(trained, grads, strict=True)):
        if is_dtensor(parameter):
            raise Invalid(
                f"parameter {i} is a DTensor; its ranks hold parts of it, and not logical ranks of their own"
            )
        if grad is not None and (grad.shape, grad.dtype) != (parameter.shape, parameter.dtype):
            raise Invalid(
                f"logical rank {rank} gives {_of(grad)} for parameter {i}, which is {_of(parameter)}; give gradients "
                "in the order of the parameters"
            )


def _buckets(trained: list[Tensor]) -> list[list[int]]:
    """Consecutive parameters of one dtype and device, about `BUCKET_BYTES` together."""
    buckets: list[list[int]] = []
    kind, size = None, 0
    for i, parameter in enumerate(trained):
        if (parameter.dtype, parameter.device) != kind or size >= BUCKET_BYTES:
            kind, size = (parameter.dtype, parameter.device), 0
            buckets.append([])
        buckets[-1].append(i)
        size += parameter.numel() * parameter.element_size()
    return buckets


def _flat(grad: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter).view(-1) if grad is None else grad.detach().reshape(-1)


def ordered_hook(
    logical: LogicalRanks | int | None = None, *, accumulate: torch.dtype | None = None
) -> Callable[[Any, Any], Any]:
    """A communication hook for DDP that averages gradients in the order of the ranks.

    ``ddp.register_comm_hook(group, lg.torch.ordered_hook())``, where ``group`` is the process group that DDP has, None
    for that of all processes. DDP shows a hook one gradient for each process, so that each process is one logical rank.
    To go on with fewer processes and the same bytes, hold several logical ranks by `ordered_all_reduce_grads`, which
    has the same results. The communication of a bucket is waited for before the next one begins.

    Args:
        logical: how many logical ranks there are, to be checked: as many as processes.
        accumulate: as for `ordered_all_reduce`.

    Raises:
        Invalid: out of the backward pass, if there are other numbers of logical ranks and processes.

    Example:
        >>> import lastgood as lg
        >>> hook = lg.torch.ordered_hook(logical=2)
        >>> # ddp = DistributedDataParallel(model); ddp.register_comm_hook(None, hook)
    """

    def hook(group: Any, bucket: Any) -> Any:
        buffer = bucket.buffer()
        reduced = ordered_all_reduce(
            buffer, logical=logical, op="mean", group=group, accumulate=accumulate, out=buffer
        )
        future: Any = torch.futures.Future(
            devices=[buffer.device] if buffer.device.type == "cuda" else None
        )
        future.set_result(reduced)
        return future

    # DDP compares them with types, and these are strings.
    hook.__annotations__.clear()
    return hook
