"""What was measured, row by row, before it becomes a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bench.figures import Goal, median, percentile, verdict


@dataclass(slots=True)
class Sample:
    """One measurement of one peer. `wall_s` is the load generator's, CPU the proxy's."""

    count: int
    errors: int
    wall_s: float
    cpu_ns: int
    foreign: float = 0.0
    """Share of the proxy's core that others used meanwhile: noise, from 0 to 1."""
    generator: str = ""
    latencies_s: list[float] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU for each call or chunk."""
        return self.cpu_ns / 1000 / self.count if self.count else 0.0

    @property
    def per_s(self) -> float:
        """Calls or chunks a second."""
        return self.count / self.wall_s if self.wall_s else 0.0

    @property
    def busy(self) -> float:
        """Share of a core that the proxy used: below 0.9 it was not the bottleneck."""
        return self.cpu_ns / 1e9 / self.wall_s if self.wall_s else 0.0


@dataclass(slots=True)
class Cell:
    """All samples of one peer in one row, one a round."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return sum(sample.errors for sample in self.samples)

    @property
    def is_valid(self) -> bool:
        """Every call was answered with 200, and there were some."""
        return not self.failures and bool(self.samples) and all(s.count and not s.errors for s in self.samples)

    def middle(self, name: str) -> float | None:
        """The median over the rounds of a property of Sample; None where nothing was measured."""
        values = [float(getattr(sample, name)) for sample in self.samples if sample.count]
        return median(values) if values else None

    def latency_s(self, share: float) -> float | None:
        """A percentile over all calls of all rounds."""
        values = [value for sample in self.samples for value in sample.latencies_s]
        return percentile(values, share) if values else None


@dataclass(slots=True)
class Row:
    """One line of the table: what is judged, against which goal, and the figures beside it."""

    name: str
    title: str
    figure: float | None = None
    """What is judged, in `unit`."""
    unit: str = "x Envoy"
    goal: Goal | None = None
    is_valid: bool = True
    notes: list[str] = field(default_factory=list)
    absolute: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each peer, figures by name: cpu_us, per_s, busy, p50_us and so on."""
    ratios: dict[str, float] = field(default_factory=dict)
    """meshd over each peer, in what the row compares."""

    @property
    def verdict(self) -> str:
        """met, MISSED, INVALID, not measured, or nothing where there is no goal."""
        return verdict(self.goal, self.figure, self.is_valid)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"verdict": self.verdict}
