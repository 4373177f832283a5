"""Which tests run, those marked ``slow`` only with LASTGOOD_SLOW=1, and not one of them counts otherwise; and where."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

import pytest

# Tests start hundreds of processes. Where none may leave its bytecode, each compiles torch again, which takes longer
# than to import it. Workers and what they start have the environment from here.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Its variables are those of the processes that tests start (`children`), so that each may restore what the other saved;
# but for the devices of jax, of which only a process that runs tests has several, and for what is edited meanwhile.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ["LASTGOOD_ACCEPT"] = (
    '{"keys": ["code.commit", "code.diff", "env.XLA_FLAGS"], "reason": "it is of the tests", "always": true}'
)

# A session that was started in the background ignores Ctrl-C, and so would everything that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Until everything is imported: frameworks are a million objects, which no collection frees.
gc.disable()

import forks  # noqa: E402

#: Files whose tests import or compile the same when they run, which takes seconds: one worker of pytest-xdist has them
#: all. What files import at their top, each worker imports to know its tests.
TOGETHER = {
    "trainers": [
        "lightning",
        "hf",
        "doctor_hf",
        "doctor_lightning",
        "fs",
        "accelerate",
        "peers_hf",
        "preflight_trainers",
    ],
    "jax": ["jax", "orbax", "peers_orbax", "jax_world", "preflight_orbax"],
}
#: What takes longest comes first, so that the workers end at the same time.
FIRST = [*TOGETHER["trainers"], *TOGETHER["jax"]]
FIRST += ["examples_trainers", "examples_torch", "referee", "examples_jax", "dcp", "peers_dcp"]
FIRST += ["distributed", "data_run", "data_seeded", "overlap", "torch_checkpointing", "bit_exact"]
FIRST += ["ordered"]

SESSION = pytest.StashKey[forks.Session]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; LASTGOOD_SLOW=1 runs it")
    if not hasattr(config, "workerinput"):
        config.stash[SESSION] = forks.Session()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SESSION in config.stash:
        config.stash[SESSION].close()


def pytest_collection_finish(session: pytest.Session) -> None:
    # Each full collection would go through all that was imported, and in a fork, such as a worker of a DataLoader, copy
    # the pages of all.
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files, some of them together, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    groups = {f"test_{name}.py": group for group, names in TOGETHER.items() for name in names}

    class Files(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return groups.get(file, file)

    config.option.loadscopereorder = False
    return Files(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    slow = [item for item in items if item.get_closest_marker("slow")]
    if os.environ.get("LASTGOOD_SLOW"):
        # Others do more than by default, too.
        for item in items:
            item.add_marker(pytest.mark.timeout(1500))
        return
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows the tables that tests have recorded: what they print in a worker of pytest-xdist nobody sees."""
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get(
        "failed", []
    ):
        for name, text in report.user_properties:
            if name == "table":
                terminalreporter.write_line(text)
