"""A plugin of pytest that ends with the line by which `cargo xtask test` counts: `N passed, N failed, N skipped`."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts what ran; an error in a fixture is a failure."""
    stats = terminalreporter.stats
    passed = len(stats.get("passed", []))
    failed = len(stats.get("failed", [])) + len(stats.get("error", []))
    skipped = len(stats.get("skipped", [])) + len(stats.get("xfailed", []))
    terminalreporter.write_line(f"{passed} passed, {failed} failed, {skipped} skipped")
