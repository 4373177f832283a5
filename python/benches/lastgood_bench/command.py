"""``cargo xtask bench``: what is asked for, the order of the jobs, and what is told of them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lastgood_bench import machine, page, processes, table, ways
from lastgood_bench.jobs import Job, Record
from lastgood_bench.scenarios import SCENARIOS, Plan
from lastgood_bench.scenarios.w4 import EXPECTED as KEPT
from lastgood_bench.states import SEED, SPECS

ROOT = Path(__file__).parents[3]
#: What ``--quick`` leaves out, unless it is asked for: ranks, a gateway and backup tools, which take long to start.
SLOW = ("W2", "W6", "W10")
#: What ``--quick`` measures: small, often enough to show what is far off.
QUICK: dict[str, Any] = {
    "saves": 3,
    "steps": 10,
    "history": 100,
    "tensors": 10_000,
    "shards": 8,
    "ranks": 4,
    "reps": 2,
}
WHOLE: dict[str, Any] = {
    "saves": 10,
    "steps": 50,
    "history": 10_000,
    "tensors": 1_000_000,
    "shards": 64,
    "ranks": 8,
    "reps": 5,
}


@dataclass
class Found:
    """Everything that a run tells, as it is in its JSON."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    absent: dict[str, str]
    limits: dict[str, float] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    complete: bool = False

    def sizes(self) -> dict[str, float]:
        """The bytes of each state."""
        return {name: known["bytes"] for name, known in self.states.items()}

    @classmethod
    def read(cls, file: Path) -> Found:
        """What `write` wrote."""
        told = json.loads(file.read_text())
        told.pop("format")
        told["records"] = [Record(**record) for record in told["records"]]
        return cls(**told)

    def write(self, file: Path) -> None:
        """Every setting and every measurement, and no summary: that is made of them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    told = argparse.ArgumentParser(
        prog="cargo xtask bench",
        description="Measures lastgood beside its peers. docs/performance.md says how to read it.",
        epilog="scenarios: "
        + "; ".join(f"{s.id}: {s.about}" for s in SCENARIOS.values())
        + ". states: "
        + "; ".join(f"{name}: {spec.about}" for name, spec in SPECS.items())
        + ". ways: "
        + ", ".join(ways.WAYS),
    )
    add = told.add_argument
    add("--peers", action="store_true", help="every peer, installed in target/tools/bench")
    add("--state", type=_words, help="which states, with commas; default those of each scenario")
    add("--scenario", type=_words, help="which scenarios, with commas; default all")
    add("--way", type=_words, help="only these ways, with commas")
    add("--reps", type=int, help="repetitions, default 5")
    add("--saves", type=int, help="W1: saves in training for each repetition, default 10")
    add("--steps", type=int, help="W3: steps of training, default 50")
    add("--history", type=int, help="W7: the most checkpoints, default 10,000")
    add("--tensors", type=int, help="W7: the most tensors, default 1,000,000")
    add("--ranks", type=int, help="W2: the most ranks, default 8")
    add("--shards", type=int, help="W7: the most shards, default 64")
    add(
        "--threads", type=int, help="of torch, for training and all ways; default one for each core"
    )
    add("--quick", action="store_true", help="a small state, under 5 minutes on 2 cores")
    add("--json", type=Path, metavar="FILE", help="default target/bench/last.json")
    add("--charts", action="store_true", help="write docs/performance.md's tables and charts")
    add(
        "--from",
        dest="given",
        type=Path,
        metavar="FILE",
        nargs="+",
        help="no run: tell what these JSON files have",
    )
    add("--work", type=Path, default=ROOT / "target/bench/work", help="what is saved lies here")
    add("--cache", type=Path, default=ROOT / "target/bench/states", help="states, made once")
    add("--pages", type=Path, default=ROOT / "docs", help=argparse.SUPPRESS)
    return told


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main(arguments: list[str] | None = None) -> int:
    """Gives the exit code: 0; 1 if something failed or gave back other bytes; 2 if it was asked wrongly; 130 if it
    was interrupted."""
    told = parser()
    asked = told.parse_args(arguments)
    for name, known in (("state", SPECS), ("scenario", SCENARIOS), ("way", ways.WAYS)):
        for word in getattr(asked, name) or ():
            if word not in known:
                told.error(f"there is no {name} {word!r}; there are {', '.join(known)}")
    if asked.given is not None:
        return tell([Found.read(file) for file in asked.given], asked.charts, asked.pages)
    for name, value in (QUICK if asked.quick else WHOLE).items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    # What was started is ended, and what was written removed; also where a shell has it ignore interrupts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    found = begin(asked)
    code = 0
    try:
        measure(asked, found)
        found.complete = True
    except KeyboardInterrupt:
        print("\ninterrupted; what was measured until here:", file=sys.stderr)
        code = 130
    finally:
        shutil.rmtree(asked.work, ignore_errors=True)
    found.write(asked.json or ROOT / "target/bench/last.json")
    return tell([found], asked.charts, asked.pages) or code


def begin(asked: argparse.Namespace) -> Found:
    """What is known before anything is measured."""
    asked.work.mkdir(parents=True, exist_ok=True)
    absent = {name: why for name, way in ways.WAYS.items() if (why := way.absent()) is not None}
    versions: dict[str, str] = {}
    for way in ways.WAYS.values():
        versions |= way.versions()
    names = ("peers", "state", "scenario", "way", "reps", "quick", "threads", *WHOLE)
    settings = {name: getattr(asked, name) for name in names} | {"seed": SEED}
    found = Found(settings, machine.describe(asked.work.resolve()), versions, absent)
    found.settings["command"] = "cargo xtask bench " + shlex.join(_asked(sys.argv[1:]))
    if not asked.peers:
        others = [n for n, w in ways.WAYS.items() if n not in ways.chosen(False) and not w.ours]
        found.left_out.append(f"without --peers: {', '.join(others)}")
    if asked.quick and asked.scenario is None:
        found.left_out.append(f"with --quick: {', '.join(SLOW)}")
    return found


def _asked(arguments: list[str]) -> list[str]:
    """The command line without where things lie, which is each machine's own."""
    out, places = [], ("--work", "--cache", "--json", "--from", "--pages")
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument not in places and before not in places:
            out.append(argument)
    return out


