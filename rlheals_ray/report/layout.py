"""What a section of the page holds: figures, tables, and in words what is not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlheals_ray.report.figures import Figure


@dataclass(frozen=True)
class Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = True


@dataclass
class Section:
    """One section; `missing` says in words what has not been measured yet."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    command: str = ""

    def add(self, figure: Figure | None, absent: str) -> Figure | None:
        """Take the figure, or note what is absent."""
        if figure is None:
            self.missing.append(absent)
        else:
            self.figures.append(figure)
        return figure
