"""A small model trained by Lightning: `small_lightning.py KIND --out FOLDER …`, where KIND is one, ddp or fsdp2.

After each step a line in ``trace.RANK``: the step and a digest of what this rank holds of parameters, optimizer,
schedule and generators. What it draws: dropout, noise on the batch, and the order of the samples. ``PLANT="lr=STEP"``
doubles the learning rate from a step on.
"""

import argparse
import hashlib
import os
import signal
import sys
import warnings

if "--old-name" in sys.argv:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Callback, ModelCheckpoint
    from pytorch_lightning.strategies import ModelParallelStrategy
else:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy

import lastgood as lg
import torch
from torch.distributed.tensor import DTensor
from torchdata.stateful_dataloader import StatefulDataLoader

RANK = int(os.environ.get("RANK", "0"))
#: What kills the program does so once.
FIRST = os.environ.get("LASTGOOD_ATTEMPT", "1") == "1"


class Model(pl.LightningModule):
    def __init__(self, kind, unstorable):
        super().__init__()
        self.kind = kind
        self.unstorable = unstorable
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 4)
        )

    def configure_model(self):
        if self.kind == "fsdp2":
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint):
        if self.unstorable:
            checkpoint["mine"] = {"tool": [object()]}

    def training_step(self, batch, index):
        (rows,) = batch
        return self.net(rows + 0.1 * torch.randn_like(rows)).pow(2).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def local(value):
    value = value.to_local() if isinstance(value, DTensor) else torch.as_tensor(value)
    return value.detach().contiguous().numpy().tobytes()


class Trace(Callback):
    def __init__(self, arguments):
        self.arguments = arguments

    def on_train_start(self, trainer, module):
        with open(f"{self.arguments.out}/start.{RANK}", "w") as file:
            file.write(str(trainer.global_step))

    def on_train_batch_start(self, trainer, *_):
        if os.environ.get("PLANT") == f"lr={trainer.global_step + 1}":
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 2

    def on_train_batch_end(self, trainer, module, *_):
        found = hashlib.sha256()
        for tensor in module.state_dict().values():
            found.update(local(tensor))
        for state in trainer.optimizers[0].state.values():
            for key in sorted(state):
                found.update(local(state[key]))
        found.update(repr(trainer.lr_scheduler_configs[0].scheduler.get_last_lr()).encode())
        found.update(torch.get_rng_state().numpy().tobytes())
        with open(f"{self.arguments.out}/trace.{RANK}", "a") as file:
            file.write(f"{trainer.global_step} {found.hexdigest()}\n")
        is_killed = FIRST and self.arguments.kill_rank == RANK
        if is_killed and 0 < self.arguments.kill_at == trainer.global_step:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["one", "ddp", "fsdp2"])
    parser.add_argument("--out", required=True)
    parser.add_argument("--old-name", action="store_true", help="pytorch_lightning")
    parser.add_argument("--unstorable", action="store_true")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--without-generators", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1, help="accumulate_grad_batches")
    for name in ("--kill-at", "--kill-rank"):
        parser.add_argument(name, type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kill_at:
        # What it is killed behind is in the record.
        os.environ.setdefault("LASTGOOD_JOURNAL_WAIT", "1")
    os.makedirs(arguments.out, exist_ok=True)
    warnings.simplefilter("always")
    pl.seed_everything(RANK, verbose=False)
    torch.manual_seed(0)
    store = os.path.join(arguments.out, "store")
    strategy = {"one": "auto", "ddp": "ddp"}.get(arguments.kind)
    if strategy is None:
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    keeper = lg.lightning.LastGood(store, strict=arguments.strict)
    if arguments.without_generators:
        keeper._setup_data = lambda trainer, setup: setup()
    trainer = pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=arguments.accumulate,
        accelerator="cpu",
        devices=1 if arguments.kind == "one" else 2,
        strategy=strategy,
        default_root_dir=arguments.out,
        # The callback is asked after the trace: what it kills is not yet saved.
        callbacks=[
            Trace(arguments),
            keeper,
            ModelCheckpoint(
                dirpath=os.path.join(arguments.out, "ck"), every_n_train_steps=3, save_top_k=-1
            ),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rows = torch.randn(32, 8, generator=torch.Generator().manual_seed(RANK))
    loader = StatefulDataLoader(torch.utils.data.TensorDataset(rows), batch_size=4, shuffle=True)
    trainer.fit(
        Model(arguments.kind, arguments.unstorable), loader, ckpt_path=lg.lightning.last_good(store)
    )


if __name__ == "__main__":
    main()
