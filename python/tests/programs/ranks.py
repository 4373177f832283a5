"""One rank of the job of `test_distributed.py`: runs every check in process groups of different sizes.

Started as ``ranks.py RANK FOLDER``. Rank 0 writes ``results.json``: for each check what went wrong, or null.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lastgood as lg
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict as torch_names
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

RANKS = 4
RANK = int(sys.argv[1])
FOLDER = sys.argv[2]
_groups = 0


class Model(nn.Module):
    """Tied weights, a frozen layer, buffers, and sizes that no number of ranks divides."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens).mean(1)
        x = self.norm(self.frozen(self.fc2(torch.tanh(self.fc1(x)))))
        return self.head(x)


def build(layout: str, seed: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model: nn.Module = Model().to(dtype)
    if layout == "ddp":
        model = DistributedDataParallel(model)
    elif layout == "fsdp":
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    elif layout in ("columns", "rows"):
        parallel(model, init_device_mesh("cpu", (dist.get_world_size(),)), layout)
    elif layout == "fsdp_tp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallel(model, mesh["tp"], "columns")
        shard(model, mesh["dp"])
    elif layout == "hsdp":
        shard(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.01)


def shard(model: nn.Module, mesh: Any) -> None:
    for part in (model.fc1, model.fc2):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def parallel(model: nn.Module, mesh: Any, layout: str) -> None:
    column, row = ColwiseParallel(), RowwiseParallel()
    if layout == "columns":
        parallelize_module(model, mesh, {"fc1": column, "fc2": row})
    else:
        whole = RowwiseParallel(input_layouts=Replicate())
        parallelize_module(
            model, mesh, {"fc1": whole, "fc2": ColwiseParallel(output_layouts=Replicate())}
        )


def train(model: nn.Module, optimizer: Any, layout: str, steps: int = 2) -> None:
    same = layout in ("columns", "rows", "single")
    coordinate = 0 if same else RANK // 2 if layout == "fsdp_tp" else RANK
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * step + coordinate)
        tokens = torch.randint(0, 11, (8, 3), generator=generator)
        loss = model(tokens).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def everything(model: nn.Module, optimizer: Any, *, buffers: bool = True) -> dict[str, Any]:
    """Model and optimizer as whole tensors, by the names that torch has for them."""
    found = {f"model/{k}": whole(v) for k, v in torch_names.get_model_state_dict(model).items()}
    if not buffers:
        found = {k: v for k, v in found.items() if "running" not in k and "tracked" not in k}
    of_optimizer = torch_names.get_optimizer_state_dict(model, optimizer)
    for name, values in of_optimizer["state"].items():
        found |= {f"optimizer/state.{name}.{k}": whole(v) for k, v in values.items()}
    return found


