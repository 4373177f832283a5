"""A small model trained by `Trainer` on one rank or several: `small_hf.py --out FOLDER …`.

After each step a line in ``trace.RANK``: the step and a digest of parameters, optimizer, schedule and generators. What
it draws: dropout in the model, and words hidden by the collator. ``start.RANK`` tells the step that it began at.
``PLANT="lr=STEP"`` doubles the learning rate of a step.
"""

import argparse
import hashlib
import json
import os
import signal
import warnings

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

RANK = int(os.environ.get("RANK", "0"))
#: What kills the program does so once.
FIRST = os.environ.get("LASTGOOD_ATTEMPT", "1") == "1"


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        drawn = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(5, 50, (8,), generator=drawn), "labels": index % 2}


def hide_words(rows):
    words = torch.stack([row["input_ids"] for row in rows])
    words[torch.rand(words.shape) < 0.2] = 1
    return {"input_ids": words, "labels": torch.tensor([row["labels"] for row in rows])}


def digest(trainer):
    found = hashlib.sha256()
    for tensor in trainer.model.state_dict().values():
        found.update(tensor.contiguous().numpy().tobytes())
    for state in trainer.optimizer.optimizer.state.values():
        for key in sorted(state):
            found.update(torch.as_tensor(state[key]).contiguous().numpy().tobytes())
    found.update(repr(trainer.lr_scheduler.get_last_lr()).encode())
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


class Trace(TrainerCallback):
    def __init__(self, arguments):
        self.arguments = arguments
        self.trainer = None

    def on_train_begin(self, args, state, control, **kwargs):
        with open(f"{self.arguments.out}/start.{RANK}", "w") as file:
            file.write(str(state.global_step))

    def on_step_begin(self, args, state, control, **kwargs):
        if os.environ.get("PLANT") == f"lr={state.global_step + 1}":
            for group in kwargs["optimizer"].param_groups:
                group["lr"] *= 2

    def on_step_end(self, args, state, control, **kwargs):
        with open(f"{self.arguments.out}/trace.{RANK}", "a") as file:
            file.write(f"{state.global_step} {digest(self.trainer)}\n")
        is_killed = FIRST and self.arguments.kill_rank == RANK
        if is_killed and state.global_step == self.arguments.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_killed and state.global_step == self.arguments.term_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if state.global_step == self.arguments.break_store_at:
            # A save on its way would wait for the store to come back.
            for callback in self.trainer.callback_handler.callbacks:
                if hasattr(callback, "_settle"):
                    callback._settle(wait=True)
            os.rename(f"{self.arguments.out}/_lastgood", f"{self.arguments.out}/_gone")
            open(f"{self.arguments.out}/_lastgood", "w").close()

    def on_save(self, args, state, control, **kwargs):
        # Before the callback of lastgood: the folder is finished, and nobody knows.
        if state.global_step == self.arguments.kill_in_save:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--stock", action="store_true", help="without lastgood")
    parser.add_argument("--fresh", action="store_true", help="do not resume")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--block", action="store_true")
    parser.add_argument("--plain-batches", action="store_true", help="exact_batches=False")
    parser.add_argument("--keep", type=int, help="save_total_limit")
    parser.add_argument("--accumulate", type=int, default=1, help="gradient_accumulation_steps")
    parser.add_argument("--log", type=int, default=1000, help="logging_steps; evaluates as often")
    for name in ("--kill-at", "--term-at", "--kill-rank", "--kill-in-save", "--break-store-at"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--policy", type=json.loads, help="arguments of lg.Policy")
    arguments = parser.parse_args()
    if arguments.kill_at:
        # What it is killed behind is in the record.
        os.environ.setdefault("LASTGOOD_JOURNAL_WAIT", "1")
    os.makedirs(arguments.out, exist_ok=True)
    warnings.simplefilter("always")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    trace = Trace(arguments)
    callbacks = [trace]
    if not arguments.stock:
        import lastgood as lg

        callbacks.append(
            lg.hf.LastGoodCallback(
                strict=arguments.strict,
                block=arguments.block,
                exact_batches=not arguments.plain_batches,
                policy=arguments.policy and lg.Policy(**arguments.policy),
            )
        )
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            output_dir=arguments.out,
            max_steps=12,
            save_steps=3,
            save_total_limit=arguments.keep,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            logging_steps=arguments.log,
            eval_strategy="no" if arguments.log == 1000 else "steps",
            gradient_accumulation_steps=arguments.accumulate,
            disable_tqdm=True,
            ddp_timeout=60,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        data_collator=hide_words,
        callbacks=callbacks,
    )
    trace.trainer = trainer
    resume = None
    if not arguments.fresh:
        resume = True if arguments.stock else lg.hf.last_good(arguments.out)
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main()
