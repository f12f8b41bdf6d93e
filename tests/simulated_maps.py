"""Maps drawn from a known world, for tests of statistics: clustered problems, seeds that share part of what RL does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

Effects = Mapping[tuple[int, int], float]
"""(SFT step, RL step) -> how much RL raises the log-odds of solving a problem."""


class Map(NamedTuple):
    """What the evaluation reads: episodes and scores (the columns that it reads), problem -> cluster."""

    episodes: pa.Table
    scores: pa.Table
    clusters: dict[str, str]


def simulated_map(
    random: np.random.Generator,
    effects: Effects,
    *,
    seeds: int = 3,
    clusters: int = 50,
    controls: tuple[str, ...] = (),
    rules: tuple[str, ...] = ("ood",),
    shared: float = 1.0,
    own: float = 0.7,
) -> Map:
    """A checkpoint solves a problem with log-odds = ability of the cluster + effect + what it does to this cluster.

    The latter is normal: one part, of deviation `shared`, is common to the seeds, the other, `own`, is not. Clusters
    hold one to six problems. Controls have RL's own effects, so that between the two nothing is true but noise.
    """
    episodes, scores, groups = [], [], {}
    for rule in rules:
        place = np.arange(clusters).repeat(random.integers(1, 7, clusters))
        problems = [f"{rule}{i}" for i in range(len(place))]
        groups |= {problem: f"{rule}-{c}" for problem, c in zip(problems, place, strict=True)}
        ability = random.normal(0, 1, clusters)
        steps = sorted({step for step, _ in effects})
        kinds = [("sft", None, (step, 0)) for step in steps]
        kinds += [("rl", None, cell) for cell in effects if cell[1]]
        kinds += [("control", name, cell) for cell in effects if cell[1] for name in controls]
        for stage, control, (sft_step, rl_step) in kinds:
            common = (
                ability + random.normal(0, shared, clusters) + (effects[sft_step, rl_step] if rl_step else 0)
            )
            for seed in range(seeds):
                log_odds = (common + random.normal(0, own, clusters))[place]
                solved = random.random(len(place)) < 1 / (1 + np.exp(-log_odds))
                where = f"algorithm={control}/" if control else ""
                name = f"{stage}/{where}seed={seed}/sft_step={sft_step}/rl_step={rl_step}"
                episodes.append(
                    pa.table(
                        {
                            "checkpoint": [name] * len(place),
                            "rule": [rule] * len(place),
                            "problem_id": problems,
                            "solved_at": pa.array(np.ones(len(place), int), mask=~solved),
                        }
                    )
                )
                scores.append(
                    {
                        "checkpoint": name,
                        "stage": stage,
                        "recipe": "plain",
                        "seed": seed,
                        "sft_step": sft_step,
                        "rl_step": rl_step,
                        "rule": rule,
                    }
                )
    return Map(pa.concat_tables(episodes), pa.Table.from_pylist(scores), groups)
