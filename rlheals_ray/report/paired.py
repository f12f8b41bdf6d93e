"""Differences between checkpoints on the same problems, with an interval that resamples whole clusters.

And the half of the problems on which a checkpoint may be reported that the other half has chosen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.evaluation.peak import split_halves
from rlheals_ray.evaluation.statistics import cluster_bootstrap, percentile_interval


class Difference(NamedTuple):
    """Accuracy@1 of one checkpoint minus another's, mean over seeds, with an interval over problems."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or −1 where the interval stands clear of 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Paired:
    """First attempts of the checkpoints that are asked for, by problem, under one rule."""

    def __init__(
        self,
        episodes: pa.Table,
        checkpoints: Iterable[str],
        clusters: Mapping[str, str] | None = None,
        rule: str = "ood",
    ) -> None:
        wanted = pa.array(sorted(set(checkpoints)), pa.string())
        asked = episodes.filter(pc.fill_null(pc.equal(episodes["rule"], rule), False))
        chosen = asked.filter(pc.fill_null(pc.is_in(asked["checkpoint"], value_set=wanted), False))
        self._solved: dict[str, dict[str, float]] = {}
        names, problems, solved = (chosen[c].to_pylist() for c in ("checkpoint", "problem_id", "solved_at"))
        for name, problem, at in zip(names, problems, solved, strict=True):
            self._solved.setdefault(name, {})[problem] = float(at == 1)
        self._clusters = clusters
        # Of all problems, whoever was asked them: the peak was chosen on half of these, by the task's own clusters.
        problems = asked["problem_id"].unique().to_pylist()
        known = clusters is not None and clusters.keys() >= set(problems)
        self._held_out = held_out(problems, clusters) if known else frozenset()

    def solved(self, checkpoint: str) -> tuple[int, int] | None:
        """(solved, asked) of the problems that had no say in what the others chose; None where these are not known."""
        mine = [at for problem, at in self._solved.get(checkpoint, {}).items() if problem in self._held_out]
        return (round(sum(mine)), len(mine)) if mine else None

    def difference(
        self, pairs: Iterable[tuple[str, str]], alpha: float = 0.05, *, held_out: bool = False
    ) -> Difference | None:
        """Mean of first − second over pairs (one a seed) and their common problems; None where one was not probed.

        held_out: only over problems that had no say in what the others chose.

        Each problem's difference is averaged over the seeds, since all seeds answer the same problems; clusters
        of problems are then resampled, often enough that twenty draws lie beyond either end of the 1 − alpha interval.
        """
        columns = [
            {
                problem: mine[problem] - other[problem]
                for problem in mine.keys() & other.keys()
                if not held_out or problem in self._held_out
            }
            for first, second in pairs
            if (mine := self._solved.get(first)) and (other := self._solved.get(second))
        ]
        if not columns:
            return None
        problems = sorted(set.intersection(*(set(column) for column in columns)))
        if not problems:
            return None
        values = np.array([[np.mean([column[problem] for column in columns])] for problem in problems])
        labels = np.array([cluster_of(problem, self._clusters) for problem in problems])
        draws = cluster_bootstrap(values, labels, draws=max(2000, round(40 / alpha)))
        low, high = percentile_interval(draws[:, 0], 1 - alpha)
        return Difference(float(values.mean()), low, high)


def held_out(problems: Sequence[str], clusters: Mapping[str, str] | None) -> Collection[str]:
    """Of all OOD probe problems those of the half that chooses nothing; empty where there is but one cluster.

    The half is the study's own only with the clusters of its task; without them it will do for what the report itself
    chooses.
    """
    if clusters is None or not clusters.keys() >= set(problems):
        clusters = {problem: cluster_of(problem, None) for problem in problems}
    _, report = split_halves(problems, clusters)
    return {problem for problem, is_held_out in zip(problems, report, strict=True) if is_held_out}


def cluster_of(problem: str, clusters: Mapping[str, str] | None) -> str:
    """As the study's task has it; else permutations of one multiset of words belong together."""
    if clusters is not None and problem in clusters:
        return clusters[problem]
    return " ".join(sorted(re.findall(r"\w+", str(problem))))
