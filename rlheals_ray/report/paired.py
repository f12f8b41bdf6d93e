"""Differences between checkpoints on the same problems, with an interval that resamples whole clusters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
        mine = pc.and_(pc.equal(episodes["rule"], rule), pc.is_in(episodes["checkpoint"], value_set=wanted))
        chosen = episodes.filter(pc.fill_null(mine, False))
        self._solved: dict[str, dict[str, float]] = {}
        names, problems, solved = (chosen[c].to_pylist() for c in ("checkpoint", "problem_id", "solved_at"))
        for name, problem, at in zip(names, problems, solved, strict=True):
            self._solved.setdefault(name, {})[problem] = float(at == 1)
        self._clusters = clusters

    def difference(self, pairs: Iterable[tuple[str, str]], alpha: float = 0.05) -> Difference | None:
        """Mean of first − second over pairs (one a seed) and their common problems; None where one was not probed.

        Each problem's difference is averaged over the seeds, since all seeds answer the same problems; clusters
        of problems are then resampled, often enough that twenty draws lie beyond either end of the 1 − alpha interval.
        """
        columns = [
            {problem: mine[problem] - other[problem] for problem in mine.keys() & other.keys()}
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


def cluster_of(problem: str, clusters: Mapping[str, str] | None) -> str:
    """As the study's task has it; else permutations of one multiset of words belong together."""
    if clusters is not None and problem in clusters:
        return clusters[problem]
    return " ".join(sorted(re.findall(r"\w+", str(problem))))
