"""A loop of Accelerate's: `small_accelerate.py --out FOLDER …`; a line in ``trace.RANK`` after each step.
``PLANT="lr=STEP"`` doubles the learning rate of a step."""

import argparse
import hashlib
import os
import signal
import warnings

import lastgood as lg
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

RANK = int(os.environ.get("RANK", "0"))
#: What kills the program does so once.
FIRST = os.environ.get("LASTGOOD_ATTEMPT", "1") == "1"


class Counter:
    """An object of the user's own, for `register_for_checkpointing`."""

    def __init__(self):
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--automatic", action="store_true", help="automatic_checkpoint_naming")
    for name in ("--kill-at", "--kill-rank"):
        parser.add_argument(name, type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kill_at:
        # What it is killed behind is in the record.
        os.environ.setdefault("LASTGOOD_JOURNAL_WAIT", "1")
    os.makedirs(arguments.out, exist_ok=True)
    warnings.simplefilter("always")
    configuration = None
    if arguments.automatic:
        configuration = ProjectConfiguration(
            arguments.out, automatic_checkpoint_naming=True, total_limit=1
        )
    accelerator = Accelerator(cpu=True, project_config=configuration)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    counter = Counter()
    accelerator.register_for_checkpointing(counter)
    keeper = lg.accelerate.attach(accelerator, None if arguments.automatic else arguments.out)
    restored = keeper.restore()
    with open(f"{arguments.out}/start.{RANK}", "w") as file:
        file.write(str(counter.seen))
    assert (restored is None) == (counter.seen == 0)
    for step in range(counter.seen + 1, 13):
        rows = torch.randn(4, 8)
        accelerator.backward(model(rows).pow(2).mean())
        if os.environ.get("PLANT") == f"lr={step}":
            optimizer.param_groups[0]["lr"] *= 2
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        counter.seen = step
        keeper.step(step)
        found = hashlib.sha256(
            repr(schedule.get_last_lr()).encode() + torch.get_rng_state().numpy().tobytes()
        )
        for tensor in model.state_dict().values():
            found.update(tensor.numpy().tobytes())
        with open(f"{arguments.out}/trace.{RANK}", "a") as file:
            file.write(f"{step} {found.hexdigest()}\n")
        if FIRST and step == arguments.kill_at and arguments.kill_rank == RANK:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 3 == 0:
            accelerator.save_state(
                None if arguments.automatic else f"{arguments.out}/checkpoint-{step}"
            )
    accelerator.end_training()


if __name__ == "__main__":
    main()
