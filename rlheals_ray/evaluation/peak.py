"""The OOD peak of a trunk, chosen on one half of the probe problems and reported on the other.

The largest of many noisy accuracies is too large on the problems that chose it (winner's curse);
on problems that had no say in the choice it is unbiased.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Peak(NamedTuple):
    """The SFT step with the best OOD accuracy on the select half, and its report-half accuracy."""

    step: int
    accuracy: float


def split_halves(problem_ids: Sequence[str], clusters: Mapping[str, str]) -> tuple[Mask, Mask]:
    """(select, report): two boolean masks over `problem_ids` that share no cluster and cover all.

    `clusters` maps problem id to cluster label. Clusters go, largest first, to whichever half is
    smaller, so the halves differ by at most one largest cluster. Depends on the labels only, not on
    the order of the problems. A single cluster leaves the report half empty. Raises ValueError for a
    problem without a cluster.
    """
    labels = cluster_labels(problem_ids, clusters)
    sizes = Counter(labels.tolist())
    # Hashed order within a size: labels sort by card, and halves must not differ by rank of cards.
    order = sorted(sizes, key=lambda label: (-sizes[label], hashlib.sha256(label.encode()).digest()))
    totals = [0, 0]
    chosen: list[str] = []
    for label in order:
        half = int(totals[1] < totals[0])
        totals[half] += sizes[label]
        if half == 0:
            chosen.append(label)
    select: Mask = np.isin(labels, chosen)
    return select, ~select


def ood_peak(curves: Mapping[int, npt.ArrayLike], select: Mask, report: Mask) -> Peak:
    """The peak of OOD accuracy over SFT steps; ties go to the earliest step.

    `curves` maps an SFT step to (problems,) outcomes: booleans, or the mean of them over seeds. The
    step is chosen on `select`, its accuracy read on `report`. Raises ValueError without a step or
    when a half is empty.
    """
    if not curves:
        raise ValueError("no SFT step to choose a peak from")
    if not select.any() or not report.any():
        raise ValueError("both halves need problems: probe at least two clusters")
    outcomes = {step: np.asarray(curve, dtype=np.float64) for step, curve in curves.items()}
    # Rounded, because equal means over seeds may differ in their last bits.
    step = min(outcomes, key=lambda step: (-round(float(outcomes[step][select].mean()), 12), step))
    return Peak(step, float(outcomes[step][report].mean()))


def cluster_labels(problem_ids: Sequence[str], clusters: Mapping[str, str]) -> npt.NDArray[np.str_]:
    """(problems,) cluster label of each problem; raises ValueError naming problems without one."""
    missing = [problem for problem in problem_ids if problem not in clusters]
    if missing:
        raise ValueError(f"{len(missing)} problems have no cluster, the first is {missing[0]!r}")
    return np.array([clusters[problem] for problem in problem_ids], dtype=np.str_)
