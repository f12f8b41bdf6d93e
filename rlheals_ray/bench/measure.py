"""What all benchmarks share: repetitions in turn, a ratio per pair, its spread, and how that is printed.

Machines drift (other loads, clocks, caches). Both sides of a ratio are therefore measured in turn,
A B A B …, each A is divided by the B right after it, and the spread shown is that of these ratios.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import psutil

from rlheals_ray.provenance import git_commit, versions

T = TypeVar("T")


def alternate(arms: Mapping[str, Callable[[int], T]], repetitions: int) -> dict[str, list[T]]:
    """Call every arm once per repetition, in their order: A B A B … Each is told the repetition, from 0."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    for repetition in range(repetitions):
        for name, arm in arms.items():
            results[name].append(arm(repetition))
    return results


@dataclass(frozen=True)
class Figure:
    """An absolute quantity, one value a repetition."""

    name: str
    unit: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.name}: nothing was measured")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: Figure, name: str, *, target: Target | None = None) -> Ratio:
        """The ratio of this figure to `other`, repetition by repetition; their units must agree."""
        if self.unit != other.unit:
            raise ValueError(f"{name}: {self.unit} cannot be compared with {other.unit}")
        values = tuple(a / b for a, b in zip(self.values, other.values, strict=True))
        return Ratio(name, "", values, target=target)


@dataclass(frozen=True)
class Target:
    """What a ratio should come to, in the median."""

    bound: float
    at_least: bool

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(bound, at_least=True)


def at_most(bound: float) -> Target:
    return Target(bound, at_least=False)


@dataclass(frozen=True)
class Ratio(Figure):
    """A figure of pairs; see `Figure.over`."""

    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        return None if self.target is None else self.target.met_by(self.median)


@dataclass(frozen=True)
class Outcome:
    """What one run of a benchmark found."""

    settings: Mapping[str, Any]
    """Everything that was chosen, whether by option or by default."""
    ratios: Sequence[Ratio]
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default_factory=tuple)
    """What a reader must know to judge the figures."""


def surroundings() -> dict[str, Any]:
    """When, where and with which versions this runs."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "load_1min": os.getloadavg()[0],
            "system": platform.platform(),
        },
        "versions": versions(),
    }


def record(name: str, outcome: Outcome, around: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as JSON-like values."""
    return {
        "benchmark": name,
        **around,
        "settings": dict(outcome.settings),
        "ratios": [_row(ratio) | {"met": ratio.met} for ratio in outcome.ratios],
        "figures": [_row(figure) for figure in outcome.figures],
        "notes": list(outcome.notes),
    }


def _row(figure: Figure) -> dict[str, Any]:
    return asdict(figure) | {"median": figure.median, "low": figure.low, "high": figure.high}


def render(name: str, outcome: Outcome, around: Mapping[str, Any]) -> str:
    """Everything as text: ratios first."""
    lines = [f"bench {name}: ratios (median, min..max over the repetitions)"]
    lines += [f"  {_spread(ratio)}{_verdict(ratio)}" for ratio in outcome.ratios]
    lines += ["absolute figures (median, min..max)"]
    lines += [f"  {_spread(figure)}" for figure in outcome.figures]
    lines += ["notes", *(f"  {note}" for note in outcome.notes)] if outcome.notes else []
    lines += ["settings", *(f"  {key}: {value}" for key, value in outcome.settings.items())]
    lines += ["surroundings", *(f"  {key}: {value}" for key, value in around.items())]
    return "\n".join(lines)


def _spread(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    count = len(figure.values)
    return (
        f"{figure.name}: {_number(figure.median)}{unit} "
        f"({_number(figure.low)}..{_number(figure.high)}, n={count})"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _verdict(ratio: Ratio) -> str:
    return "" if ratio.target is None else f"  target {ratio.target}: {'met' if ratio.met else 'MISSED'}"
