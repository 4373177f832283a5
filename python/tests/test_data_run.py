"""Data loaders in real checkpoints: ranks that are killed and come back as another number of
ranks."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import children
import lastgood as lg
import pytest
from lastgood.data import Sampler, loader

PROGRAM = Path(__file__).parent / "programs" / "data_ranks.py"
STEPS = 12


def reference() -> list[tuple[int, list[int]]]:
    """Epoch and samples of every step, of one rank that nobody disturbs."""
    batches = loader(Sampler(26, seed=11, batch_size=8, rank=0, world_size=1))
    return [(epoch, [int(i) for i in batch]) for epoch in range(3) for batch in batches]


class Ranks:
    """The processes of one attempt."""

    def __init__(self, folder: Path, world_size: int) -> None:
        attempt = len(list(folder.glob("attempt-*")))
        self.logs = [folder / f"attempt-{attempt}-{rank}" for rank in range(world_size)]
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(folder / "store"), str(log)],
                env=children.environment(
                    RANK=str(rank),
                    WORLD_SIZE=str(world_size),
                    LASTGOOD_INCARNATION=f"start-{attempt}",
                ),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, log in enumerate(self.logs)
        ]

    def lines(self) -> list[list[str]]:
        """The whole lines of each rank."""
        texts = [log.read_text() if log.exists() else "" for log in self.logs]
        return [text[: text.rfind("\n") + 1].splitlines() for text in texts]

    def wait(self, steps: int) -> None:
        """Until each rank has taken so many steps, or all have ended."""
        limit = time.monotonic() + 120
        while not all(len(lines) >= steps for lines in self.lines()):
            assert time.monotonic() < limit, "the ranks do not go on"
            if all(rank.poll() is not None for rank in self.ranks):
                break
            time.sleep(0.002)

    def kill(self) -> None:
        """All at once, wherever they are."""
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.communicate()

    def end(self) -> None:
        """Waits for them to end well."""
        for rank in self.ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors

    def taken(self) -> dict[int, tuple[int, list[int]]]:
        """Epoch and samples of each step that all ranks took."""
        taken: dict[int, tuple[int, list[int]]] = {}
        for lines in zip(*self.lines(), strict=False):
            if lines[0].startswith("end"):
                continue
            shares = [[int(word) for word in line.split()] for line in lines]
            assert len({tuple(share[:2]) for share in shares}) == 1, "the ranks are not in step"
            taken[shares[0][0]] = (shares[0][1], [i for share in shares for i in share[2:]])
        return taken


@pytest.mark.parametrize("worlds", [(2, 3, 1, 8), (1, 4, 2, 2, 3)])
def test_killed_ranks_come_back_as_another_number_of_ranks(
    worlds: tuple[int, ...], tmp_path: Path
) -> None:
    pause = random.Random(str(worlds))
    taken: dict[int, tuple[int, list[int]]] = {}
    resumed = []
    for world_size in worlds:
        attempt = Ranks(tmp_path, world_size)
        last = len(resumed) == len(worlds) - 1
        if last:
            attempt.end()
        else:
            attempt.wait(2 + len(resumed) % 2)
            time.sleep(pause.uniform(0, 0.01))
            attempt.kill()
        found = attempt.taken()
        resumed.append(min(found, default=None))
        # A step that was taken and not saved is taken again, and must give the same samples.
        for step, batch in found.items():
            assert taken.setdefault(step, batch) == batch, (worlds, resumed)
    assert [taken[step] for step in sorted(taken)] == reference(), resumed
    assert sorted(taken) == list(range(1, STEPS + 1))
    assert all(step is None or step > 1 for step in resumed[1:]), "nothing was resumed"
    assert attempt.lines()[0][-1] == "end 3"


# --- loaders in the state of a run --------------------------------------------------------------


def counted(workers: int) -> Any:
    """Our own, with augmentations in worker processes."""
    from torch.utils.data import DataLoader

    data = lg.data.seeded(noise())
    sampler: Any = Sampler(data, seed=3, batch_size=4, rank=0, world_size=1)
    return loader(DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=list))


def stateful(workers: int) -> Any:
    """torchdata's."""
    import torch

    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    data = lg.data.seeded(noise(), seed=4) if workers else noise()
    generator = torch.Generator().manual_seed(9)
    return torchdata.StatefulDataLoader(
        data, 4, shuffle=True, num_workers=workers, collate_fn=list, generator=generator
    )


def grain(workers: int) -> Any:
    """Grain's, which is one iterator over all epochs."""
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.range(12).shuffle(seed=4).repeat(3).batch(4).map(lambda x: x.tolist())
    return iter(data.to_iter_dataset())


def noise() -> Any:
    """Sample i is i and what the global generators give."""
    import torch

    class Noise(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            return int(index), random.random(), float(torch.rand(1))

    return Noise()


def train(store: Path, make: Any, workers: int, stop: int) -> list[Any]:
    """Steps until `stop` of 9, and saves that one; all of them draw from the global generators."""
    import torch

    torch.manual_seed(1)
    random.seed(1)
    batches = make(workers)
    state: dict[str, Any] = {"loader": batches}
    seen = []
    with lg.open(store, state) as run:
        step = run.restore()
        while step < 9:
            for batch in batches:
                step += 1
                seen.append((step, batch, float(torch.rand(1)), random.random()))
                if step == stop:
                    run.save(step, block=True)
                    return seen
    return seen


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [(counted, 2, 0), (counted, 0, 2), (stateful, 0, 0), (stateful, 2, 2), (grain, 0, 0)],
)
def test_a_run_that_is_resumed_at_every_step_takes_the_same_batches(
    make: Any, before: int, after: int, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", make, before, 9)
    assert len(whole) == 9
    for stop in (1, 3, 5, 6, 7):
        store = tmp_path / str(stop)
        first = train(store, make, before, stop)
        assert first + train(store, make, after, 9) == whole, stop


def test_another_number_of_workers_stops_the_restore_with_both_numbers(tmp_path: Path) -> None:
    train(tmp_path, stateful, 0, 2)
    with pytest.raises(lg.Incompatible, match=r"num_workers=0, and now has num_workers=2"):
        train(tmp_path, stateful, 2, 9)


def test_a_loader_without_state_is_refused_when_the_run_is_opened(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    with pytest.raises(lg.Invalid, match=r"lg.data.Sampler"):
        lg.open(tmp_path, {"loader": DataLoader(noise())})
