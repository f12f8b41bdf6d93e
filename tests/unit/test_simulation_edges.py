"""By simulation, on maps whose true window is known: intervals of the edges hold it; the fast rule is the verdicts'."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from rlheals_ray import tables
from rlheals_ray.evaluation.boundary import boundary_rows
from rlheals_ray.evaluation.edges import edge_rows, healing_in_draws
from tests.simulated_maps import Effects, Map, simulated_map

STEPS, BUDGETS = (0, 4, 15, 30, 60, 120, 400), (15, 30)


def window(effect: float, lowest: int = 15, highest: int = 120) -> Effects:
    """RL raises the log-odds by `effect` from the steps of the window, and does nothing from the others."""
    return {(step, budget): effect * (lowest <= step <= highest) for step in STEPS for budget in BUDGETS}


class Found(NamedTuple):
    """Rates over maps and edges at the larger budget."""

    held: float
    """The interval holds the true edge."""
    exact: float
    """The estimate is the true edge."""
    agreement: float
    """Of all cells: the verdict is what the fast rule says in most draws."""
    absent: float
    """Mean share of draws in which nothing heals."""


def simulate(effect: float, maps: int, draws: int, seed: int) -> Found:
    random = np.random.default_rng(seed)
    held, exact, agreement, absent = [], [], [], []
    for _ in range(maps):
        made = simulated_map(random, window(effect), clusters=100, shared=0.3)
        boundary = boundary_rows(*made, "plain", "ppo", draws=20)
        rows = edge_rows(boundary, *made, "plain", "ppo", draws=draws)
        tables.table("edges", rows)
        for row in rows:
            if row["rl_step"] == BUDGETS[-1]:
                true = {"lower": 15, "upper": 120}[row["edge"]]
                held.append(row["step_low"] is not None and row["step_low"] <= true <= row["step_high"])
                exact.append(row["step"] == true)
                absent.append(row["absent"])
        agreement += agreements(made, boundary, draws)
    return Found(*(float(np.mean(values)) for values in (held, exact, agreement, absent)))


def agreements(made: Map, boundary: list[dict[str, Any]], draws: int) -> list[bool]:
    cells, heals = healing_in_draws(*made, "plain", "ppo", draws=draws)
    verdicts = {
        (row["sft_step"], row["rl_step"]): row["verdict"] == "heals"
        for row in boundary
        if row["scope"] == "pooled" and row["rl_step"]
    }
    assert set(cells) == set(verdicts)
    return [
        bool((share > 0.5) == verdicts[cell]) for cell, share in zip(cells, heals.mean(axis=0), strict=True)
    ]


def test_a_clear_window_is_found_and_held() -> None:
    found = simulate(effect=2.0, maps=4, draws=200, seed=21)
    assert (found.held, found.exact, found.agreement, found.absent) == (1, 1, 1, 0)


def test_the_interval_of_an_edge_that_is_often_missed_still_holds_it() -> None:
    """An effect so weak that the verdicts find the edge in less than half of the maps.

    40 intervals: 95 % within 4 sqrt(.95 * .05 / 40) = .138. The fast rule
    says what the verdict says in nine cells of ten.
    """
    found = simulate(effect=0.3, maps=20, draws=200, seed=22)
    assert found.exact < 0.6
    assert found.held >= 0.95 - 0.138
    assert found.agreement >= 0.9


@pytest.mark.slow
def test_edges_are_held_at_the_stated_rate_over_many_maps() -> None:
    """200 intervals: 95 % within 4 sqrt(.95 * .05 / 200) = .062."""
    found = simulate(effect=0.3, maps=100, draws=400, seed=22)
    print(found)
    assert found.held >= 0.95 - 0.062
    assert found.agreement >= 0.95
