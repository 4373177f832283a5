"""A chart for each scenario, by matplotlib."""

from __future__ import annotations

from pathlib import Path

from lastgood_bench.table import Case, number

#: Ours and the others'.
OURS, PEERS, LIMIT = "#1b6ca8", "#b0b0b0", "#c0392b"


def draw(case: Case, metric_name: str, limit: float | None, title: str, file: Path) -> None:
    """Bars of medians, the least first, with what was least and most; a line where the limit is.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    # The same numbers make the same file, with text that can be read and searched.
    matplotlib.rcParams.update({"svg.hashsalt": "lastgood", "svg.fonttype": "none"})
    from matplotlib import pyplot

    metric = next(metric for metric in case.metrics if metric.name == metric_name)
    found = {
        way: cells[metric_name].summary for way, cells in case.rows.items() if metric_name in cells
    }
    order = sorted(found, key=lambda way: found[way].median, reverse=True)
    medians = [found[way].median for way in order]
    below = [m - found[way].least for way, m in zip(order, medians, strict=True)]
    above = [found[way].most - m for way, m in zip(order, medians, strict=True)]
    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.32 * len(order)), layout="constrained")
    colors = [OURS if way.startswith("lastgood") else PEERS for way in order]
    axes.barh(order, medians, xerr=[below, above], color=colors, ecolor="#404040", capsize=2)
    for at, (way, median) in enumerate(zip(order, medians, strict=True)):
        axes.annotate(
            f" {number(median, metric.unit)}",
            (max(found[way].most, 0), at),
            va="center",
            fontsize=8,
        )
    if limit is not None:
        axes.axvline(limit, color=LIMIT, linewidth=1)
        axes.set_xlabel(f"{metric.title}; the line is the limit of this machine", fontsize=8)
    else:
        axes.set_xlabel(metric.title, fontsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: number(value, metric.unit))
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
