"""Two studies on the same problems: where their checkpoints differ, tested problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlheals_ray.evaluation.statistics import (
    benjamini_hochberg,
    cluster_bootstrap,
    cluster_sign_flip_p,
    percentile_interval,
)
from rlheals_ray.report.paired import cluster_of
from rlheals_ray.report.source import Source, resolved
from rlheals_ray.report.strands import Strand
from rlheals_ray.report.words import interval, number

SIGNIFICANT = 0.05


class Cell(NamedTuple):
    """One place that both studies probed: B − A, mean over each study's seeds, paired on problems."""

    rule: str
    sft_step: int
    rl_step: int
    a: float
    b: float
    low: float
    high: float
    p: float
    q: float
    apart: bool
    """Whether every seed of the one study lies above every seed of the other."""

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def verdict(self) -> str:
        if self.q >= SIGNIFICANT or self.difference == 0 or not self.apart:
            return "unclear"
        return "B higher" if self.difference > 0 else "A higher"


def why_not_paired(a: Source, b: Source) -> str:
    """Why tests between the studies cannot pair problems; empty where they can."""
    if not a.study or not b.study:
        return "the settings of at least one study (study.yaml) are not known"
    if a.study.get("task") != b.study.get("task"):
        return "their tasks differ"
    settings = [resolved(source) or source.study for source in (a, b)]
    asked = [(part if isinstance(part := each.get("evaluation"), dict) else {}) for each in settings]
    for name in ("problems", "seed"):
        if asked[0].get(name) != asked[1].get(name):
            return f"evaluation.{name} differs"
    for rule in ("ood", "id"):
        mine, theirs = (problems_of(source, rule) for source in (a, b))
        if not mine or not theirs:
            return f"at least one has no {rule.upper()} episodes yet"
        if mine != theirs:
            return f"their {rule.upper()} problems differ"
    return ""


def problems_of(source: Source, rule: str) -> frozenset[str]:
    """Ids of the problems that a study's checkpoints answered under a rule."""
    episodes = source.tables["episodes"]
    pairs = episodes.select(["rule", "problem_id"]).group_by(["rule", "problem_id"]).aggregate([])
    return frozenset(row["problem_id"] for row in pairs.to_pylist() if row["rule"] == rule)


def paired_cells(a: Strand, b: Strand, clusters: Mapping[str, str] | None) -> list[Cell]:
    """Every place that both strands probed, tested as the boundary's pooled cells are.

    A problem counts with the share of a study's seeds that solved it at the first attempt; whole clusters of
    problems are resampled (interval) and their signs flipped (p); q: Benjamini-Hochberg within a rule. It says
    what holds for these seeds, not for others; so a verdict needs all seeds of the one above all of the other, too.
    """
    found: list[Cell] = []
    for rule in ("ood", "id"):
        mine, theirs = (_solved(strand, rule) for strand in (a, b))
        rows: list[dict[str, Any]] = []
        for place in sorted(mine.keys() & theirs.keys()):
            first, second = mine[place], theirs[place]
            problems = sorted(first.keys() & second.keys())
            if not problems:
                continue
            change = np.array([second[problem] - first[problem] for problem in problems])
            labels = np.array([cluster_of(problem, clusters) for problem in problems])
            low, high = percentile_interval(cluster_bootstrap(change[:, None], labels)[:, 0])
            rows.append(
                {
                    "rule": rule,
                    "sft_step": place[0],
                    "rl_step": place[1],
                    "a": float(np.mean([first[problem] for problem in problems])),
                    "b": float(np.mean([second[problem] for problem in problems])),
                    "low": low,
                    "high": high,
                    "p": cluster_sign_flip_p(change, labels),
                    "apart": _apart(_by_seed(a, rule, place), _by_seed(b, rule, place)),
                }
            )
        adjusted: npt.NDArray[np.float64] = benjamini_hochberg([row["p"] for row in rows])
        found += [Cell(**row, q=float(q)) for row, q in zip(rows, adjusted, strict=True)]
    return found


def _by_seed(strand: Strand, rule: str, place: tuple[int, int]) -> list[float]:
    found = (strand.accuracies.row(rule, seed, *place) for seed in strand.accuracies.seeds)
    return [row["acc_1"] for row in found if row]


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(a and b) and (max(a) < min(b) or max(b) < min(a))


def _solved(strand: Strand, rule: str) -> dict[tuple[int, int], dict[str, float]]:
    """(SFT step, RL step) -> problem -> share of the seeds that solved it at the first attempt."""
    accuracies = strand.accuracies
    places = [
        (step, rl_step)
        for step in accuracies.sft_steps(rule)
        for rl_step in (0, *accuracies.rl_steps(rule, step))
    ]
    wanted: dict[str, list[tuple[int, int]]] = {}
    for place in places:
        names = {
            row["checkpoint"] for seed in accuracies.seeds if (row := accuracies.row(rule, seed, *place))
        }
        for name in names:
            wanted.setdefault(name, []).append(place)
    outcomes: dict[tuple[int, int], dict[str, list[float]]] = {}
    episodes = strand.tables["episodes"]
    columns = (episodes[name].to_pylist() for name in ("checkpoint", "rule", "problem_id", "solved_at"))
    for name, of, problem, at in zip(*columns, strict=True):
        for place in wanted.get(name, ()) if of == rule else ():
            outcomes.setdefault(place, {}).setdefault(problem, []).append(float(at == 1))
    return {
        place: {problem: float(np.mean(values)) for problem, values in problems.items()}
        for place, problems in outcomes.items()
    }


def paired_lines(cells: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Rows of the page's table."""
    return [
        (
            cell.rule.upper(),
            str(cell.sft_step),
            str(cell.rl_step),
            number(cell.a),
            number(cell.b),
            number(cell.difference, signed=True),
            interval(cell.low, cell.high).strip(),
            f"{cell.q:.2g}",
            cell.verdict,
        )
        for cell in cells
    ]
