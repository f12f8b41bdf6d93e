"""What a comparison lays side by side: the variants of one study, or those of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from rlheals_ray.report.figures import GREEN, GREY, PURPLE, RL_ORANGE, SFT_BLUE
from rlheals_ray.report.findings_recovery import healing_cells
from rlheals_ray.report.results import Accuracies, Row, Tables
from rlheals_ray.report.variants import Variant, of_variant, variants

COLOURS = (SFT_BLUE, RL_ORANGE, GREEN, PURPLE, GREY)
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "solid")


@dataclass(frozen=True)
class Strand:
    """One recipe and algorithm of one study, with what comparisons ask of it, and how it is drawn."""

    name: str
    variant: Variant
    tables: Mapping[str, pa.Table]
    """Of this variant alone."""
    accuracies: Accuracies
    cells: list[Row]
    """Those that speak for it: see `healing_cells`."""
    edges: list[Row]
    recommendation: list[Row]
    place: int
    """Among the strands compared; chooses colour, mark and dash."""

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.place % len(SYMBOLS)]

    @property
    def dash(self) -> str:
        return DASHES[self.place % len(DASHES)]


def strands(tables: Tables, study: str = "", first: int = 0) -> list[Strand]:
    """A strand for each variant of a study; `study` leads their names, `first` is the place of the first."""
    every = variants(tables)
    recipes = {variant.recipe for variant in every}
    algorithms = {variant.algorithm for variant in every}
    found = []
    for index, variant in enumerate(every):
        mine = of_variant(tables, variant)
        telling = Variant(
            variant.recipe if len(recipes) > 1 else None, variant.algorithm if len(algorithms) > 1 else None
        )
        which = telling.label if any(telling) else ""
        name = f"{study} ({which})" if study and which else study or which or variant.label
        found.append(
            Strand(
                name,
                variant,
                mine,
                Accuracies(mine["scores"]),
                healing_cells(mine["boundary"]),
                of_edges(tables["edges"], variant),
                [row for row in tables["recommendation"].to_pylist() if _is(row, variant)],
                first + index,
            )
        )
    return found


def of_edges(edges: pa.Table, variant: Variant) -> list[Row]:
    """The rows of `edges` of one variant, budget by budget, the lower edge first."""
    mine = [row for row in edges.to_pylist() if _is(row, variant) and row["edge"] in ("lower", "upper")]
    return sorted(mine, key=lambda row: (row["rl_step"] or 0, row["edge"]))


def _is(row: Row, variant: Variant) -> bool:
    """A row that names no recipe or algorithm is any variant's."""
    return all(
        wanted is None or row[name] in (None, wanted)
        for name, wanted in zip(("recipe", "algorithm"), variant, strict=True)
    )
