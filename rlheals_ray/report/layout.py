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
    """One section: `lead` stands before its figures, `lines` and `command` after its tables.

    `missing` says in words what has not been measured yet.
    """

    name: str
    title: str
    lead: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    command: str = ""
    command_first: str = ""
    """A command that stands before the figures."""

    def add(self, figure: Figure | None, absent: str) -> Figure | None:
        """Take the figure, or note what is absent."""
        if figure is None:
            self.missing.append(absent)
        else:
            self.figures.append(figure)
        return figure
