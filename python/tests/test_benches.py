"""The benchmarks at a tiny scale: every scenario measures, a way that gives back other bytes is found, and what is told
of the measurements is right."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHES = Path(__file__).parents[1] / "benches"
sys.path.insert(0, str(BENCHES))

from lastgood_bench import (  # noqa: E402
    chart,
    command,
    limits,
    measure,
    models,
    page,
    processes,
    states,
    stats,
    table,
    tensors,
    ways,
    worker,
)
from lastgood_bench.jobs import Record  # noqa: E402
from lastgood_bench.scenarios import SCENARIOS, Plan, w3, w4, w7  # noqa: E402

OPTIONS = {"saves": 1, "steps": 10, "history": 100, "tensors": 100, "shards": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


def plan(folder: Path, cache: Path, *names: str) -> Plan:
    return Plan({name: ways.WAYS[name] for name in names}, 1, folder, cache, dict(OPTIONS))


def measured(plan: Plan, scenario: str, state: str = "TEST") -> list[Record]:
    """Every job of a scenario, in this process."""
    found = []
    for job in SCENARIOS[scenario].jobs(plan, state):
        SCENARIOS[scenario].prepare(job)
        job.spawned = time.monotonic_ns()
        found += worker.run(job).found
    return found


def of(records: list[Record], way: str, case: str) -> dict[str, float]:
    return {r.metric: r.value for r in records if (r.way, r.case) == (way, case)}


def test_saves_are_measured_alone_and_in_training(tmp_path: Path, cache: Path) -> None:
    records = measured(plan(tmp_path, cache, "lastgood", "torch.save", "dcp async"), "W1")
    for way in ("lastgood", "torch.save", "dcp async"):
        for case in ("first", "steady"):
            found = of(records, way, case)
            assert 0 < found["call_s"] <= found["done_s"] <= found["durable_s"]
        assert of(records, way, "training").keys() >= {"slowdown_s", "guard_s", "drain_s"}
        memory = of(records, way, "memory")
        assert memory["put_bytes"] > 700_000 and memory["rss_extra_bytes"] >= 0
    assert not list(tmp_path.iterdir())


def test_bytes_are_counted_against_what_changed(tmp_path: Path, cache: Path) -> None:
    records = measured(plan(tmp_path, cache, "lastgood", "safetensors"), "W3")
    every = of(table.derive(records), "lastgood", "every 1")
    assert every["saves"] == 10
    assert every["of_changed"] == pytest.approx(
        every["put_bytes"] / of(records, w3.CHANGED, "every 1")["put_bytes"], rel=0.1
    )
    full = of(records, "safetensors", "every 10")
    assert full["saves"] == w3.SAMPLES and full["of_raw"] >= 1


@pytest.mark.parametrize("scenario", ["W4", "W5"])
def test_restores_are_measured_and_compared(scenario: str, tmp_path: Path, cache: Path) -> None:
    ours = "lastgood" if scenario == "W4" else "lastgood dcp"
    names = (ours, "torch.save", "torch.load mmap", "dcp", "safetensors")
    records = measured(plan(tmp_path, cache, *names), scenario)
    for way in names:
        for case in ("fresh cold", "in place hot") if scenario == "W4" else ("one tensor", "100 %"):
            assert of(records, way, case)["load_s"] > 0, (way, case)
    if scenario == "W5":
        assert of(records, "dcp", "rows")["load_s"] > 0


def test_growth_has_exponents(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w7, "BY_TENSORS", ("lastgood", "torch.save"))
    given = plan(tmp_path, cache, "lastgood", "torch.save")
    given.options["tensors"] = 1000
    records = measured(given, "W7", "-")
    assert of(records, "lastgood", "history: exponent").keys() >= {"open_s", "durable_s", "load_s"}
    assert of(records, "torch.save", "tensors: exponent")["call_s"] > 0
    assert of(records, "lastgood", "shards: 2")["durable_s"] > 0
    assert of(records, "lastgood", "optimizer: 1000 tensors")["call_processor_s"] > 0


class Liar(ways.WAYS["torch.save"]):  # type: ignore[misc]
    """Gives back one other bit."""

    name = "liar"

    def load(self, number: int, layout: Any) -> Any:
        found = super().load(number, layout)
        tensors.raw(found["model.words.weight"])[7] ^= 1
        return found


class Spoiler(ways.WAYS["torch.save"]):  # type: ignore[misc]
    """Changes the memory that it saves."""

    name = "spoiler"

    def save(self, number: int) -> None:
        super().save(number)
        tensors.raw(self.flat()["model.words.weight"])[7] ^= 1


def test_a_way_that_changes_the_live_state_is_found(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ways.WAYS, "spoiler", Spoiler)
    with pytest.raises(tensors.Differs, match="given to spoiler"):
        measured(plan(tmp_path, cache, "spoiler"), "W1")


@pytest.mark.parametrize("scenario", ["W1", "W3", "W4", "W5"])
def test_a_way_that_gives_back_other_bytes_is_found(
    scenario: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ways.WAYS, "liar", Liar)
    with pytest.raises(tensors.Differs, match=r"liar gave back other bytes in 1 tensors"):
        measured(plan(tmp_path, cache, "liar"), scenario)


def test_what_is_missing_or_left_over_differs() -> None:
    saved = tensors.digest({"a": torch.zeros(2), "b": torch.zeros(2)})
    for found in ({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(2, 1)}):
        with pytest.raises(tensors.Differs, match="first b"):
            tensors.compare(saved, found, "way")
    # Negative zero is another number of bits.
    assert tensors.changed_bytes({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, -0.0])}) == 4


def test_a_state_goes_on_alike_from_its_cache(cache: Path) -> None:
    first, second = states.build("TEST", cache), states.build("TEST", cache)
    assert tensors.digest(first.flat()) == tensors.digest(second.flat())
    before = tensors.clone(first.flat())
    first.step()
    second.step()
    assert tensors.digest(first.flat()) == tensors.digest(second.flat())
    # Rows of words that did not come have moments that are zero, and weights that do not change.
    changed = tensors.changed_bytes(before, first.flat())
    assert 0.5 < changed / tensors.size_of(before) < 1


def test_few_rows_of_tables_change() -> None:
    small = states._tables("small", 26_000, 16, 0.01)(False, Path())
    before = tensors.clone(small.flat())
    small.step()
    changed = tensors.changed_bytes(before, small.flat())
    assert changed / tensors.size_of(before) == pytest.approx(0.01, rel=0.2)


def test_experts_that_are_not_asked_do_not_change() -> None:
    small = states._experts("small", 64, 8, 16, 8, 2)(False, Path())
    for _ in range(4):
        small.step()
    before = tensors.clone(small.flat())
    small.step()
    same = [
        i
        for i in range(8)
        if not tensors.changed_bytes(
            {"x": before[f"model.experts.{i}.0.weight"]},
            {"x": small.flat()[f"model.experts.{i}.0.weight"]},
        )
    ]
    assert len(same) == 6


def test_adagrad_is_row_wise() -> None:
    table_of_rows = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = models.RowWiseAdagrad(table_of_rows.parameters(), lr=1.0)
    before = table_of_rows.weight.detach().clone()
    (table_of_rows(torch.tensor([1, 1])) * torch.tensor([3.0, 4.0])).sum().backward()
    optimizer.step()
    # The row came twice: its gradient is 6 and 8, whose mean square is 50.
    expected = before[1] - torch.tensor([6.0, 8.0]) / 50**0.5
    torch.testing.assert_close(table_of_rows.weight[1], expected)
    assert torch.equal(table_of_rows.weight[[0, 2, 3]], before[[0, 2, 3]])


def test_numbers_of_several_measurements() -> None:
    assert stats.summarize([3.0, 1.0, 2.0]) == stats.Summary(2.0, 1.0, 3.0, 3)
    assert stats.exponent([1, 10, 100], [2, 2 * 10**0.5, 20]) == pytest.approx(0.5)
    assert stats.line([0, 1, 2], [1, 3, 5]) == (pytest.approx(1), pytest.approx(2))
    assert stats.ratio(-1.0, 2.0) is None and stats.ratio(1.0, 2.0) == 0.5
    for wrong in (lambda: stats.summarize([]), lambda: stats.line([1, 1], [2, 3])):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ValueError, match="above 0"):
        stats.exponent([1, 2], [0, 1])


def records_of(**values: float) -> list[Record]:
    return [Record("W1", "TEST", way, "steady", "durable_s", 0, v) for way, v in values.items()]


def test_ratios_are_to_the_best_peer_and_to_the_limit() -> None:
    records = records_of(lastgood=1.0, dcp=3.0, safetensors=2.0)
    known = {"write_direct": 2e9, "write_buffered": 1e9, "memcpy_warm": 1e10}
    (case,) = table.cases(records, known, {"TEST": 1e9})
    cell = case.rows["lastgood"]["durable_s"]
    assert (cell.peer, cell.of_peer, cell.of_limit) == ("safetensors", 0.5, 2.0)
    text = table.plain([case])
    assert "lastgood / best peer  0.50 safetensors" in text and "lastgood / limit" in text


def test_memory_beside_the_state_is_seen() -> None:
    before = measure.anonymous()
    with measure.Peak() as watched:
        taken = torch.ones(20 << 20, dtype=torch.uint8)
        time.sleep(0.1)
        del taken
    assert 20 << 20 <= watched.peak - before < 60 << 20


def test_limits_are_found(tmp_path: Path) -> None:
    found = limits.find(tmp_path, size=2 << 20, times=1)
    assert found["memcpy_warm"] > 0 and found["commit_s"] > 0 and found["write_buffered"] > 0
    assert not list(tmp_path.iterdir())
    assert found.keys() <= limits.ABOUT.keys()


def test_the_command_measures_tells_and_draws(tmp_path: Path, cache: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / page.PAGE).write_text(f"# Title\n\n{page.BEGIN}\nold\n{page.END}\n\nBy hand.\n")
    told = tmp_path / "told.json"
    arguments = ["--state", "TEST", "--scenario", "W3", "--way", "lastgood,torch.save"]
    arguments += ["--steps", "1", "--quick", "--json", str(told), "--work", str(tmp_path / "work")]
    ended = subprocess.run(
        [sys.executable, "-m", "lastgood_bench", *arguments, "--cache", str(cache)],
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "lastgood / best peer" in ended.stdout and "left out: without --peers" in ended.stdout
    assert not (tmp_path / "work").exists()
    found = command.Found.read(told)
    assert found.complete and found.states["TEST"]["tensors"] > 100 and not found.errors
    assert command.main(["--from", str(told), "--charts", "--pages", str(docs)]) == 0
    text = (docs / page.PAGE).read_text()
    assert "\nold\n" not in text and "By hand." in text and "### W3 TEST" in text
    assert (docs / "performance/W3-TEST.svg").read_text().count("torch.save") >= 1


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / page.PAGE).write_text("# Title\n")
    found = command.Found({}, {}, {}, {})
    with pytest.raises(page.Unmarked, match="has no lines"):
        page.write(found, tmp_path)


def test_the_same_numbers_make_the_same_chart(tmp_path: Path) -> None:
    (case,) = table.cases(records_of(lastgood=1.0, dcp=3.0), {}, {})
    for name in ("a.svg", "b.svg"):
        chart.draw(case, "durable_s", 0.5, "W1", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_job_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from lastgood_bench import processes\n"
        "from lastgood_bench.jobs import Job\n"
        "job = Job('W1', 'NONE', 'lastgood', 'time', 0, sys.argv[2], sys.argv[2])\n"
        "print(processes.run(job).error, Path(sys.argv[2]).exists())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(BENCHES), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "KeyError: 'NONE' False"


def test_every_way_is_told_or_its_absence() -> None:
    for name, way in ways.WAYS.items():
        assert way.__doc__ and (way.absent() or way.versions()), name
    assert set(ways.chosen(False)) < set(ways.chosen(True)) == set(ways.WAYS)
    assert w4.savers(Plan(ways.WAYS, 1, Path(), Path()), ["fastsafetensors"]) == ["safetensors"]