def chosen(asked: argparse.Namespace, found: Found) -> Plan:
    """The ways that are there and asked for."""
    wanted = {
        name: way
        for name, way in ways.chosen(asked.peers).items()
        if name not in found.absent and (asked.way is None or name in asked.way)
    }
    # What only loads needs what saves for it.
    for way in list(wanted.values()):
        if way.saved_by is not None and way.saved_by not in found.absent:
            wanted[way.saved_by] = ways.WAYS[way.saved_by]
    options = {name: getattr(asked, name) for name in (*WHOLE, "threads")}
    return Plan(wanted, asked.reps, asked.work, asked.cache, options)


def measure(asked: argparse.Namespace, found: Found) -> None:
    """Makes the states, finds the limits, and does every job."""
    plan = chosen(asked, found)
    parts = list(_parts(asked))
    for state in dict.fromkeys(state for _, state in parts):
        if state != "-":
            _make(asked, found, state)
    size = (64 if asked.quick else 512) << 20
    say("the limits of this machine")
    job = Job("limits", "-", "-", "limits", 0, str(asked.work / "limits"), str(asked.cache))
    job.options["size"] = size
    ended = processes.run(job)
    if ended.error is not None:
        found.errors.append(f"the limits: {ended.error}")
    found.limits = {record.metric: record.value for record in ended.records}
    queue: list[Job] = []
    for scenario, state in parts:
        why = SCENARIOS[scenario].absent()
        if why is not None:
            found.left_out.append(f"{scenario} {state}: {why}")
        elif state == "-" or state in found.states:
            queue += SCENARIOS[scenario].jobs(plan, state)
    _do(queue, found)


