"""What was measured, by medians, with the ratios that make it mean something."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lastgood_bench import stats
from lastgood_bench.jobs import Record
from lastgood_bench.scenarios import SCENARIOS, Metric
from lastgood_bench.scenarios.w3 import CHANGED
from lastgood_bench.stats import Summary
from lastgood_bench.ways import WAYS

#: Ours that is compared with the best peer: the first that was measured.
OURS = ("lastgood", "lastgood dcp")


#: How the case of an exponent ends, which has no unit.
EXPONENT = ": exponent"


@dataclass(frozen=True)
class Cell:
    """One metric of one way in one case, beside the best peer and the limit."""

    summary: Summary
    peer: str | None
    #: How many times the best peer's, and the limit's, it takes.
    of_peer: float | None
    of_limit: float | None


@dataclass(frozen=True)
class Case:
    """A table: the ways by rows, the metrics by columns."""

    scenario: str
    state: str
    case: str
    metrics: list[Metric]
    rows: dict[str, dict[str, Cell]]


def derive(records: list[Record]) -> list[Record]:
    """Numbers that are made of several: bytes put for each byte that changed."""
    changed: dict[tuple[str, str, str], list[float]] = {}
    for r in records:
        if r.way == CHANGED and r.metric == "put_bytes":
            changed.setdefault((r.scenario, r.state, r.case), []).append(r.value)
    made = []
    for r in records:
        known = changed.get((r.scenario, r.state, r.case))
        if known and r.way != CHANGED and r.metric == "put_bytes":
            mean = sum(known) / len(known)
            value = r.value / max(mean, 1)
            made.append(Record(r.scenario, r.state, r.way, r.case, "of_changed", r.rep, value))
    return records + made


def cases(records: list[Record], limits: dict[str, float], sizes: dict[str, float]) -> list[Case]:
    """Every table, in the order of the records."""
    grouped: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
    for r in derive(records):
        ways = grouped.setdefault((r.scenario, r.state, r.case), {})
        ways.setdefault(r.way, {}).setdefault(r.metric, []).append(r.value)
    order = list(SCENARIOS)
    keys = sorted(grouped, key=lambda key: order.index(key[0]))
    return [_case(key, grouped[key], limits, sizes.get(key[1], 0.0)) for key in keys]


def _case(
    key: tuple[str, str, str],
    found: dict[str, dict[str, list[float]]],
    limits: dict[str, float],
    size: float,
) -> Case:
    scenario = SCENARIOS[key[0]]
    metrics = [m for m in scenario.metrics if any(m.name in way for way in found.values())]
    if key[2].endswith(EXPONENT):
        metrics = [replace(metric, unit="", limit=None) for metric in metrics]
    best = {m.name: _best(found, m.name) for m in metrics}
    rows: dict[str, dict[str, Cell]] = {}
    for way, values in found.items():
        rows[way] = {}
        for metric in metrics:
            if metric.name not in values:
                continue
            summary = stats.summarize(values[metric.name])
            peer, least = best[metric.name]
            limit = _limit(metric, limits, size)
            rows[way][metric.name] = Cell(
                summary,
                peer,
                stats.ratio(summary.median, least) if least is not None else None,
                stats.ratio(summary.median, limit) if limit is not None else None,
            )
    return Case(*key, metrics, rows)


def _limit(metric: Metric, limits: dict[str, float], size: float) -> float | None:
    if metric.limit is None or not size or not limits:
        return None
    return metric.limit(limits, size)


def _best(found: dict[str, dict[str, list[float]]], metric: str) -> tuple[str | None, float | None]:
    """The peer whose median is the least."""
    peers = {
        way: stats.summarize(values[metric]).median
        for way, values in found.items()
        if metric in values and way in WAYS and not WAYS[way].ours
    }
    if not peers:
        return None, None
    least = min(peers, key=lambda way: peers[way])
    return least, peers[least]


def number(value: float, unit: str) -> str:
    """A number with three digits that matter, and its unit."""
    if unit == "B":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{_digits(value / size)} {name}"
        return f"{value:.0f} B"
    if unit == "s":
        if abs(value) >= 1:
            return f"{_digits(value)} s"
        if abs(value) >= 1e-3:
            return f"{_digits(value * 1e3)} ms"
        return f"{_digits(value * 1e6)} us"
    return _digits(value)


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if (size >= 0.1)
        else f"{value:.3f}"
    )


def tables(found: Iterable[Case]) -> list[list[Case]]:
    """Cases that are one table: those of one name before a colon, such as sizes of one thing."""
    out: list[list[Case]] = []
    for case in found:
        key = (case.scenario, case.state, case.case.partition(": ")[0])
        last = out[-1][0] if out else None
        if last and key == (last.scenario, last.state, last.case.partition(": ")[0]):
            out[-1].append(case)
        else:
            out.append([case])
    return out


def lines(table: list[Case]) -> list[list[str]]:
    """A table as texts: a head, a row for each way, and what ours is to the best peer and to the limit."""
    names: dict[str, str] = {m.name: m.title for case in table for m in case.metrics}
    columns = [m.name for m in SCENARIOS[table[0].scenario].metrics if m.name in names]
    out = [[table[0].case.partition(": ")[0], *(names[column] for column in columns)]]
    for case in table:
        size = case.case.partition(": ")[2]
        out += _rows(case, columns, f", {size}" if size else "")
    return out


def _rows(case: Case, columns: list[str], suffix: str) -> list[list[str]]:
    metrics = {metric.name: metric for metric in case.metrics}
    out = []
    for way, cells in case.rows.items():
        texts = [_text(cells[c].summary, metrics[c]) if c in cells else "" for c in columns]
        out.append([way + suffix, *texts])
    ours = next((way for way in OURS if way in case.rows), None)
    if ours is None or case.case.endswith(EXPONENT):
        return out
    cells = case.rows[ours]
    peer = [ours + suffix + " / best peer"]
    limit = [ours + suffix + " / limit"]
    for column in columns:
        cell = cells.get(column)
        by_peer = cell is not None and cell.of_peer is not None
        peer.append(f"{_digits(cell.of_peer)} {cell.peer}" if by_peer else "")
        by_limit = cell is not None and cell.of_limit is not None
        limit.append(_digits(cell.of_limit) if by_limit else "")
    return out + [row for row in (peer, limit) if any(row[1:])]


def _text(summary: Summary, metric: Metric) -> str:
    text = number(summary.median, metric.unit)
    if summary.count == 1:
        return text
    return f"{text} ({number(summary.least, metric.unit)} to {number(summary.most, metric.unit)})"


def plain(found: Iterable[Case]) -> str:
    """The tables for a terminal."""
    out = []
    for case in tables(found):
        rows = lines(case)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        out.append(f"\n{case[0].scenario} {case[0].state}")
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            out.append("  ".join(cells).rstrip())
    return "\n".join(out)
