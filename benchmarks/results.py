"""The results of the benchmarks: figures with their targets, and the lines of the charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: What was measured.
        backend: The database behind the server.
        measured: The number.
        unit: Its unit; a ratio has none.
        target: The lower or upper bound of the number; None without one.
        at_most: Whether the target is an upper bound.
        detail: The numbers behind it, as text.
    """

    name: str
    backend: str
    measured: float
    unit: str = ""
    target: float | None = None
    at_most: bool = False
    detail: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the number meets its target; True without one."""
        if self.target is None:
            return True
        return self.measured <= self.target if self.at_most else self.measured >= self.target


@dataclass
class Chart:
    """Lines of points; both axes are logarithmic."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, line: str, x: float, y: float) -> None:
        """Add a point to a line."""
        self.lines.setdefault(line, []).append((x, y))


@dataclass
class Results:
    """All figures and charts of one run of the benchmarks."""

    machine: Mapping[str, str]
    figures: list[Figure] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)

    def chart(self, name: str, title: str, x: str, y: str) -> Chart:
        """Return the chart of this name, which both databases share."""
        return self.charts.setdefault(name, Chart(title, x, y))
