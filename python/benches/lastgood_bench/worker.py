"""The process of one job: ``python -m lastgood_bench.worker JOB RESULT``."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from lastgood_bench import limits, scenarios, states, tensors
from lastgood_bench.jobs import Job, Records


def run(job: Job) -> Records:
    """Does a job in this process."""
    records = Records(job)
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    if job.options.get("threads"):
        torch.set_num_threads(job.options["threads"])
    try:
        if job.scenario == "state":
            flat = states.build(job.state, Path(job.cache)).flat()
            records.add(job.case, "bytes", tensors.size_of(flat))
            records.add(job.case, "tensors", len(flat))
        elif job.scenario == "limits":
            for name, value in limits.find(work, job.options["size"]).items():
                records.add(job.case, name, value)
        else:
            scenarios.SCENARIOS[job.scenario].run(job, records)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return records


def do(told: Path, result: Path) -> None:
    """Reads a job, does it, and writes what it found or failed with."""
    # What libraries deprecate is not for who measures them.
    warnings.simplefilter("ignore")
    try:
        found = {"records": [asdict(record) for record in run(Job.read(told)).found]}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    staged = result.with_suffix(".staged")
    staged.write_text(json.dumps(found))
    staged.rename(result)


if __name__ == "__main__":
    do(Path(sys.argv[1]), Path(sys.argv[2]))
