"""By simulation, on clustered problems: intervals cover, and null maps do not claim that RL heals.

Tolerances are four Monte Carlo standard errors of the rate at its nominal value, plus, where said,
a known small-sample bias.
"""

import numpy as np
import pyarrow as pa

from rlheals_ray.evaluation.boundary import boundary_rows
from rlheals_ray.evaluation.statistics import (
    cluster_bootstrap,
    cluster_sign_flip_p,
    mcnemar_exact,
    percentile_interval,
)

Floats = np.ndarray


def labels_of(random: np.random.Generator, count: int) -> np.ndarray:
    """Cluster labels (problems,) of `count` clusters of one to six problems."""
    return np.arange(count).repeat(random.integers(1, 7, count))


def attempts(random: np.random.Generator, labels: np.ndarray, ability: Floats, spread: float) -> np.ndarray:
    """(problems,) outcomes of one checkpoint: it is better or worse at whole clusters than others are."""
    logits = ability[labels] + random.normal(0, spread, len(ability))[labels]
    return random.random(len(labels)) < 1 / (1 + np.exp(-logits))


def test_the_cluster_bootstrap_covers_and_the_naive_one_does_not() -> None:
    """Two checkpoints of equal expected accuracy; the interval of their difference should hold 0.

    Stated tolerance: 0.95 within 4 * sqrt(.95 * .05 / 500) = .039, plus .01 for the percentile
    method's known undercoverage at 60 clusters, downwards.
    """
    random = np.random.default_rng(11)
    covered = {"clusters": 0, "problems": 0}
    runs = 500
    for run in range(runs):
        labels = labels_of(random, 60)
        ability = random.normal(0, 1, 60)
        before, after = (attempts(random, labels, ability, 1.5) for _ in range(2))
        change = (after.astype(float) - before)[:, None]
        for kind, groups in (("clusters", labels), ("problems", np.arange(len(labels)))):
            low, high = percentile_interval(cluster_bootstrap(change, groups, draws=400, seed=run)[:, 0])
            covered[kind] += low <= 0 <= high
    assert 0.95 - 0.039 - 0.01 <= covered["clusters"] / runs <= 0.95 + 0.039
    assert covered["problems"] / runs < 0.90


def test_the_clustered_test_keeps_its_level_where_mcnemar_does_not() -> None:
    random = np.random.default_rng(12)
    runs, rejected = 600, {"clustered": 0, "mcnemar": 0}
    for run in range(runs):
        labels = labels_of(random, 40)
        ability = random.normal(0, 1, 40)
        before, after = (attempts(random, labels, ability, 1.5) for _ in range(2))
        change = after.astype(float) - before
        rejected["clustered"] += cluster_sign_flip_p(change, labels, draws=499, seed=run) < 0.05
        rejected["mcnemar"] += mcnemar_exact(int((change > 0).sum()), int((change < 0).sum())) < 0.05
    assert rejected["clustered"] / runs <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / runs)
    assert rejected["mcnemar"] / runs > 0.10


def null_map(random: np.random.Generator) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """A map of 3 seeds x 4 SFT steps x 2 budgets in which RL changes outcomes but not their expectation.

    What a step or a branch does to a cluster is partly shared by the seeds, as it would be.
    """
    labels = labels_of(random, 50)
    problems = [f"p{i}" for i in range(len(labels))]
    ability = random.normal(0, 1, 50)
    episodes, scores = [], []
    for sft_step in (4, 15, 30, 60):
        for rl_step in (None, 15, 30):
            shared = ability + random.normal(0, 1, 50)
            for seed in range(3):
                name = f"{seed}/{sft_step}/{rl_step}"
                solved = attempts(random, labels, shared, 0.7)
                episodes.append(pa.table({
                    "checkpoint": [name] * len(labels), "rule": ["ood"] * len(labels),
                    "problem_id": problems, "solved_at": pa.array(np.ones(len(labels), int), mask=~solved),
                }))  # fmt: skip
                scores.append({
                    "checkpoint": name, "stage": "rl" if rl_step else "sft", "recipe": "plain", "seed": seed,
                    "sft_step": sft_step, "rl_step": rl_step, "rule": "ood",
                })  # fmt: skip
    clusters = {problem: str(label) for problem, label in zip(problems, labels, strict=True)}
    return pa.concat_tables(episodes), pa.Table.from_pylist(scores), clusters


def test_fewer_than_5_percent_of_null_maps_claim_healing_anywhere() -> None:
    random = np.random.default_rng(13)
    maps = 200
    claimed = 0
    for _ in range(maps):
        rows = boundary_rows(*null_map(random), "plain", "ppo", draws=20)
        claimed += any(row["verdict"] == "heals" for row in rows if row["scope"] == "pooled")
    assert claimed / maps < 0.05
