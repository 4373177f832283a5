"""The states of BENCHMARKS.md: trained for real where a CPU can, made of trained blocks where it cannot.

``SPECS`` names them. `build` makes one as it is after its first training, from the cache if it is there; `State.step`
is a real step of its training, so that the next save has the bytes that an optimizer wrote.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lastgood_bench import blocks, models
from lastgood_bench.corpus import Corpus
from lastgood_bench.live import Loader, State

SEED = 20261129
#: Changes when a state that is made anew would have other bytes.
RECIPE = 1


#: Makes a state from nothing, with what ``cache`` has; or, if ``empty``, one of memory that is not written to.
Build = Callable[[bool, Path], State]


@dataclass(frozen=True)
class Spec:
    """A state that can be made."""

    about: str
    build: Build
    #: Steps before it is as the scenarios begin with it; none of them if it is made of trained blocks.
    steps: int
    #: Another state that it is trained on from.
    after: str | None = None
    #: It is made again each time, faster than it would be read.
    cached: bool = True


def _empty(make: Callable[[], nn.Module], empty: bool) -> nn.Module:
    """The module; if ``empty``, with memory that nothing was written to."""
    if not empty:
        return make()
    with torch.device("meta"):
        module = make()
    return module.to_empty(device="cpu")


def _gpt(
    id: str, words: int, width: int, heads: int, layers: int, rows: int, length: int = 128
) -> Build:
    def build(empty: bool, cache: Path) -> State:
        model = _empty(lambda: models.Gpt(words, width, heads, layers, max(length, 1024)), empty)
        if not empty:
            model.begin()
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm)
        loader, corpus = Loader(), Corpus(words, SEED)

        def forward() -> None:
            batch = corpus.batch(loader.batch, rows, length + 1)
            loader.batch += 1
            logits = model(batch[:, :-1])
            functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
        return State(id, parts, forward, update)

    return build


def _warm(step: int) -> float:
    return min(1.0, (step + 1) / 20)


def _frozen(id: str, build_whole: Build, trained: int) -> Build:
    """The last ``trained`` blocks and the last norm go on training; the rest keeps its weights and moments."""

    def build(empty: bool, cache: Path) -> State:
        state = build_whole(empty, cache)
        model = state.components["model"]
        for parameter in [*model.words.parameters(), *model.places.parameters()]:
            parameter.requires_grad_(False)
        for parameter in model.blocks[: len(model.blocks) - trained].parameters():
            parameter.requires_grad_(False)
        state.id = id
        return state

    return build


def _mixed(id: str, build_whole: Build) -> Build:
    """Weights in bf16 beside masters and moments in fp32. The masters compute, which CPUs are faster at; every byte is
    as mixed precision leaves it."""

    def build(empty: bool, cache: Path) -> State:
        state = build_whole(empty, cache)
        master = state.components.pop("model")
        weights = {k: p.detach().to(torch.bfloat16) for k, p in master.named_parameters()}
        state.components = {"weights": weights, "master": master, **state.components}
        state.id, update = id, state.update

        def update_both() -> None:
            update()
            with torch.no_grad():
                for name, parameter in master.named_parameters():
                    weights[name].copy_(parameter)

        state.update = update_both
        return state

    return build


def _experts(id: str, words: int, width: int, hidden: int, experts: int, touched: int) -> Build:
    def build(empty: bool, cache: Path) -> State:
        model = _empty(lambda: models.Experts(words, width, hidden, experts), empty)
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
        loader, corpus = Loader(), Corpus(words, SEED)

        def forward() -> None:
            number = loader.batch
            loader.batch += 1
            order = torch.randperm(experts, generator=torch.Generator().manual_seed(number))
            # The first rounds touch every expert, so that each has moments.
            chosen = [(number * touched + i) % experts for i in range(touched)]
            if number * touched >= experts:
                chosen = order[:touched].tolist()
            batch = corpus.batch(number, 2, 4 * touched + 1)
            logits = model(batch[:, :-1], chosen)
            functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        return State(id, parts, forward, update)

    return build


def _tables(id: str, rows: int, width: int, touched: float) -> Build:
    count = 26

    def build(empty: bool, cache: Path) -> State:
        model = _empty(lambda: models.Tables(count, rows, width), empty)
        each = rows // count
        if not empty:
            for table in model.tables:
                nn.init.uniform_(table.weight, -(each**-0.5), each**-0.5)
        optimizer = models.RowWiseAdagrad(model.parameters())
        loader = Loader()
        direction = torch.randn(count, 1, generator=torch.Generator().manual_seed(SEED))

        def forward() -> None:
            generator = torch.Generator().manual_seed(loader.batch)
            loader.batch += 1
            wanted = max(1, int(each * touched))
            chosen = torch.stack([_zipf_rows(each, wanted, generator) for _ in range(count)])
            labels = (torch.rand(wanted, generator=generator) < 0.3).float()
            logits = sum(
                table(chosen[i]).sum(1) * direction[i] for i, table in enumerate(model.tables)
            )
            functional.binary_cross_entropy_with_logits(logits, labels).backward()

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        return State(
            id, {"model": model, "optimizer": optimizer, "loader": loader}, forward, update
        )

    return build


def _zipf_rows(rows: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """So many different rows, frequent ones more likely (Zipf's law, exponent 1.05), scattered over the table."""
    found = torch.empty(0, dtype=torch.long)
    while len(found) < wanted:
        uniform = torch.rand(2 * wanted, generator=generator, dtype=torch.float64)
        # The inverse of the distribution of a continuous power law of exponent 1.05 from 1 to rows.
        ranks = (1 - uniform * (1 - rows**-0.05)).pow(-20).long().clamp_(1, rows) - 1
        # Rows that are as frequent do not lie beside each other: a multiplier without common factors scatters them.
        found = torch.unique(torch.cat([found, ranks * 2654435761 % rows]))
    return found[torch.randperm(len(found), generator=generator)[:wanted]]


def _tiny(id: str, count: int, elements: int) -> Build:
    def build(empty: bool, cache: Path) -> State:
        memory = torch.empty(count * elements)
        if not empty:
            memory.copy_(blocks.weights(count * elements, cache))
        parts = {f"t{i:07}": part for i, part in enumerate(memory.split(elements))}
        number = [0]

        def update() -> None:
            # Every value moves a little, as by an optimizer without moments.
            memory.mul_(1 - 1e-5 * (1 + number[0] % 7))
            number[0] += 1

        return State(id, {"tensors": parts}, lambda: None, update, hidden=memory)

    return build


SPECS: dict[str, Spec] = {
    "TEST": Spec("GPT of 32 thousand parameters, for tests", _gpt("TEST", 256, 32, 2, 2, 1, 16), 4),
    "QUICK": Spec(
        "GPT of 4 million parameters, for --quick", _gpt("QUICK", 4096, 256, 4, 4, 2, 64), 100
    ),
    "A-S": Spec("GPT of 25 million parameters, fp32, AdamW", _gpt("A-S", 17408, 512, 8, 5, 2), 150),
    "A-M": Spec("GPT-2 small, fp32, AdamW", _gpt("A-M", 50257, 768, 12, 12, 1), 60),
    "A-L": Spec("GPT-2 medium, fp32, AdamW", _gpt("A-L", 50257, 1024, 16, 24, 1), 30),
    "A-MX": Spec(
        "250 million parameters: bf16 weights, fp32 masters and moments",
        _mixed("A-MX", _gpt("A-MX", 50257, 1024, 16, 16, 1)),
        30,
    ),
    "LORA": Spec("frozen bf16 base of 1.1 billion, rank 16", blocks.lora, 5, cached=False),
    "FRZ": Spec(
        "GPT-2 small of which the last 2 of 12 blocks and the last norm train",
        _frozen("FRZ", _gpt("FRZ", 50257, 768, 12, 12, 1), 2),
        0,
        after="A-M",
        cached=False,
    ),
    "EMB": Spec(
        "26 tables, 20 million rows of 16, row-wise Adagrad, 1 % of rows a step",
        _tables("EMB", 20_000_000, 16, 0.01),
        10,
    ),
    "EMB-10": Spec(
        "as EMB, 10 % of rows a step",
        _tables("EMB-10", 20_000_000, 16, 0.1),
        0,
        after="EMB",
        cached=False,
    ),
    "MOE": Spec(
        "64 experts, 16 of them in each step, fp32, AdamW",
        _experts("MOE", 2048, 512, 1880, 64, 16),
        12,
    ),
    "RL": Spec("500 million bf16 weights, 2 to 3 % change a step", blocks.rl, 1, cached=False),
    "TINY": Spec("100,000 tensors of 4 KiB", _tiny("TINY", 100_000, 1024), 0, cached=False),
    "TINY-64": Spec("1,000,000 tensors of 64 B", _tiny("TINY-64", 1_000_000, 16), 0, cached=False),
    "SRV": Spec("3 billion bf16 weights", blocks.srv, 0, cached=False),
}


def cache_file(id: str, cache: Path) -> Path:
    """Where a state is cached; its name changes with everything that its bytes depend on."""
    spec = SPECS[id]
    made = f"{id} {spec.steps} {spec.after} {SEED} {RECIPE} {torch.__version__}"
    return cache / f"{id}-{hashlib.sha256(made.encode()).hexdigest()[:10]}.pt"


def skeleton(id: str) -> State:
    """A state of which no byte is written: what a fresh process restores into."""
    return SPECS[id].build(True, Path())


def build(id: str, cache: Path, tell: Callable[[str], None] = lambda _: None) -> State:
    """The state as the scenarios begin with it."""
    spec = SPECS[id]
    torch.manual_seed(SEED)
    file = cache_file(id, cache)
    if file.exists():
        return _read(id, file)
    if spec.after is not None:
        before = cache_file(spec.after, cache)
        if not before.exists():
            build(spec.after, cache, tell)
        state = _read(id, before)
    else:
        state = spec.build(False, cache)
    for number in range(spec.steps):
        tell(f"{id}: step {number + 1} of {spec.steps}")
        state.step()
    if spec.cached:
        _write(state, file)
    return state


def _write(state: State, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_suffix(f".{os.getpid()}")
    parts = {
        name: part.state_dict() if hasattr(part, "state_dict") else part
        for name, part in state.components.items()
    }
    torch.save({"parts": parts, "rng": torch.get_rng_state()}, staged)
    staged.replace(file)


def _read(id: str, file: Path) -> State:
    state = skeleton(id)
    # Copied, so that live memory is the process's own and not a mapping of the cache.
    found = torch.load(file, weights_only=True)
    for name, part in state.components.items():
        saved = found["parts"][name]
        if hasattr(part, "load_state_dict"):
            part.load_state_dict(saved)
        else:
            state.components[name].update(saved)
    torch.set_rng_state(found["rng"])
    return state
