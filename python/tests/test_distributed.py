"""Real process groups: what one layout saves, another one restores, and no rank waits for another one's save."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import children
import pytest

PROGRAMS = Path(__file__).parent / "programs"
RANKS = 4
CHECKS = [
    "fsdp_4_to_2",
    "fsdp_2_to_3",
    "columns_to_rows",
    "fsdp_to_ddp",
    "ddp_to_one_process",
    "two_dimensions_to_one_process",
    "one_process_to_two_dimensions",
    "two_dimensions_to_tensor_parallel",
    "replicas_of_shards_to_shards",
    "shards_to_replicas_of_shards",
    "mixed_precision",
    "drift_of_replicas",
    "drift_of_shards",
    "absent_rank",
    "without_group",
    "opened_twice",
    "fresh_optimizer",
    "stale_optimizer",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs every check in four ranks, which are started once: importing torch takes longer than the checks."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = []
    for rank in range(RANKS):
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(PROGRAMS / "ranks.py"),
            str(rank),
            str(folder),
        ]
        with open(folder / f"output.{rank}", "wb") as output:
            ranks.append(
                subprocess.Popen(command, stdout=output, stderr=output, env=children.environment())
            )
    for process in ranks:
        # Each rank ends itself if it hangs.
        process.wait(timeout=600)
    return folder


@pytest.mark.parametrize("check", CHECKS)
def test_ranks(job: Path, check: str) -> None:
    for rank in range(RANKS):
        result = job / f"{check}.{rank}.json"
        output = (job / f"output.{rank}").read_text(errors="replace")[-3000:]
        assert result.exists(), f"rank {rank} did not come so far:\n{output}"
        problem = json.loads(result.read_text())
        assert problem is None, f"rank {rank}:\n{problem}"