def check_equal(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert set(expected) == set(found), set(expected) ^ set(found)
    for name, tensor in expected.items():
        other = found[name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape, name
        same = (
            torch.equal(tensor.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
            if (tensor.ndim)
            else torch.equal(tensor, other)
        )
        assert same, f"{name} differs"


@contextlib.contextmanager
def group(size: int) -> Iterator[None]:
    """A process group of the first ``size`` ranks; one rank alone has none."""
    global _groups
    _groups += 1
    if size > max(1, RANK):
        where = f"file://{FOLDER}/group{_groups}"
        dist.init_process_group("gloo", init_method=where, rank=RANK, world_size=size)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def open_run(name: str, state: dict[str, Any], **settings: Any) -> lg.Run:
    return lg.open(f"{FOLDER}/store", state, run=name, **settings)


def reshard(
    name: str, source: tuple[str, int], target: tuple[str, int], dtype: torch.dtype
) -> None:
    """Trains and saves in one layout, restores into another one that was begun from other weights."""
    layout, size = source
    mixed = dtype == torch.bfloat16
    with group(size):
        if size > RANK:
            model, optimizer = build(layout, seed=1, dtype=dtype)
            train(model, optimizer, layout)
            if mixed:
                for values in optimizer.state.values():
                    values |= {k: v.float() for k, v in values.items() if k != "step"}
            model.eval()
            buffers = size == 1 or layout != "ddp"
            expected = everything(model, optimizer, buffers=False)
            run = open_run(name, {"model": model, "optimizer": optimizer})
            run.save(2).durable.result(60)
            check_names(run, set(everything(model, optimizer)), size)
            run.close()
            if RANK == 0:
                torch.save((expected, buffers), f"{FOLDER}/{name}.pt")
    layout, size = target
    with group(size):
        if size > RANK:
            model, optimizer = build(layout, seed=2, dtype=dtype)
            run = open_run(name, {"model": model, "optimizer": optimizer})
            assert run.restore() == 2
            expected, _ = torch.load(f"{FOLDER}/{name}.pt")
            check_equal(expected, everything(model, optimizer, buffers=False))
            inner = model.module if layout == "ddp" else model
            assert inner.head.weight is inner.embedding.weight and not inner.training
            assert not inner.fc1.training and not inner.frozen.weight.requires_grad
            check_placed(optimizer)
            run.close()
            if not mixed and target != ("rows", 3):
                model.train()
                train(model, optimizer, layout, steps=1)


def check_names(run: lg.Run, expected: set[str], size: int) -> None:
    """What is stored has the names that torch gives."""
    rows = run._native.find("latest").tensors()
    stored = {
        f"{c}/{n.rpartition('@rank')[0] or n}" for c, n, dtype, _, _ in rows if dtype != "BLOB"
    }
    stored = {name for name in stored if not name.startswith("rng/")}
    assert stored == expected, stored ^ expected


def check_placed(optimizer: Any) -> None:
    for parameter, values in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            value = values[key]
            assert isinstance(value, DTensor) == isinstance(parameter, DTensor)
            if isinstance(value, DTensor):
                assert value.placements == parameter.placements
                assert value.device_mesh == parameter.device_mesh
                assert value.to_local().shape == parameter.to_local().shape


RESHARDS = {
    "fsdp_4_to_2": (("fsdp", 4), ("fsdp", 2)),
    "fsdp_2_to_3": (("fsdp", 2), ("fsdp", 3)),
    "columns_to_rows": (("columns", 2), ("rows", 2)),
    "fsdp_to_ddp": (("fsdp", 4), ("ddp", 2)),
    "ddp_to_one_process": (("ddp", 2), ("single", 1)),
    "two_dimensions_to_one_process": (("fsdp_tp", 4), ("single", 1)),
    "one_process_to_two_dimensions": (("single", 1), ("fsdp_tp", 4)),
    "two_dimensions_to_tensor_parallel": (("fsdp_tp", 4), ("rows", 3)),
    "replicas_of_shards_to_shards": (("hsdp", 4), ("fsdp", 3)),
    "shards_to_replicas_of_shards": (("fsdp", 2), ("hsdp", 4)),
    "mixed_precision": (("fsdp", 4), ("fsdp", 3)),
}


def drift(name: str, layout: str, size: int) -> None:
    """One bit that differs between ranks that hold the same is no checkpoint, and the one before stays."""
    with group(size):
        if size <= RANK:
            return
        model, optimizer = build(layout, seed=1)
        train(model, optimizer, layout)
        run = open_run(name, {"model": model, "optimizer": optimizer})
        run.save(2).durable.result(60)
        inner = model.module if layout == "ddp" else model
        local = inner.fc1.weight
        local = local.to_local() if isinstance(local, DTensor) else local.data
        if size - 1 == RANK:
            with torch.no_grad():
                local.view(-1)[-1] += 1e-3
        error = run.save(3).durable.exception(60)
        assert isinstance(error, lg.Invalid) and "model/fc1.weight" in str(error), error
        assert [c.step for c in run.history()] == [2], run.history()
        dist.barrier()
        assert run.restore(at=2) == 2
        run.save(4).durable.result(60)
        with contextlib.suppress(lg.LastgoodError):
            run.close()


def absent(name: str) -> None:
    """A rank that does not save holds up nobody, in layouts whose tensors need all of them."""
    with group(4):
        model, optimizer = build("fsdp", seed=1)
        train(model, optimizer, "fsdp")
        run = open_run(name, {"model": model, "optimizer": optimizer}, commit_wait=0.5)
        # The wait for the others is short: they must have come this far.
        dist.barrier()
        run.save(2).durable.result(60)
        dist.barrier()
        if RANK != 3:
            error = run.save(3).durable.exception(60)
            assert isinstance(error, lg.Unavailable) and "rank 3" in str(error), error
        dist.barrier()
        assert [c.step for c in run.history()] == [2]
        with contextlib.suppress(lg.LastgoodError):
            run.close()
        # The next start finds what was there before.
        model, optimizer = build("fsdp", seed=2)
        with open_run(name, {"model": model, "optimizer": optimizer}) as again:
            assert again.attempt == 2 and again.restore() == 2


def without_group(name: str) -> None:
    """Saving, committing and restoring go on when the process group is gone: no collective is in them."""
    with group(4):
        model, optimizer = build("hsdp", seed=1)
        train(model, optimizer, "hsdp")
        expected = everything(model, optimizer)
        run = open_run(name, {"model": model, "optimizer": optimizer})
        local = {n: p.to_local().clone() for n, p in model.named_parameters()}
    assert not dist.is_initialized()
    run.save(2).durable.result(60)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter._local_tensor.zero_()
    assert run.restore(at=2) == 2
    run.close()
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter._local_tensor, local[n]), n
    assert expected


def opened_twice(name: str) -> None:
    """Two runs of one process, and one run twice: each start has a name of its own."""
    with group(2):
        if RANK > 1:
            return
        for attempt in (1, 2):
            one = open_run(name, {"x": {"y": RANK}})
            other = open_run(name + "_other", {"x": {"y": RANK}})
            assert (one.attempt, other.attempt) == (attempt, attempt)
            one.save(attempt).durable.result(60)
            other.save(attempt).durable.result(60)
            dist.barrier()
            one.close()
            other.close()


def fresh_optimizer(name: str) -> None:
    """torch's own function gives a fresh optimizer state; saving leaves it fresh."""
    if RANK:
        return
    with alone():
        model, optimizer = build("single", seed=1)
        with open_run(name, {"model": model, "optimizer": optimizer}) as run:
            before = copy.deepcopy(model.state_dict())
            run.save(1, block=True)
            assert not optimizer.state, "saving made state"
            assert run.restore() == 1 and not optimizer.state, "restoring made state"
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        torch_names.get_optimizer_state_dict(model, optimizer)
        assert optimizer.state, "torch no longer makes state: the reason to go without it is gone"


def stale_optimizer(name: str) -> None:
    """An optimizer that was made before the sharding holds parameters that nobody trains."""
    with group(2):
        if RANK > 1:
            return
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters())
        shard(model, init_device_mesh("cpu", (2,)))
        with open_run(name, {"model": model, "optimizer": optimizer}) as run:
            try:
                run.save(1)
            except lg.Invalid as error:
                assert "fully_shard" in str(error), error
            else:
                raise AssertionError("it was saved")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    with group(1):
        yield


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, (source, target) in RESHARDS.items():
        dtype = torch.bfloat16 if name == "mixed_precision" else torch.float32
        yield name, lambda n=name, s=source, t=target, d=dtype: reshard(n, s, t, d)
    yield "drift_of_replicas", lambda: drift("drift_of_replicas", "ddp", 2)
    yield "drift_of_shards", lambda: drift("drift_of_shards", "hsdp", 4)
    yield "absent_rank", lambda: absent("absent_rank")
    yield "without_group", lambda: without_group("without_group")
    yield "opened_twice", lambda: opened_twice("opened_twice")
    yield "fresh_optimizer", lambda: fresh_optimizer("fresh_optimizer")
    yield "stale_optimizer", lambda: stale_optimizer("stale_optimizer")


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(float(os.environ.get("DUMP_AFTER", 150)), exit=True)
    wanted = set(sys.argv[3:])
    global _groups
    for number, (name, check) in enumerate(checks()):
        # Whatever happened in the check before, all ranks meet in the same groups.
        _groups = 100 * number
        if wanted and name not in wanted:
            continue
        problem = None
        try:
            check()
        except BaseException:
            problem = traceback.format_exc()
        with open(f"{FOLDER}/{name}.{RANK}.part", "w") as file:
            json.dump(problem, file)
        os.rename(f"{FOLDER}/{name}.{RANK}.part", f"{FOLDER}/{name}.{RANK}.json")


if __name__ == "__main__":
    main()
