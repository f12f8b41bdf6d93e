"""The variants of a study, each an SFT recipe with an RL algorithm, and the rows of the tables that are a variant's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.results import Tables
from rlheals_ray.report.words import algorithm_name

OF_RECIPE = (
    "sft", "rl", "boundary", "scores", "controls", "branches", "spectra", "updates", "singular_values", "edits",
    "hidden", "similarity", "shift",
)  # fmt: skip
"""Tables of which a variant reads its own rows alone."""


class Variant(NamedTuple):
    """One SFT recipe with one RL algorithm; None stands for the only one."""

    recipe: str | None
    algorithm: str | None

    @property
    def label(self) -> str:
        """In words: `lora, PPO`."""
        return ", ".join(algorithm_name(part) for part in self if part) or "the only variant"


def variants(tables: Tables) -> list[Variant]:
    """Every (recipe, algorithm), the one with most cells first; then recipes of which only SFT was probed."""
    found: dict[Variant, int] = {}
    for name in ("boundary", "rl"):
        for row in tables[name].select(["recipe", "algorithm"]).to_pylist():
            variant = Variant(row["recipe"], row["algorithm"])
            if not {*CONTROLS}.isdisjoint(variant):
                continue
            found[variant] = found.get(variant, 0) + 1
        if found:
            break
    every = sorted(found, key=lambda variant: -found[variant])  # of equals, the first in the table
    algorithm = every[0].algorithm if every else None
    trained = dict.fromkeys(row["recipe"] for row in tables["scores"].to_pylist() if row["stage"] == "sft")
    known = {variant.recipe for variant in every}
    every += [Variant(recipe, algorithm) for recipe in trained if recipe not in known and None not in known]
    return every or [Variant(None, None)]


def of_variant(tables: Tables, variant: Variant) -> dict[str, pa.Table]:
    """The tables with only the rows of `variant`; rows that name no recipe or algorithm are kept.

    The base is every recipe's; controls stand beside the algorithm that they are controls of. `edges` and
    `recommendation` keep every variant's rows: variants are compared by them.
    """
    kept = dict(tables)
    for name in OF_RECIPE:
        if name not in kept:
            continue
        table = kept[name]
        keep = _names(table["recipe"], variant.recipe)
        if name in ("rl", "boundary", "controls"):
            keep = pc.and_(keep, _names(table["algorithm"], variant.algorithm))
        if name == "branches":
            keep = pc.and_(
                keep, pc.or_(_names(table["algorithm"], variant.algorithm), _one_of(table, CONTROLS))
            )
        if name == "scores":
            named = pc.struct_field(
                pc.extract_regex(table["checkpoint"], r"algorithm=(?P<algorithm>[^/]+)"), "algorithm"
            )
            keep = pc.and_(keep, pc.or_(_names(named, variant.algorithm), _equal(table["stage"], "control")))
        if "stage" in table.column_names:
            keep = pc.or_(keep, _equal(table["stage"], "base"))
        kept[name] = table.filter(keep)
    if variant.recipe is not None:
        # `sft/recipe=lora/seed=0/…`, and of edits `edit/recipe=lora_seed=0_…`
        named = pc.extract_regex(kept["episodes"]["checkpoint"], r"recipe=(?P<recipe>.+?)(?:/|_seed=|$)")
        kept["episodes"] = kept["episodes"].filter(_names(pc.struct_field(named, "recipe"), variant.recipe))
    return kept


def _equal(column: pa.ChunkedArray, value: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(column, value), False)


def _one_of(table: pa.Table, algorithms: Sequence[str]) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_in(table["algorithm"], value_set=pa.array(algorithms)), False)


def _names(column: pa.ChunkedArray, value: str | None) -> pa.ChunkedArray:
    """Mask of the rows that carry `value` or nothing; all rows for None."""
    if value is None:
        return pc.fill_null(pc.or_kleene(pc.is_null(column), True), True)
    return pc.fill_null(pc.equal(column, value), True)
