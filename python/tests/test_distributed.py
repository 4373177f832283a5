"""Real process groups: what one layout saves, another one restores, and no rank waits for another one's save."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import forks
import pytest
from children import PROGRAMS

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
    """Runs every check in four ranks, which are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = []
    for rank in range(RANKS):
        command = [sys.executable, str(PROGRAMS / "ranks.py"), str(rank), str(folder)]
        with open(folder / f"output.{rank}", "wb") as output:
            ranks.append(forks.Fork("torch", command, env=forks.environment(), stdout=output))
    for process in ranks:
        # Each rank ends itself if it hangs.
        process.wait(600)
    return folder


@pytest.mark.parametrize("check", CHECKS)
def test_ranks(job: Path, check: str) -> None:
    for rank in range(RANKS):
        result = job / f"{check}.{rank}.json"
        output = (job / f"output.{rank}").read_text(errors="replace")[-3000:]
        assert result.exists(), f"rank {rank} did not come so far:\n{output}"
        problem = json.loads(result.read_text())
        assert problem is None, f"rank {rank}:\n{problem}"
