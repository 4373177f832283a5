"""Modules and optimizers of torch in one process: every kind comes back with its bits, or is refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor


def through(folder: Path, state: dict[str, Any], other: dict[str, Any]) -> lg.Run:
    """Saves ``state`` at step 3, and restores it into ``other``."""
    with lg.open(folder, state) as run:
        run.save(3, block=True)
    with lg.open(folder, other) as run:
        assert run.restore() == 3
    return run


def bits(value: Any) -> Any:
    """``value`` with its tensors as dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
        return (str(value.dtype), tuple(value.shape), bytes(flat.view(torch.uint8).tolist()))
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(part) for part in value]
    return value


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    draw = torch.Generator().manual_seed(9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5, generator=draw)).square().sum()
        loss.backward()
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(lambda loss=loss: loss)
        else:
            optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "a rate that is a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    model, other = small(), small(1)
    optimizer, fresh = (OPTIMIZERS[kind](m.parameters()) for m in (model, other))
    train(model, optimizer, 3)
    state = {"model": model, "optimizer": optimizer}
    through(tmp_path, state, {"model": other, "optimizer": fresh})
    assert bits(fresh.state_dict()) == bits(optimizer.state_dict())
    assert bits(other.state_dict()) == bits(model.state_dict())
    for each in ((model, optimizer), (other, fresh)):
        train(*each, 2)
    assert bits(other.state_dict()) == bits(model.state_dict())


class Counting(torch.optim.SGD):
    """Keeps state that belongs to no parameter, as `torch.optim.Optimizer.state_dict` allows."""

    def step(self, closure: Any = None) -> Any:
        self.state["taken"] = self.state.get("taken", 0) + 1
        self.state["table"] = {"sums": torch.full((2,), float(self.state["taken"]))}
        return super().step(closure)


def test_state_of_an_optimizer_that_belongs_to_no_parameter(tmp_path: Path) -> None:
    model, other = small(), small(1)
    optimizer, fresh = Counting(model.parameters(), 0.1), Counting(other.parameters(), 0.1)
    train(model, optimizer, 3)
    through(
        tmp_path, {"model": model, "optimizer": optimizer}, {"model": other, "optimizer": fresh}
    )
    assert fresh.state["taken"] == 3 and fresh.state["table"]["sums"].tolist() == [3, 3]
    assert bits(fresh.state_dict()) == bits(optimizer.state_dict())


