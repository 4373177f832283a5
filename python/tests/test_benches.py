"""The benchmarks at a tiny scale: every scenario measures, a way that gives back other bytes is found, and what is told
of the measurements is right."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import children
import forks
import pytest
from children import PROGRAMS

torch = pytest.importorskip("torch")

BENCHES = Path(__file__).parents[1] / "benches"
sys.path.insert(0, str(BENCHES))

from lastgood_bench import (  # noqa: E402
    chart,
    command,
    gateway,
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
from lastgood_bench.jobs import Job, Record  # noqa: E402
from lastgood_bench.scenarios import SCENARIOS, Plan, w3, w4, w6, w7, w10  # noqa: E402

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


def forked(program: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """A program of the benchmarks, in a process that need not import torch."""
    words = [sys.executable, str(PROGRAMS / "benches.py"), program, *arguments]
    return forks.run("torch", words, folder / "output")


def alone(job: Job, folder: Path) -> list[Record]:
    """A job in a process of its own: its ranks are forks, and this one has threads."""
    told, result = folder / "job", folder / "result"
    job.write(told)
    forked("worker", folder, str(told), str(result))
    found = json.loads(result.read_text())
    assert "error" not in found, found
    return [Record(**record) for record in found["records"]]


def test_ranks_save_and_restore_on_others(tmp_path: Path, cache: Path) -> None:
    for way in ("lastgood", "dcp"):
        job = Job("W2", "TEST", way, "rows: 2 ranks", 0, str(tmp_path / "w"), str(cache))
        assert of(alone(job, tmp_path), way, job.case).keys() == {"durable_s", "call_s", "load_s"}
        job.case = "restore: 2 to 3"
        assert of(alone(job, tmp_path), way, job.case)["load_s"] > 0


def test_backups_are_beside_saves(tmp_path: Path, cache: Path) -> None:
    there = [name for name in w10.WAYS if ways.WAYS[name].absent() is None]
    records = measured(plan(tmp_path, cache, *there), "W10")
    for name in there:
        assert of(records, name, "second").keys() == {"durable_s", "put_bytes", "load_s"}


class Store(http.server.BaseHTTPRequestHandler):
    """Keeps what is put, and gives it back."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["content-length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.objects.get(self.path, b"listed"))

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "7")
        self.end_headers()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_proxy_counts_and_is_as_slow_as_it_is_told() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    access = gateway.Access(f"http://127.0.0.1:{server.server_port}", "", "", "")
    with gateway.Proxy(access, latency=0.02, cap=4e6) as proxy:
        client = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"))

        def asked(verb: str, path: str, body: bytes | None = None) -> tuple[bytes, float]:
            begin = time.perf_counter()
            client.request(verb, path, body)
            return client.getresponse().read(), time.perf_counter() - begin

        body = bytes(range(256)) * 2000
        assert asked("PUT", "/b/k", body)[1] >= 0.02 + len(body) / 4e6 - 0.01
        assert asked("GET", "/b/k")[0] == body
        assert asked("HEAD", "/b/k")[0] == b""
        assert asked("GET", "/b?list-type=2")[0] == b"listed"
        assert proxy.requests == {"PUT": 1, "GET": 1, "HEAD": 1, "LIST": 1}
        assert (proxy.sent, proxy.received) == (len(body), len(body) + 6)
        proxy.forget()
        assert not proxy.requests
        client.close()
    server.shutdown()


