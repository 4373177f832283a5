"""What is measured, by the names of BENCHMARKS.md."""

from __future__ import annotations

from lastgood_bench.scenarios import w1, w2, w3, w4, w5, w6, w7, w10
from lastgood_bench.scenarios.base import Metric, Plan, Scenario

__all__ = ["SCENARIOS", "Metric", "Plan", "Scenario"]

SCENARIOS: dict[str, Scenario] = {
    scenario.id: scenario
    for scenario in (
        w1.SCENARIO,
        w2.SCENARIO,
        w3.SCENARIO,
        w4.SCENARIO,
        w5.SCENARIO,
        w6.SCENARIO,
        w7.SCENARIO,
        w10.SCENARIO,
    )
}
