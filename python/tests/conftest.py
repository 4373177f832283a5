"""Which tests run: those marked ``slow`` only with LASTGOOD_SLOW=1, and not one of them counts otherwise."""

from __future__ import annotations

import os
import sys

import pytest

# Tests start hundreds of processes. Where none may leave its bytecode, each compiles torch again, which takes longer
# than to import it. Workers and what they start have the environment from here.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import forks  # noqa: E402

SESSION = pytest.StashKey[forks.Session]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; LASTGOOD_SLOW=1 runs it")
    if not hasattr(config, "workerinput"):
        config.stash[SESSION] = forks.Session()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SESSION in config.stash:
        config.stash[SESSION].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    if os.environ.get("LASTGOOD_SLOW"):
        # Others do more than by default, too.
        for item in items:
            item.add_marker(pytest.mark.timeout(1500))
        return
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
