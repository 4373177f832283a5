"""MosaicML Streaming as a component. Runs where the package and what it imports are installed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lastgood as lg
import pytest
from lastgood.data import adapt

streaming = pytest.importorskip("streaming", exc_type=ImportError)
torch = pytest.importorskip("torch")

LENGTH, BATCH, STEPS = 12, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples in Streaming's own format."""
    folder = tmp_path_factory.mktemp("mds") / "data"
    with streaming.MDSWriter(out=str(folder), columns={"x": "int"}) as writer:
        for number in range(LENGTH):
            writer.write({"x": number})
    return folder


def make(folder: Path, batch_size: int = BATCH) -> Any:
    """A fresh process's loader."""
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(
        local=str(folder), shuffle=True, batch_size=batch_size, shuffle_seed=3
    )
    return streaming.StreamingDataLoader(
        data, batch_size=batch_size, collate_fn=lambda b: torch.tensor([int(s["x"]) for s in b])
    )


def lists(batches: Any) -> list[list[int]]:
    """Batches as numbers."""
    return [batch.tolist() for batch in batches]


def test_a_resume_at_every_step_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    source = make(folder)
    expected = [lists(source) for _ in range(3)]
    assert sorted(itertools.chain(*expected[0])) == list(range(LENGTH))
    for done in range(STEPS + 1):
        first = make(folder)
        steps = iter(first)
        seen = lists(itertools.islice(steps, done))
        with lg.open(tmp_path / str(done), {"loader": first}) as run:
            run.save(done, block=True)
        del steps, first
        second = make(folder)
        with lg.open(tmp_path / str(done), {"loader": second}) as run:
            assert run.restore() == done
            rng = torch.get_rng_state()
            rest = lists(second)
            assert torch.equal(torch.get_rng_state(), rng), "the resume drew a number"
        assert [seen + rest, lists(second)] == expected[:2], done
        del second


def test_stock_ignores_a_state_of_an_earlier_epoch(folder: Path) -> None:
    source = make(folder)
    expected = [lists(source) for _ in range(3)]
    del source
    source = make(folder)
    steps = iter(source)
    lists(itertools.islice(steps, 1))
    stock = source.state_dict()
    adapted: Any = adapt(source)
    state = adapted.state_dict()
    list(steps)
    list(source)
    source.load_state_dict(stock)
    assert lists(source) == expected[2], "stock goes on where it is"
    adapted.load_state_dict(state)
    assert adapted.state_dict() == state
    assert [lists(source), lists(source)] == [expected[0][1:], expected[1]]


def test_hostile_states(folder: Path) -> None:
    source = make(folder)
    adapted: Any = adapt(source)
    state = adapted.state_dict()
    inner = state["state"]
    for change, error in (
        ({"kind": "grain"}, lg.Incompatible),
        ({"length": 13}, lg.Incompatible),
        ({"state": {}}, lg.Invalid),
        ({"state": inner | {"epoch": "1"}}, lg.Invalid),
        ({"state": inner | {"sample_in_epoch": -1}}, lg.Invalid),
        ({"more": 1}, lg.Invalid),
    ):
        with pytest.raises(error):
            adapted.load_state_dict(state | change)
        assert adapted.state_dict() == state
    with pytest.raises(lg.Invalid, match="StreamingDataLoader"):
        adapt(source.dataset)
