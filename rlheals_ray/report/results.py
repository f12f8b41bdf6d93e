"""A study's tables as the findings and figures need them: accuracies by place, seeds, the OOD peak.

Pure: pyarrow tables in, plain values out. A *place* is (seed, SFT step, RL step); RL step 0 is the
trunk itself and (SFT step 0, RL step 0) the base model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from rlheals_ray.evaluation.statistics import wilson
from rlheals_ray.report.paired import held_out
from rlheals_ray.tables import SCHEMAS

Tables = Mapping[str, pa.Table]
Row = Mapping[str, Any]


class Place(NamedTuple):
    seed: int | None
    sft_step: int
    rl_step: int


class Mean(NamedTuple):
    """A mean over seeds with two intervals: over problems (for these seeds) and over seeds (t)."""

    value: float
    low: float | None
    high: float | None
    seed_low: float | None
    seed_high: float | None
    seeds: tuple[tuple[int, float], ...]


def conform(name: str, table: pa.Table | None) -> pa.Table:
    """`table` with the columns of the binding schema: missing ones null, foreign ones dropped.

    A column whose values cannot be cast to the schema's type becomes null: a report of a half-written
    study is better than none.
    """
    schema = SCHEMAS[name]
    if table is None:
        return schema.empty_table()
    columns = []
    for field in schema:
        try:
            columns.append(table.column(field.name).cast(field.type))
        except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def place_of(checkpoint: str | None) -> Place | None:
    """The place that a checkpoint's path names (`sft/seed=0/step=000120`), or None for any other."""
    if checkpoint is None:
        return None
    numbers = {
        key: int(value) for key, value in re.findall(r"(seed|sft_step|rl_step|step)=(\d+)", checkpoint)
    }
    if "sft_step" in numbers and "rl_step" in numbers:
        return Place(numbers.get("seed"), numbers["sft_step"], numbers["rl_step"])
    if "step" in numbers:
        return Place(numbers.get("seed"), numbers["step"], 0)
    return Place(None, 0, 0) if re.fullmatch(r"(.*/)?base/?", checkpoint) else None


def rows(table: pa.Table, **equal: Any) -> list[dict[str, Any]]:
    """The table's rows whose columns equal the given values."""
    for column, value in equal.items():
        table = table.filter(pc.equal(table[column], value))
    return table.to_pylist()


class Accuracies:
    """Accuracy rows of base, SFT and RL checkpoints, by rule and place.

    The base has no seed of its own: its row stands for step 0 of every seed that has none.
    """

    def __init__(self, scores: pa.Table) -> None:
        self._rows: dict[tuple[str, int, int, int], Row] = {}
        base: list[Row] = []
        for row in scores.to_pylist():
            if row["acc_1"] is None or row["rule"] is None or row["stage"] not in ("base", "sft", "rl"):
                continue
            if row["stage"] == "base":
                base.append(row)
                continue
            named = place_of(row["checkpoint"]) or Place(None, 0, 0)
            seed = row["seed"] if row["seed"] is not None else named.seed
            sft_step = row["sft_step"] if row["sft_step"] is not None else named.sft_step
            rl_step = (row["rl_step"] or named.rl_step) if row["stage"] == "rl" else 0
            self._rows[row["rule"], seed if seed is not None else 0, sft_step, rl_step] = row
        self.seeds: list[int] = sorted({key[1] for key in self._rows}) or sorted(
            {row["seed"] or 0 for row in base}
        )
        for row in base:
            for seed in self.seeds:
                self._rows.setdefault((row["rule"], seed, 0, 0), row)

    def sft_steps(self, rule: str) -> list[int]:
        return sorted({key[2] for key in self._rows if key[0] == rule and key[3] == 0})

    def own_steps(self, rule: str) -> list[int]:
        """SFT steps that some trunk has a checkpoint of, the base not among them."""
        return sorted(
            {k[2] for k, row in self._rows.items() if k[0] == rule and not k[3] and row["stage"] == "sft"}
        )

    def rl_steps(self, rule: str, sft_step: int) -> list[int]:
        """Budgets above 0 that were probed from this SFT step, ascending."""
        return sorted({key[3] for key in self._rows if key[0] == rule and key[2] == sft_step and key[3]})

    def starts(self, rule: str) -> list[int]:
        return sorted({key[2] for key in self._rows if key[0] == rule and key[3]})

    def row(self, rule: str, seed: int, sft_step: int, rl_step: int = 0) -> Row | None:
        return self._rows.get((rule, seed, sft_step, rl_step))

    def mean(self, rule: str, sft_step: int, rl_step: int = 0, column: str = "acc_1") -> Mean | None:
        """Mean over the seeds that have this cell; None where none has.

        The interval over problems is the mean of the seeds' Wilson bounds: every seed answers the same
        problems, so their errors may be fully correlated and must not be averaged away. The interval
        over seeds is Student's t, and None for one seed.
        """
        found = [(seed, row) for seed in self.seeds if (row := self.row(rule, seed, sft_step, rl_step))]
        found = [(seed, row) for seed, row in found if row[column] is not None]
        if not found:
            return None
        values = [row[column] for _, row in found]
        low, high = (_mean_bound([row.get(f"{column}_{end}") for _, row in found]) for end in ("low", "high"))
        seed_low, seed_high = seed_interval(values)
        return Mean(fmean(values), low, high, seed_low, seed_high, tuple((s, r[column]) for s, r in found))


