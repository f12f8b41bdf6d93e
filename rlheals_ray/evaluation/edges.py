"""Where the recovery boundary lies: the edges of the SFT steps from which RL heals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BoundaryEdges:
    """The healing SFT steps at one RL budget, from pooled OOD verdicts.

    An edge is known only between two tested steps: `lower_edge` = (last tested step below, `lowest`),
    `upper_edge` = (`highest`, next tested step above); None in a pair means that no step was tested on
    that side, so the boundary may lie anywhere beyond. All four are None where nothing heals. `gaps`:
    tested steps between `lowest` and `highest` that do not heal; the window is one piece when empty.
    """

    tested: tuple[int, ...]
    heals: tuple[int, ...]
    gaps: tuple[int, ...]
    lowest: int | None
    highest: int | None
    lower_edge: tuple[int | None, int] | None
    upper_edge: tuple[int, int | None] | None
    by_seed: Mapping[int, tuple[int, int] | None]
    """Each seed's own (lowest, highest) healing step, None where none heals: the spread over seeds."""


def boundary_edges(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, BoundaryEdges]]:
    """(recipe, algorithm) -> RL step -> edges, from rows of `tables.BOUNDARY`; rl_step 0 is left out."""
    verdicts: dict[tuple[str, str], dict[int, dict[int | None, dict[int, str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for row in rows:
        if row["rule"] == "ood" and row["rl_step"]:
            seed = None if row["scope"] == "pooled" else row["seed"]
            verdicts[row["recipe"], row["algorithm"]][row["rl_step"]][seed][row["sft_step"]] = row["verdict"]
    return {
        key: {rl_step: _edges(scopes) for rl_step, scopes in sorted(budgets.items())}
        for key, budgets in sorted(verdicts.items())
    }


def _edges(scopes: Mapping[int | None, Mapping[int, str]]) -> BoundaryEdges:
    pooled = scopes.get(None, {})
    tested, heals = tuple(sorted(pooled)), _healing(pooled)
    by_seed: dict[int, tuple[int, int] | None] = {}
    for seed in sorted(seed for seed in scopes if seed is not None):
        own = _healing(scopes[seed])
        by_seed[seed] = (own[0], own[-1]) if own else None
    if not heals:
        return BoundaryEdges(tested, heals, (), None, None, None, None, by_seed)
    lowest, highest = heals[0], heals[-1]
    return BoundaryEdges(
        tested=tested,
        heals=heals,
        gaps=tuple(step for step in tested if lowest < step < highest and step not in heals),
        lowest=lowest,
        highest=highest,
        lower_edge=(max((step for step in tested if step < lowest), default=None), lowest),
        upper_edge=(highest, min((step for step in tested if step > highest), default=None)),
        by_seed=by_seed,
    )


def _healing(verdicts: Mapping[int, str]) -> tuple[int, ...]:
    return tuple(sorted(step for step, verdict in verdicts.items() if verdict == "heals"))
