"""What it costs to stop SFT where a loss is lowest: OOD accuracy there against the OOD peak's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.report.layout import Table
from rlheals_ray.report.paired import Difference, Paired, held_out
from rlheals_ray.report.results import Accuracies, Halves, Row, seed_interval, split_curves
from rlheals_ray.report.words import interval, number

LOSSES = {"train_loss": "training loss", "id_loss": "ID loss", "ood_loss": "OOD loss"}


class Stop(NamedTuple):
    """One seed: the saved SFT step of the lowest loss and the OOD peak, with OOD accuracy at both."""

    seed: int
    step: int
    peak: int
    at_step: float
    at_peak: float


class LossStop(NamedTuple):
    """Stopping each seed where its loss is lowest; accuracies are of the half of the problems that chose no peak."""

    column: str
    stops: tuple[Stop, ...]
    problems: Difference | None
    """OOD(peak) − OOD(stop), mean over seeds, with its interval over problems."""

    @property
    def cost(self) -> float:
        return fmean(stop.at_peak - stop.at_step for stop in self.stops)

    @property
    def over_seeds(self) -> tuple[float | None, float | None]:
        return seed_interval(stop.at_peak - stop.at_step for stop in self.stops)


def loss_stops(
    sft: pa.Table, accuracies: Accuracies, episodes: pa.Table, clusters: Mapping[str, str] | None = None
) -> list[LossStop]:
    """For each loss that was logged at two probed SFT steps or more; needs episodes, for the two halves.

    A seed's peak is chosen on one half of the OOD problems, and both accuracies are read on the other: the cost
    can come out negative where the choice was luck.
    """
    curves = split_curves(episodes, clusters)
    report = _report_half(episodes, clusters)
    found = []
    for column in LOSSES:
        losses: dict[int, dict[int, float]] = {}
        for row in sft.select(["seed", "step", column]).to_pylist():
            if row[column] is not None and row["step"] is not None and row["seed"] is not None:
                losses.setdefault(row["seed"], {})[row["step"]] = row[column]
        stops = [
            stop
            for seed in accuracies.seeds
            if (stop := _stop(seed, losses.get(seed, {}), curves, accuracies))
        ]
        if stops:
            pairs = [
                (_name(accuracies, stop.seed, stop.peak), _name(accuracies, stop.seed, stop.step))
                for stop in stops
            ]
            paired = Paired(report, [name for pair in pairs for name in pair], clusters)
            found.append(LossStop(column, tuple(stops), paired.difference(pairs)))
    return found


def _stop(
    seed: int,
    losses: Mapping[int, float],
    curves: Mapping[tuple[int | None, int], Halves],
    accuracies: Accuracies,
) -> Stop | None:
    """None below two steps that were both probed and given a loss; of equal losses, the earliest step."""
    both = {
        step: found
        for step in accuracies.sft_steps("ood")
        if accuracies.row("ood", seed, step) and (found := curves.get((seed, step), curves.get((None, step))))
    }
    known = [step for step in both if step in losses]
    if len(known) < 2:
        return None
    lowest = min(known, key=lambda step: (losses[step], step))
    peak = max(both, key=lambda step: (both[step].select, -step))
    return Stop(seed, lowest, peak, both[lowest].report, both[peak].report)


def _report_half(episodes: pa.Table, clusters: Mapping[str, str] | None) -> pa.Table:
    """OOD episodes of the half that chooses nothing, the half that `split_curves` reports."""
    ood = episodes.filter(pc.fill_null(pc.equal(episodes["rule"], "ood"), False))
    problems = ood["problem_id"].unique().to_pylist()
    kept = pa.array(sorted(held_out(problems, clusters)), pa.string())
    return ood.filter(pc.is_in(ood["problem_id"], value_set=kept))


def _name(accuracies: Accuracies, seed: int, step: int) -> str:
    row = accuracies.row("ood", seed, step)
    return str(row["checkpoint"]) if row else ""


def cost_words(stop: LossStop) -> str:
    """`Stopping there costs .42 [.38, .46] of OOD accuracy (over seeds [.30, .54])`."""
    over = stop.problems
    bounds = interval(over.low, over.high) if over else ""
    seeds = interval(*stop.over_seeds)
    return f"Stopping there costs {number(stop.cost)}{bounds} of OOD accuracy{f' (over seeds{seeds})' if seeds else ''}"


def loss_table(stops: Sequence[LossStop], predictors: Sequence[Row]) -> Table | None:
    """Each loss: its rank correlation with OOD accuracy, where it is lowest, what stopping there costs."""
    if not stops:
        return None
    rho = {row["quantity"]: row for row in predictors if row["rule"] == "ood" and row["rho"] is not None}
    lines = []
    for stop in stops:
        row = rho.get(stop.column)
        over = stop.problems
        lines.append(
            (
                LOSSES[stop.column],
                f"{number(row['rho'], signed=True)}{interval(row['rho_low'], row['rho_high'])}"
                if row
                else "–",
                str(row["checkpoints"]) if row else "–",
                ", ".join(str(one.step) for one in stop.stops),
                ", ".join(str(one.peak) for one in stop.stops),
                number(fmean(one.at_step for one in stop.stops)),
                number(fmean(one.at_peak for one in stop.stops)),
                number(stop.cost) + (interval(over.low, over.high) if over else ""),
                interval(*stop.over_seeds).strip() or "one seed",
            )
        )
    heads = (
        "loss",
        "ρ with OOD accuracy",
        "checkpoints",
        "lowest at step (by seed)",
        "OOD peak at step (by seed)",
        "OOD where it is lowest",
        "OOD at the peak",
        "cost of stopping there",
        "over seeds (t)",
    )
    return Table("Can a loss tell where to stop?", heads, lines, folded=False)