def _mean_bound(bounds: list[float | None]) -> float | None:
    known = [bound for bound in bounds if bound is not None]
    return fmean(known) if len(known) == len(bounds) else None


def seed_interval(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean of independent seeds; (None, None) for fewer than two."""
    sample = list(values)
    if len(sample) < 2:
        return None, None
    half = float(stats.t.ppf(0.975, len(sample) - 1)) * float(stats.sem(sample))
    return fmean(sample) - half, fmean(sample) + half


class Halves(NamedTuple):
    """First-attempt accuracy of one checkpoint on the half of the problems that chooses, and on the other."""

    select: float
    report: float
    n: int
    """Problems of the half that reports."""


def split_curves(
    episodes: pa.Table, clusters: Mapping[str, str] | None = None, rule: str = "ood"
) -> dict[tuple[int | None, int], Halves]:
    """First-attempt accuracy of each trunk checkpoint on two disjoint halves of the probe problems.

    Keys are (seed, SFT step), seed None for a base without one. `clusters` maps problem id to cluster, and
    no cluster is cut in two; without it, ids that hold the same words in another order (permutations of
    one multiset of cards) are a cluster.
    """
    chosen = episodes.filter(pc.equal(episodes["rule"], rule)).select(
        ["checkpoint", "problem_id", "solved_at"]
    )
    if chosen.num_rows == 0:
        return {}
    problems = chosen["problem_id"].unique().to_pylist()
    others = held_out(problems, clusters)
    if not others:
        return {}
    halves = pa.array([int(problem in others) for problem in chosen["problem_id"].to_pylist()])
    solved = pc.fill_null(pc.equal(chosen["solved_at"], 1), False).cast(pa.float64())
    table = pa.table({"checkpoint": chosen["checkpoint"], "half": halves, "solved": solved})
    means: dict[str, dict[int, float]] = {}
    asked: dict[str, int] = {}
    counted = table.group_by(["checkpoint", "half"]).aggregate([("solved", "mean"), ("solved", "count")])
    for row in counted.to_pylist():
        means.setdefault(row["checkpoint"], {})[row["half"]] = row["solved_mean"]
        if row["half"]:
            asked[row["checkpoint"]] = row["solved_count"]
    curves = {}
    for checkpoint, both in means.items():
        place = place_of(checkpoint)
        if place and place.rl_step == 0 and not re.search(r"control|edit", checkpoint) and len(both) == 2:
            curves[place.seed, place.sft_step] = Halves(both[0], both[1], asked[checkpoint])
    return curves


def held_out_mean(
    curves: Mapping[tuple[int | None, int], Halves], seeds: Iterable[int], step: int
) -> Mean | None:
    """`Accuracies.mean` of a trunk's step over the problems that did not choose the peak; None where not known."""
    found = {seed: curves.get((seed, step), curves.get((None, step))) for seed in seeds}
    known = {seed: both for seed, both in found.items() if both is not None}
    if not known:
        return None
    bounds = [wilson(round(both.report * both.n), both.n) for both in known.values()]
    values = tuple((seed, both.report) for seed, both in known.items())
    low, high = (fmean(ends) for ends in zip(*bounds, strict=True))
    return Mean(fmean(value for _, value in values), low, high, *seed_interval(v for _, v in values), values)


class Peak(NamedTuple):
    """The OOD peak of the mean over seeds: its SFT step, its accuracy, each seed's own peak step."""

    step: int
    value: float
    split: bool
    by_seed: tuple[tuple[int, int], ...]


def ood_peak(
    accuracies: Accuracies, episodes: pa.Table, clusters: Mapping[str, str] | None = None
) -> Peak | None:
    """Where OOD accuracy is highest over the SFT steps; None without OOD scores.

    With episodes, the step is chosen on one half of the problems and the value is the other half's;
    without, both come from the same scores, which flatters the value (`split` is False). `clusters`: problem
    id -> cluster, so that the halves are those that chose an edit's donor.
    """
    steps = accuracies.own_steps("ood") or accuracies.sft_steps("ood")
    if not steps:
        return None
    curves = split_curves(episodes, clusters)

    def value(seed: int, step: int, part: int | None) -> float | None:
        row = accuracies.row("ood", seed, step)
        if part is None or row is None:
            return None if row is None else row["acc_1"]
        both = curves.get((seed, step), curves.get((None, step)))
        return None if both is None else both[part]

    def over_seeds(step: int, part: int | None) -> float | None:
        values = [v for seed in accuracies.seeds if (v := value(seed, step, part)) is not None]
        return fmean(values) if values else None

    split = all(over_seeds(step, 0) is not None for step in steps)
    choose, report = (0, 1) if split else (None, None)
    best = max(steps, key=lambda step: (over_seeds(step, choose) or 0.0, -step))
    own = tuple(
        (seed, max(steps, key=lambda step: (value(seed, step, choose) or 0.0, -step)))
        for seed in accuracies.seeds
    )
    return Peak(best, over_seeds(best, report) or 0.0, split, own)
