"""The edges of the recovery boundary, read from verdicts."""

from collections.abc import Mapping
from typing import Any

from rlheals_ray.evaluation.edges import BoundaryEdges, boundary_edges


def rows(verdicts: Mapping[int, str], seed: int | None = None, rl_step: int = 30, **other: Any) -> list[Any]:
    """Boundary rows, reduced to what edges are read from: SFT step -> verdict."""
    where = {"scope": "pooled" if seed is None else "seed", "seed": seed, "rl_step": rl_step}
    study = {"recipe": "plain", "algorithm": "ppo", "rule": "ood"}
    return [
        study | where | {"sft_step": step, "verdict": verdict} | other for step, verdict in verdicts.items()
    ]


def edges_of(*verdicts: Mapping[int, str], **other: Any) -> BoundaryEdges:
    return boundary_edges(row for each in verdicts for row in rows(each, **other))["plain", "ppo"][30]


def test_edges_lie_between_tested_steps() -> None:
    edges = edges_of({400: "unclear", 0: "unclear", 4: "heals", 15: "harms", 60: "heals", 120: "heals"})
    assert (edges.tested, edges.heals, edges.gaps) == ((0, 4, 15, 60, 120, 400), (4, 60, 120), (15,))
    assert (edges.lowest, edges.highest) == (4, 120)
    assert (edges.lower_edge, edges.upper_edge) == ((0, 4), (120, 400))


def test_an_edge_beyond_the_tested_steps_is_open() -> None:
    edges = edges_of({60: "heals"})
    assert (edges.lower_edge, edges.upper_edge) == ((None, 60), (60, None))


def test_without_healing_there_is_no_edge() -> None:
    edges = edges_of({4: "unclear", 60: "harms"})
    assert (edges.heals, edges.lowest, edges.highest) == ((), None, None)
    assert (edges.lower_edge, edges.upper_edge) == (None, None)


def test_each_seed_shows_its_own_window() -> None:
    table = rows({4: "heals", 60: "unclear"})
    table += rows({4: "heals", 60: "heals"}, seed=0) + rows({4: "unclear", 60: "unclear"}, seed=1)
    edges = boundary_edges(table)["plain", "ppo"][30]
    assert edges.heals == (4,)
    assert edges.by_seed == {0: (4, 60), 1: None}


def test_budgets_recipes_and_algorithms_have_their_own_edges() -> None:
    table = rows({4: "heals"}) + rows({4: "unclear"}, rl_step=15) + rows({4: "heals"}, algorithm="grpo")
    edges = boundary_edges(table)
    assert {key: list(budgets) for key, budgets in edges.items()} == {
        ("plain", "grpo"): [30],
        ("plain", "ppo"): [15, 30],
    }
    assert edges["plain", "ppo"][15].heals == ()


def test_the_boundary_is_that_of_the_ood_rule_after_some_rl() -> None:
    assert boundary_edges(rows({4: "heals"}, rule="id") + rows({4: "unclear"}, rl_step=0)) == {}
