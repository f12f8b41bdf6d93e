"""From the episodes of one probed checkpoint to its rows of the scores table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rlheals_ray.evaluation.statistics import wilson


def score_rows(
    episodes: pa.Table,
    *,
    stage: str,
    recipe: str | None,
    seed: int | None,
    sft_step: int | None,
    rl_step: int | None,
    engine: str,
) -> list[dict[str, Any]]:
    """One row of `tables.SCORES` per rule found in `episodes` (`tables.EPISODES`), rules sorted.

    acc_1: share of problems solved at the first attempt; acc_k: at any attempt; both with 95 % Wilson
    intervals, which take problems for independent. malformed: share of first attempts that were not
    well-formed (an episode without an attempt counts as malformed). Raises ValueError when the
    episodes are not of exactly one checkpoint or hold a problem twice.
    """
    checkpoints = set(episodes["checkpoint"].to_pylist())
    if len(checkpoints) != 1:
        raise ValueError(f"episodes must be of exactly one checkpoint, got {sorted(map(str, checkpoints))}")
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for episode in episodes.select(["rule", "problem_id", "solved_at", "well_formed"]).to_pylist():
        by_rule.setdefault(episode["rule"], []).append(episode)

    rows = []
    for rule, probes in sorted(by_rule.items()):
        n = len(probes)
        if len({probe["problem_id"] for probe in probes}) != n:
            raise ValueError(f"rule {rule!r}: the episodes hold a problem more than once")
        first = sum(probe["solved_at"] == 1 for probe in probes)
        ever = sum(probe["solved_at"] is not None for probe in probes)
        well_formed = sum((probe["well_formed"] or [])[:1] == [True] for probe in probes)
        acc_1_low, acc_1_high = wilson(first, n)
        acc_k_low, acc_k_high = wilson(ever, n)
        rows.append(
            {
                "checkpoint": next(iter(checkpoints)),
                "stage": stage,
                "recipe": recipe,
                "seed": seed,
                "sft_step": sft_step,
                "rl_step": rl_step,
                "rule": rule,
                "n": n,
                "acc_1": first / n,
                "acc_1_low": acc_1_low,
                "acc_1_high": acc_1_high,
                "acc_k": ever / n,
                "acc_k_low": acc_k_low,
                "acc_k_high": acc_k_high,
                "malformed": (n - well_formed) / n,
                "engine": engine,
            }
        )
    return rows
