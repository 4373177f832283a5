"""The referee's own training programs with lastgood in place: `python -m referee_NAME PHASE --out FOLDER`.

The programs are those of ckpt_chaos, unchanged; what a user would change in a script of theirs is changed here.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def store_in(out: str) -> str:
    """Where the programs of this file keep their run."""
    return os.path.join(out, "_lastgood")


def adopt_hf_trainer(program: Any) -> None:
    """The callback, and the folder to resume from."""
    import lastgood as lg

    class Trainer(program.Trainer):
        def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[*callbacks, lg.hf.LastGoodCallback()], **kwargs)

        def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = lg.hf.last_good(self.args.output_dir)
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    program.Trainer = Trainer


def adopt_lightning_trainer(program: Any) -> None:
    """The callback, and the checkpoint to resume from."""
    import lastgood as lg

    class Trainer(program.pl.Trainer):
        def __init__(
            self, *args: Any, callbacks: Any, default_root_dir: str, **kwargs: Any
        ) -> None:
            self.store = store_in(default_root_dir)
            callbacks = [lg.lightning.LastGood(self.store), *callbacks]
            super().__init__(
                *args, callbacks=callbacks, default_root_dir=default_root_dir, **kwargs
            )

        def fit(self, *args: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
            if ckpt_path == "last":
                ckpt_path = lg.lightning.last_good(self.store)
            return super().fit(*args, ckpt_path=ckpt_path, **kwargs)

    program.pl = SimpleNamespace(Trainer=Trainer, seed_everything=program.pl.seed_everything)
    crash_in_the_store(program)


def adopt_accelerate_loop(program: Any) -> None:
    """`attach`, and the folder to load."""
    import lastgood as lg

    build, keeper = program.build, []

    def build_and_attach(accelerator: Any) -> Any:
        prepared = build(accelerator)
        keeper.append(lg.accelerate.attach(accelerator, sys.argv[sys.argv.index("--out") + 1]))
        return prepared

    program.build = build_and_attach
    program.latest_checkpoint = lambda out: keeper[0].last_good()


def adopt_loop_ddp(program: Any) -> None:
    """`lg.open` instead of the loop's own saving."""
    import lastgood as lg

    runs: list[Any] = []

    def run_of(out: str, model: Any, optimizer: Any) -> Any:
        if not runs:
            runs.append(lg.open(store_in(out), {"model": model, "optimizer": optimizer}))
        return runs[0]

    def save_checkpoint(out: str, step: int, model: Any, optimizer: Any) -> None:
        run_of(out, model, optimizer).save(step, block=True)

    program.save_checkpoint = save_checkpoint
    program.latest_checkpoint = lambda out: out
    program.load_checkpoint = lambda out, model, optimizer: run_of(out, model, optimizer).restore()
    crash_in_the_store(program)


def crash_in_the_store(program: Any) -> None:
    """Makes each object that a save puts into the store an event of the referee's: it sees what Python writes, and
    this is written by other threads. The process dies as soon as the object is there."""
    arm = program.arm_from_env

    def armed(rank: int, *args: Any, **kwargs: Any) -> None:
        arm(rank, *args, **kwargs)
        if os.environ.get("CKPT_CHAOS_WATCH"):
            store = Path(store_in(os.environ["CKPT_CHAOS_WATCH"]))
            known = set(objects_of(store, rank))
            threading.Thread(target=watch, args=(store, rank, known), daemon=True).start()

    program.arm_from_env = armed


#: What a save writes, in this order.
KINDS = {".pack": 0, ".idx": 1, "checkpoints": 2, "ledger": 3}


def objects_of(store: Path, rank: int) -> list[Path]:
    """The objects that this rank writes, or that all do."""
    found = []
    for path in store.glob("runs/default/*/**/*"):
        mine = path.name.startswith((f"{rank}-", f"{rank}.")) or path.suffix == ".json"
        if (
            mine
            and "#" not in path.name
            and kind_of(path) is not None
            and "heads" not in path.parts
        ):
            found.append(path)
    return found


def kind_of(path: Path) -> str | None:
    """Which object of a save it is."""
    return next((kind for kind in KINDS if path.suffix == kind or path.parent.name == kind), None)


def watch(store: Path, rank: int, known: set[Path]) -> None:
    """Tells the referee of each object that appears."""
    from ckpt_chaos import inject

    while True:
        new = [path for path in objects_of(store, rank) if path not in known]
        for path in sorted(
            new, key=lambda path: (path.stat().st_mtime_ns, KINDS[kind_of(path) or ""])
        ):
            known.add(path)
            inject._event("store", f"{kind_of(path)}".strip("."), tornable=False)


def main(name: str) -> None:
    """Adopts lastgood in the program, and runs it."""
    program = importlib.import_module(f"ckpt_chaos.targets.{name}")
    globals()[f"adopt_{name}"](program)
    program.main()