@pytest.mark.skipif("LASTGOOD_TEST_S3" not in os.environ, reason="no S3 gateway")
def test_an_object_store_is_measured_with_its_requests(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = gateway.Access(*os.environ["LASTGOOD_TEST_S3"].split(","))
    monkeypatch.setattr(w6, "PREFIX", f"bench-{tmp_path.name}-{os.getpid()}")
    monkeypatch.setattr(gateway, "started", lambda folder: contextlib.nullcontext(access))
    monkeypatch.setattr(gateway, "absent", lambda: None)
    monkeypatch.setattr(w6, "LINES", {"loopback": (0.0, 0.0)})
    with monkeypatch.context() as changed:
        # What the scenario sets, and the tests after it must not have.
        changed.setattr(os, "environ", os.environ.copy())
        records = measured(plan(tmp_path, cache, "lastgood"), "W6")
    second = of(records, "lastgood", "second save: loopback")
    assert second["put"] >= 3 and second["list"] == 0 and second["put_bytes"] > 700_000
    assert of(records, "lastgood", "restore: loopback")["got_bytes"] > 700_000


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
    # Memory of its own: what a heap has kept may be there already.
    with measure.Peak() as watched, mmap.mmap(-1, 20 << 20) as taken:
        taken.write(b"x" * (20 << 20))
        time.sleep(0.1)
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
    code, output = forked("command", tmp_path, *arguments, "--cache", str(cache))
    assert code == 0, output
    assert "lastgood / best peer" in output and "left out: without --peers" in output
    assert not (tmp_path / "work").exists()
    found = command.Found.read(told)
    assert found.complete and found.states["TEST"]["tensors"] > 100 and not found.errors
    assert command.main(["--from", str(told), "--charts", "--pages", str(docs)]) == 0
    text = (docs / page.PAGE).read_text()
    assert "\nold\n" not in text and "By hand." in text and "#### W3 TEST" in text
    assert (docs / "performance/W3-TEST.svg").read_text().count("torch.save") >= 1


def test_an_interrupt_ends_what_was_started_and_tells_what_there_is(
    tmp_path: Path, cache: Path
) -> None:
    told, work = tmp_path / "told.json", tmp_path / "work"
    words = [sys.executable, str(PROGRAMS / "benches.py"), "command", "--state", "TEST"]
    words += ["--scenario", "W1", "--way", "lastgood", "--reps", "1000", "--quick"]
    words += ["--json", str(told), "--work", str(work), "--cache", str(cache)]
    log = tmp_path / "output"
    with open(log, "wb") as output:
        fork = forks.Fork("torch", words, env=children.environment(), stdout=output)
    end = time.monotonic() + 120
    while "[2 of" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    fork.send_signal(signal.SIGINT)
    assert fork.wait(60) == 130
    assert "interrupted" in log.read_text() and not work.exists()
    found = command.Found.read(told)
    assert not found.complete and found.records
    # The groups of jobs are ended with them.
    assert not any(str(work) in text for text in _command_lines())


def _command_lines() -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(place.read_text())
    return found


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / page.PAGE).write_text("# Title\n")
    found = command.Found({}, {}, {}, {})
    with pytest.raises(page.Unmarked, match="has no lines"):
        page.write([found], tmp_path)


def test_the_same_numbers_make_the_same_chart(tmp_path: Path) -> None:
    (case,) = table.cases(records_of(lastgood=1.0, dcp=3.0), {}, {})
    for name in ("a.svg", "b.svg"):
        chart.draw(case, "durable_s", 0.5, "W1", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_job_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    job = Job("W1", "NONE", "lastgood", "time", 0, str(tmp_path / "work"), str(tmp_path))
    assert processes.run(job).error == "KeyError: 'NONE'"
    assert not (tmp_path / "work").exists()


def test_a_job_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "do", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    job = Job("W1", "TEST", "lastgood", "time", 0, str(tmp_path / "work"), str(tmp_path))
    assert processes.run(job).error == "its process was ended by signal 9"


def test_every_way_is_told_or_its_absence() -> None:
    for name, way in ways.WAYS.items():
        assert way.__doc__ and (way.absent() or way.versions()), name
    assert set(ways.chosen(False)) < set(ways.chosen(True)) == set(ways.WAYS)
    assert w4.savers(Plan(ways.WAYS, 1, Path(), Path()), ["fastsafetensors"]) == ["safetensors"]
