"""The generated part of docs/performance.md: tables and charts of the JSON of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lastgood_bench import chart, limits, table
from lastgood_bench.scenarios import SCENARIOS

if TYPE_CHECKING:
    from lastgood_bench.command import Found

PAGE = "performance.md"
BEGIN, END = "<!-- bench:begin, written by the command below -->", "<!-- bench:end -->"


class Unmarked(Exception):
    """The page has no place for the generated part."""


def write(runs: list[Found], docs: Path) -> None:
    """Writes the part of the page between its marks, and the charts that it shows.

    Raises:
        Unmarked: if the page has no marks.
    """
    page = docs / PAGE
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise Unmarked(f"{page} has no lines {BEGIN} and {END}")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    folder = docs / "performance"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    made = "\n".join(line for found in runs for line in _body(found, folder))
    page.write_text(f"{head}{BEGIN}\n\n{made}\n{END}{tail}")


def _body(found: Found, folder: Path) -> list[str]:
    cases = table.cases(found.records, found.limits, found.sizes())
    measured = dict.fromkeys(case.state for case in cases if case.state != "-")
    out = [f"### Of {', '.join(measured) or 'growth'}", "", *_machine(found), *_limits(found)]
    before = ("", "")
    for group in table.tables(cases):
        case = group[0]
        if (case.scenario, case.state) != before:
            before = (case.scenario, case.state)
            out += [f"#### {case.scenario} {case.state}".removesuffix(" -"), ""]
            about = SCENARIOS[case.scenario].about
            out += [f"{about[0].upper()}{about[1:]}{_state(found, case.state)}.", ""]
            out += _chart(found, cases, before, folder)
        out += _table(group)
    out += _rest(found)
    return out


def _state(found: Found, state: str) -> str:
    known = found.states.get(state)
    if known is None:
        return ""
    size = table.number(known["bytes"], "B")
    return f"; {known['about']}: {size} in {known['tensors']:.0f} tensors"


def _machine(found: Found) -> list[str]:
    of, versions = found.machine, found.versions
    memory = table.number(of["memory_bytes"], "B")
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return [
        "```sh",
        found.settings["command"].strip(),
        "```",
        "",
        f"{of['cpu']}, {of['cores']} cores, {memory}, Linux {of['kernel']}, {of['file_system']}; "
        f"load {of['load']:.1f} when it began; revision {of['revision']}; Python {of['python']};",
        f"{listed}; seed {found.settings['seed']}; {found.settings['reps']} repetitions.",
        "",
    ]


def _limits(found: Found) -> list[str]:
    out = ["| limit | |", "|---|---|"]
    for name, value in found.limits.items():
        seconds = name.endswith("_s")
        text = table.number(value, "s" if seconds else "B") + ("" if seconds else "/s")
        out.append(f"| {limits.ABOUT[name].rsplit(',', 1)[0]} | {text} |")
    return [*out, ""]


def _chart(found: Found, cases: list[table.Case], key: tuple[str, str], folder: Path) -> list[str]:
    name, metric = SCENARIOS[key[0]].chart
    shown = next(
        (
            case
            for case in cases
            if (case.scenario, case.state, case.case) == (*key, name)
            and any(metric in cells for cells in case.rows.values())
        ),
        None,
    )
    if shown is None:
        return []
    known = next(m for m in shown.metrics if m.name == metric)
    size = found.sizes().get(key[1], 0.0)
    limit = known.limit(found.limits, size) if known.limit is not None and size else None
    file = folder / f"{key[0]}-{key[1]}.svg".replace("--", "-")
    title = f"{key[0]} {key[1]}, {name}: {known.title}".replace(" -,", ",")
    chart.draw(shown, metric, limit, title, file)
    return [f"![{title}]({folder.name}/{file.name})", ""]


def _table(group: list[table.Case]) -> list[str]:
    head, *rows = table.lines(group)
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    out += ["| " + " | ".join(row) + " |" for row in rows]
    return [*out, ""]


def _rest(found: Found) -> list[str]:
    out = []
    for title, texts in (
        ("Absent", [f"{name}: {why}" for name, why in found.absent.items()]),
        ("Left out", found.left_out),
        ("Failed", found.errors),
    ):
        if texts:
            out += [f"{title}:", "", *(f"- {text}" for text in texts), ""]
    return out