def test_complex_numbers_in_moments_and_values(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        weights = [torch.randn(3, dtype=d) for d in (torch.complex64, torch.complex128)]
        model = nn.Module()
        model.weights = nn.ParameterList(weights)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        return {"m": model, "o": optimizer, "values": {"x": weights[1] * 2, "n": weights[0] * 2}}

    def step(state: dict[str, Any]) -> None:
        state["o"].zero_grad()
        sum(p.abs().square().sum() for p in state["m"].parameters()).backward()
        state["o"].step()

    first, other = make(0), make(1)
    step(first)
    through(tmp_path, first, other)
    fresh: dict[str, Any] = {"values": {}}
    with lg.open(tmp_path, fresh) as run:
        run.restore(only=["values"])
    assert bits(fresh["values"]) == bits(first["values"])
    for state in (first, other):
        step(state)
    assert bits(other["m"].state_dict()) == bits(first["m"].state_dict())
    assert bits(other["o"].state_dict()) == bits(first["o"].state_dict())
    assert bits(other["values"]) == bits(first["values"])


def test_groups_and_what_belongs_to_them(tmp_path: Path) -> None:
    def make(seed: int, rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = small(seed)
        groups = [
            {"params": [model[0].weight], "lr": rate, "label": "first"},
            {"params": [model[0].bias, *model[3].parameters()], "weight_decay": 0.0},
        ]
        return model, torch.optim.AdamW(groups, lr=0.2, betas=(0.8, 0.9))

    model, optimizer = make(0, 0.125)
    other, fresh = make(1, 0.5)
    train(model, optimizer, 2)
    optimizer.param_groups[1]["lr"] = 0.0625
    through(
        tmp_path, {"model": model, "optimizer": optimizer}, {"model": other, "optimizer": fresh}
    )
    assert [group["lr"] for group in fresh.param_groups] == [0.125, 0.0625]
    assert fresh.param_groups[0]["label"] == "first" and fresh.param_groups[0]["betas"] == (
        0.8,
        0.9,
    )
    assert fresh.param_groups[0]["params"][0] is other[0].weight
    assert bits(fresh.state_dict()) == bits(optimizer.state_dict())


def test_groups_that_differ_are_named_and_nothing_changes(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 1)
    with lg.open(tmp_path, {"model": model, "optimizer": optimizer}) as run:
        run.save(1, block=True)
    other = small(1)
    fewer = torch.optim.SGD(list(other.parameters())[:-1], lr=0.1, momentum=0.9)
    before = bits(other.state_dict())
    with lg.open(tmp_path, {"model": other, "optimizer": fewer}) as run:
        with pytest.raises(
            lg.Incompatible, match=r"group 0 of the checkpoint holds 3\.bias as well"
        ):
            run.restore()
        assert bits(other.state_dict()) == before and not fewer.state


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
]


class Everything(nn.Module):
    """A buffer of each dtype, in several layouts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for dtype in DTYPES:
            # 0 and 1 are values of every dtype, bool among them.
            whole = torch.randint(0, 2, (4, 3, 2), generator=draw).to(dtype)
            name = "of_" + str(dtype).removeprefix("torch.")
            self.register_buffer(name, whole)
            self.register_buffer(f"{name}_turned", whole.clone().permute(2, 0, 1))
            self.register_buffer(f"{name}_number", whole[0, 0, 0].clone())
            self.register_buffer(f"{name}_empty", whole[:0].clone())
        self.register_buffer("every_second", torch.arange(20.0)[::2] * seed)
        self.register_buffer("expanded", torch.tensor([float(seed)]).expand(3).clone())
        self.register_buffer("not_kept", torch.ones(2) * seed, persistent=False)
        self.register_buffer("none", None)


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    first, other = Everything(5), Everything(6)
    strides = {name: b.stride() for name, b in other.named_buffers()}
    through(tmp_path, {"m": first}, {"m": other})
    assert bits(other.state_dict()) == bits(first.state_dict())
    assert len(other.state_dict()) == 4 * len(DTYPES) + 2
    assert other.not_kept.tolist() == [6, 6]
    assert {name: b.stride() for name, b in other.named_buffers()} == strides


def test_bits_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    patterns = torch.tensor([0x7F800001, 0x7FC12345, -0x80000000, 1, 0x7F800000], dtype=torch.int32)
    first, other = nn.Module(), nn.Module()
    first.register_buffer("x", patterns.view(torch.float32).clone())
    other.register_buffer("x", torch.zeros(5))
    through(tmp_path, {"m": first}, {"m": other})
    assert other.x.view(torch.int32).tolist() == patterns.tolist()


def test_memory_of_channels_last_stays_so(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        image = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
        optimizer.zero_grad()
        model(image.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()

    (model, optimizer), (other, fresh) = make(0), make(1)
    step(model, optimizer)
    through(tmp_path, {"m": model, "o": optimizer}, {"m": other, "o": fresh})
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    for key in ("exp_avg", "exp_avg_sq"):
        ours, theirs = optimizer.state[model.weight][key], fresh.state[other.weight][key]
        assert theirs.stride() == ours.stride() and bits(theirs) == bits(ours)
    step(model, optimizer)
    step(other, fresh)
    assert bits(other.state_dict()) == bits(model.state_dict())


class Wrapped(nn.Module):
    """Parts whose names are those of wrappers, and are none."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self._orig_mod = nn.Linear(2, 2)


def test_a_part_that_is_called_as_a_wrapper_is_no_wrapper(tmp_path: Path) -> None:
    first, other = Wrapped(), Wrapped()
    through(tmp_path, {"m": first}, {"m": other})
    assert bits(other.state_dict()) == bits(first.state_dict())


def test_wrapped_and_bare_are_the_same(tmp_path: Path) -> None:
    first = nn.DataParallel(torch.compile(small()))
    bare = small(1)
    through(tmp_path, {"m": first}, {"m": bare})
    assert bits(bare.state_dict()) == bits(first.module._orig_mod.state_dict())


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    first, other = Tied(True), Tied(True)
    with lg.open(tmp_path, {"m": first}, rng=False) as run:
        run.save(1, block=True)
        tied = run.history()[0].bytes
    with lg.open(tmp_path, {"m": other}, rng=False) as run:
        run.restore()
    assert other.head.weight is other.embedding.weight
    assert bits(other.state_dict()) == bits(first.state_dict())
    untied = Tied(False)
    with lg.open(tmp_path, {"m": untied}, rng=False) as run:
        run.restore()
        run.save(2, block=True)
        assert run.history()[1].bytes - tied >= 6 * 4 * 4
    assert bits(untied.state_dict()) == bits(first.state_dict())
    assert untied.head.weight is not untied.embedding.weight


class WithExtra(nn.Module):
    def __init__(self, seen: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.seen = seen
        self.table = torch.full((3,), float(seen))

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "table": self.table}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen, self.table = state["seen"], state["table"]


def test_extra_state_and_flags(tmp_path: Path) -> None:
    first, other = WithExtra(4), WithExtra(1)
    first.inner.weight.requires_grad_(False)
    first.inner.eval()
    through(tmp_path, {"m": first}, {"m": other})
    assert other.seen == 4 and other.table.tolist() == [4, 4, 4]
    assert not other.inner.weight.requires_grad and other.inner.bias.requires_grad
    assert not other.inner.training and other.training


class Hooked(nn.Linear):
    """Changes what its state_dict holds, as modules of adapters and quantization do."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self._register_state_dict_hook(self._hide)

    @staticmethod
    def _hide(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        state.pop(prefix + "bias")


def test_what_state_dict_hides_is_no_state(tmp_path: Path) -> None:
    first, other = Hooked(), Hooked()
    bias = bits(other.bias)
    through(tmp_path, {"m": first}, {"m": other})
    assert bits(other.weight) == bits(first.weight) and bits(other.bias) == bias


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.register_buffer("more", torch.zeros(2)), "m/more is not in the checkpoint"),
        (lambda m: m.__delattr__("3"), r"m/3\.bias is only in the checkpoint"),
        (lambda m: m.__setattr__("0", nn.Linear(5, 8)), r"m/0\.weight has shape \[8, 5\]"),
        (lambda m: m.double(), r"m/0\.bias is F64, in the checkpoint F32"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(
    tmp_path: Path, change: Callable[[Any], Any], says: str
) -> None:
    with lg.open(tmp_path, {"m": small(), "n": small(2)}) as run:
        run.save(1, block=True)
    other, also = small(1), small(3)
    change(other)
    before = bits(other.state_dict()), bits(also.state_dict())
    with (
        lg.open(tmp_path, {"m": other, "n": also}) as run,
        pytest.raises(lg.Incompatible, match=says),
    ):
        run.restore()
    assert (bits(other.state_dict()), bits(also.state_dict())) == before


def test_parameters_that_are_not_there_yet_are_refused(tmp_path: Path) -> None:
    with lg.open(tmp_path, {"m": nn.LazyLinear(3)}) as run, pytest.raises(lg.Invalid, match="lazy"):
        run.save(1, block=True)
    with torch.device("meta"):
        model = small()
    with lg.open(tmp_path, {"m": model}) as run, pytest.raises(lg.Invalid, match=r"m.*meta"):
        run.save(1, block=True)


ODD: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "wrapper": lambda: TwoTensor(torch.ones(2), torch.zeros(2)),
    "of half complex numbers": lambda: torch.ones(2).to(torch.complex32),
}


@pytest.mark.parametrize("make", ODD)
def test_tensors_that_are_no_boxes_of_numbers_are_refused_by_name(
    tmp_path: Path, make: str
) -> None:
    model = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.register_buffer("odd", ODD[make]())
    with lg.open(tmp_path, {"m": model}) as run, pytest.raises(lg.Invalid, match="odd"):
        run.save(1, block=True)


def test_tensors_that_cannot_be_written_as_others(tmp_path: Path) -> None:
    def make(value: float) -> tuple[nn.Module, dict[str, Any]]:
        model = nn.Module()
        model.register_buffer("expanded", torch.tensor([value]).expand(3))
        with torch.inference_mode():
            model.register_buffer("inferred", torch.full((2,), value))
            values = {"inferred": torch.full((2,), value)}
        values["expanded"] = torch.tensor([[value]]).expand(2, 2)
        return model, values

    (model, values), (other, fresh) = make(1), make(2)
    held = [*other.buffers(), *fresh.values()]
    through(tmp_path, {"m": model, "v": values}, {"m": other, "v": fresh})
    assert bits(other.state_dict()) == bits(model.state_dict()) and bits(fresh) == bits(values)
    assert all(a is b for a, b in zip([*other.buffers(), *fresh.values()], held, strict=True))


def test_schedulers_and_averages(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        model = small(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
            ],
            milestones=[3],
        )
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        return {
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            "average": average,
            "scaler": torch.amp.GradScaler("cpu", init_scale=4.0),
        }

    def steps(state: dict[str, Any], count: int) -> None:
        with warnings.catch_warnings():
            # SequentialLR passes the epoch to its parts itself.
            warnings.simplefilter("ignore")
            for _ in range(count):
                train(state["model"], state["optimizer"], 1)
                state["schedule"].step()
                state["average"].update_parameters(state["model"])

    first, other = make(0), make(1)
    steps(first, 4)
    through(tmp_path, first, other)
    assert other["schedule"].get_last_lr() == first["schedule"].get_last_lr()
    assert bits(other["average"].state_dict()) == bits(first["average"].state_dict())
    steps(first, 3)
    steps(other, 3)
    for name in first:
        assert bits(other[name].state_dict()) == bits(first[name].state_dict()), name


def test_the_live_tensors_stay_the_same_objects(tmp_path: Path) -> None:
    model, other = small(), small(1)
    held = {name: (p, p.data_ptr()) for name, p in other.named_parameters()}
    kept = copy.deepcopy(model.state_dict())
    through(tmp_path, {"m": model}, {"m": other})
    assert all(dict(other.named_parameters())[name] is p for name, (p, _) in held.items())
    assert bits(other.state_dict()) == bits(kept)
