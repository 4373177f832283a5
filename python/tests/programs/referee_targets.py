"""The referee's own training programs with lastgood in place: `python -m referee_targets TARGET PHASE --out FOLDER`.

The programs are those of ckpt_chaos, unchanged; what a user would change in a script of theirs is changed here.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def adopt_hf(program: Any) -> None:
    """The callback, and the folder to resume from: the two lines of `lg.hf`."""
    import lastgood as lg

    class Trainer(program.Trainer):
        def __init__(self, *args: Any, callbacks: Any = (), **kwargs: Any) -> None:
            super().__init__(*args, callbacks=[*callbacks, lg.hf.LastGoodCallback()], **kwargs)

        def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = lg.hf.last_good(self.args.output_dir)
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    program.Trainer = Trainer


ADOPT = {"hf_trainer": adopt_hf}


def main(name: str) -> None:
    program = importlib.import_module(f"ckpt_chaos.targets.{name}")
    ADOPT[name](program)
    program.main()


if __name__ == "__main__":
    main(sys.argv.pop(1))
