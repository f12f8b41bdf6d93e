"""RL against a control of healing of equal compute from the same checkpoint, on the same problems.

"RL heals" alone says that accuracy rose during RL; what stands here says whether as much SFT would have done as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rlheals_ray.evaluation.boundary import Branches, cells_of
from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.paired import Outcomes, difference, judge
from rlheals_ray.evaluation.peak import cluster_labels
from rlheals_ray.evaluation.statistics import cluster_bootstrap

VERDICTS = {1: "better", -1: "worse"}


class _Pair(NamedTuple):
    """One row: RL and its control in a cell; `seed` is None in a pooled row."""

    seed: int | None
    sft_step: int
    rl_step: int
    control: tuple[str, ...]
    rl: tuple[str, ...]


def control_rows(
    episodes: pa.Table,
    scores: pa.Table,
    clusters: Mapping[str, str],
    recipe: str,
    algorithm: str,
    control: str,
    *,
    draws: int = 2000,
) -> list[dict[str, Any]]:
    """Rows of `tables.CONTROLS` of one recipe, RL algorithm and control, for both rules, per seed and pooled.

    Arguments as of `boundary_rows`. A row is a cell in which both were probed; pooled rows are over the seeds that have
    both, `seeds` of them. difference = acc_rl − acc_control, with the intervals and tests that healing has; verdict, of
    RL: `better` or `worse` when q < 0.05 and every one of these seeds has that sign, else `unclear`. A family is one
    control's cells of a rule.
    """
    rows: list[dict[str, Any]] = []
    for rule in ("ood", "id"):
        _, rl = cells_of(scores, rule, recipe, algorithm, "rl")
        _, controls = cells_of(scores, rule, recipe, control, "control")
        pairs = list(_pairs(rl, controls))
        if not pairs:
            continue
        paths = sorted({path for pair in pairs for path in (*pair.control, *pair.rl)})
        column = {path: index for index, path in enumerate(paths)}
        problems, attempts = first_attempts(episodes, rule, paths)
        labels, solved = cluster_labels(problems, clusters), attempts.astype(np.float64)
        outcomes = Outcomes(solved, labels, cluster_bootstrap(solved, labels, draws))
        measured = []
        for pair in pairs:
            before, after = ([column[path] for path in of] for of in (pair.control, pair.rl))
            found = difference(outcomes, before, after, pooled=pair.seed is None)
            measured.append(
                {
                    "scope": "pooled" if pair.seed is None else "seed",
                    "recipe": recipe,
                    "algorithm": algorithm,
                    "control": control,
                    "seed": pair.seed,
                    "seeds": len(pair.rl),
                    "sft_step": pair.sft_step,
                    "rl_step": pair.rl_step,
                    "rule": rule,
                    "acc_rl": float(solved[:, after].mean()),
                    "acc_control": float(solved[:, before].mean()),
                    "difference": found.value,
                    "difference_low": found.low,
                    "difference_high": found.high,
                    "difference_seed_low": found.seed_low,
                    "difference_seed_high": found.seed_high,
                    "p": found.p,
                    "signs": found.signs,
                }
            )
        judge(measured, VERDICTS)
        rows += measured
    return rows


def _pairs(rl: Branches, controls: Branches) -> Iterator[_Pair]:
    """Every seed's cells, seed by seed, then the pooled ones; budget 0, where nothing was trained, is left out."""
    shared = {
        cell: {
            seed: (controls[cell][seed], branch[seed]) for seed in sorted(branch) if seed in controls[cell]
        }
        for cell, branch in sorted(rl.items())
        if cell in controls and cell[1]
    }
    for seed in sorted({seed for pairs in shared.values() for seed in pairs}):
        for (sft_step, rl_step), pairs in shared.items():
            if seed in pairs:
                control, branch = pairs[seed]
                yield _Pair(seed, sft_step, rl_step, (control,), (branch,))
    for (sft_step, rl_step), pairs in shared.items():
        if pairs:
            yield _Pair(None, sft_step, rl_step, *(tuple(side) for side in zip(*pairs.values(), strict=True)))