def _parts(asked: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The scenarios and states; all of one state together, since its saves are kept between them."""
    names = asked.scenario or [n for n in SCENARIOS if not (asked.quick and n in SLOW)]
    whole: dict[str, list[str]] = {}
    for name in names:
        own = SCENARIOS[name].states
        given = asked.state or (["QUICK"] if asked.quick else list(own))
        for state in ["-"] if own == ("-",) else given:
            whole.setdefault(state, []).append(name)
    for state, scenarios in whole.items():
        yield from ((scenario, state) for scenario in scenarios)


def _make(asked: argparse.Namespace, found: Found, state: str) -> None:
    say(f"state {state}: {SPECS[state].about}; it is made once")
    job = Job("state", state, "-", "make", 0, str(asked.work / "make"), str(asked.cache))
    ended = processes.run(job)
    if ended.error is not None:
        found.errors.append(f"state {state} could not be made: {ended.error}")
        return
    known = {record.metric: record.value for record in ended.records}
    free = shutil.disk_usage(asked.work).free
    if free < 3 * known["bytes"]:
        found.left_out.append(
            f"state {state}: {table.number(free, 'B')} of the disk are free, and three times "
            f"{table.number(known['bytes'], 'B')} are needed"
        )
        return
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached()
    if memory < 4 * known["bytes"] and state != "SRV":
        found.left_out.append(
            f"state {state}: {table.number(memory, 'B')} of memory are available, and four times "
            f"{table.number(known['bytes'], 'B')} are needed"
        )
        return
    found.states[state] = {"about": SPECS[state].about, **known}


def _cached() -> int:
    """The bytes of the page cache, which go when memory is needed."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) << 10
    return 0


def _do(queue: list[Job], found: Found) -> None:
    taken: dict[tuple[str, ...], list[float]] = {}
    failed: set[tuple[str, ...]] = set()
    for i, job in enumerate(queue):
        if i > 0 and queue[i - 1].state != job.state:
            shutil.rmtree(Path(queue[i - 1].kept or "/nowhere").parent, ignore_errors=True)
        way = (job.scenario, job.state, job.way)
        # Nor can be loaded what could not be saved.
        lost = job.kept is not None and job.case != "save" and not Path(job.kept, KEPT).exists()
        if way in failed or lost:
            continue
        say(f"[{i + 1} of {len(queue)}{_left(queue[i:], taken)}] {job.label()}")
        scenario = SCENARIOS[job.scenario]
        scenario.prepare(job)
        ended = processes.run(job, scenario.new(job))
        if ended.error is not None:
            # It would fail again.
            failed.add(way)
            found.errors.append(f"{job.label()}: {ended.error}")
            say(f"failed: {ended.error}")
        found.records += ended.records
        for key in (way, way[:2], way[:1], ()):
            taken.setdefault(key, []).append(ended.seconds)


def _left(queue: list[Job], taken: dict[tuple[str, ...], list[float]]) -> str:
    """The time that is left, as long as jobs like these have taken."""
    if not taken:
        return ""
    seconds = 0.0
    for job in queue:
        way = (job.scenario, job.state, job.way)
        known = next(taken[key] for key in (way, way[:2], way[:1], ()) if key in taken)
        seconds += sum(known) / len(known)
    minutes, seconds = divmod(int(seconds), 60)
    return f", {minutes} min {seconds} s left"


def say(text: str) -> None:
    """Progress, for people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def tell(runs: list[Found], charts: bool, pages: Path) -> int:
    """Prints the tables, and what is not in them. Gives 1 if something failed."""
    for found in runs:
        print(table.plain(table.cases(found.records, found.limits, found.sizes())))
        print()
        for name, value in found.limits.items():
            unit = "s" if name.endswith("_s") else "B"
            print(f"limit {name}: {table.number(value, unit)}{'' if unit == 's' else '/s'}")
        for name, why in found.absent.items():
            print(f"absent: {name}: {why}")
        for text in found.left_out:
            print(f"left out: {text}")
        for text in found.errors:
            print(f"failed: {text}")
    if charts:
        page.write(runs, pages)
    return 1 if any(found.errors for found in runs) else 0
