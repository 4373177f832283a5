"""Medians, ratios and exponents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What several measurements of one thing say."""

    median: float
    least: float
    most: float
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """The median with the least and the most.

    Raises:
        ValueError: if there are none.
    """
    if not values:
        raise ValueError("nothing was measured")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def ratio(value: float, other: float) -> float | None:
    """How many times ``other`` is ``value``; None where that says nothing, as with a slowdown that is not above 0."""
    if not (math.isfinite(value) and math.isfinite(other)) or value <= 0 or other <= 0:
        return None
    return value / other


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The ``a`` and ``b`` of the line ``a + b x`` of least squares.

    Raises:
        ValueError: if there are not two different ``x``.
    """
    if len(set(x)) < 2:
        raise ValueError("a line needs two different places")
    b, a = statistics.linear_regression(x, y)
    return a, b


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The ``k`` of the power law ``y = c x^k`` that fits best, by the line through the logarithms.

    Raises:
        ValueError: if something is not above 0, or there are not two different ``x``.
    """
    if any(value <= 0 for value in (*x, *y)):
        raise ValueError("a power law is of what is above 0")
    return line([math.log(v) for v in x], [math.log(v) for v in y])[1]
