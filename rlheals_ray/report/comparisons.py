"""Comparisons of checkpoints arranged for figures: means over matrices, pairs by their places, what to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.evaluation.quantities import middle_k
from rlheals_ray.report.results import Accuracies, Place, place_of

MEASURES = (
    "drift_mean", "angle_u_mean", "angle_v_mean", "null_angle", "null_angle_v", "noise_angle_u",
    "noise_angle_v", "delta_norm", "stretch", "turn",
)  # fmt: skip
MOST_SHOWN = 4
"""Pairs that figures of several panels or lines show."""


def checkpoint_label(name: str) -> str:
    """A checkpoint in words: base, SFT 60, SFT 60 + RL 30; outside a study the end of its path."""
    place = place_of(name)
    if place is None:
        return "/".join(PurePath(name.rstrip("/")).parts[-2:]) or name
    start = f"SFT {place.sft_step}" if place.sft_step or place.seed is not None else "base"
    return f"{start} + RL {place.rl_step}" if place.rl_step else start


Pair = tuple[int | None, str, str]
"""Seed and the names of both checkpoints."""
BASE = Place(None, 0, 0)


class Story(NamedTuple):
    """One change of weights under a label that does not name the seed, and the seeds' pairs that are it."""

    label: str
    pairs: frozenset[Pair]


class Comparison(NamedTuple):
    """One pair at one k: means over matrices of one seed; angles radians, drift and shares as in the table."""

    seed: int | None
    a: str
    b: str
    k: int | None
    layer: int | None
    role: str | None
    matrices: int
    measures: Mapping[str, float | None]

    @property
    def pair(self) -> Pair:
        return self.seed, self.a, self.b

    @property
    def places(self) -> tuple[Place | None, Place | None]:
        return place_of(self.a), place_of(self.b)

    def angle(self, side: str = "") -> float | None:
        """The mean principal angle of side "u" or "v", or of both."""
        return _both(self.measures, "angle_u_mean", "angle_v_mean", side)

    def null(self, side: str = "") -> float | None:
        """The mean angle of random subspaces of the same sizes."""
        return _both(self.measures, "null_angle", "null_angle_v", side)

    def noise(self, side: str = "") -> float | None:
        """The mean angle that Gaussian noise of the same ‖ΔW‖ makes."""
        return _both(self.measures, "noise_angle_u", "noise_angle_v", side)


def _both(measures: Mapping[str, float | None], u: str, v: str, side: str) -> float | None:
    names = {"u": (u,), "v": (v,), "": (u, v)}[side]
    known = [value for name in names if (value := measures[name]) is not None]
    return fmean(known) if known else None


class Comparisons:
    """The table `spectra`, averaged over matrices before anything is drawn: it may have 10⁵ rows."""

    def __init__(self, spectra: pa.Table) -> None:
        keep = pc.and_(pc.is_valid(spectra["a"]), pc.is_valid(spectra["b"]))
        self.table = spectra.filter(pc.fill_null(keep, False))
        self.ks: list[int] = sorted(k for k in pc.unique(self.table["k"]).to_pylist() if k is not None)
        self.k = middle_k({"k": k} for k in self.ks)
        """The k at which pairs are compared where only one is shown."""
        self.roles: list[str] = [r for r in pc.unique(self.table["role"]).to_pylist() if r]

    def means(self, by: Sequence[str] = (), k: int | None = None) -> list[Comparison]:
        """Means over matrices per seed, pair and k, and per `by` ("layer", "role") where asked."""
        table = self.table if k is None else self.table.filter(pc.equal(self.table["k"], k))
        grouped = table.group_by(["seed", "a", "b", "k", *by], use_threads=False).aggregate(
            [(name, "mean") for name in MEASURES] + [("matrix", "count")]
        )
        return [
            Comparison(
                row["seed"],
                row["a"],
                row["b"],
                row["k"],
                row.get("layer"),
                row.get("role"),
                row["matrix_count"],
                {name: row[f"{name}_mean"] for name in MEASURES},
            )
            for row in grouped.to_pylist()
        ]

    def peaks(self) -> dict[int | None, str]:
        """Seed -> its OOD peak: the one checkpoint of a trunk that others of the trunk are compared with."""
        pairs = self.table.group_by(["seed", "a", "b"], use_threads=False).aggregate([]).to_pylist()
        return {row["seed"]: row["a"] for row in pairs if _on_trunk(row["a"]) and _on_trunk(row["b"])}

    def shown(self, start: int | None = None) -> list[Story]:
        """The few changes that tell the story: SFT to the peak, SFT past it, RL, and what RL leaves of it.

        `start`: the SFT step whose RL to show; the last one without. Outside a study: the first pairs.
        """
        every = self.means(k=self.k)
        peaks = self.peaks()
        latest = max((_step(one.b) for one in every if _on_trunk(one.b)), default=None)
        branches = {_step(one.b) for one in every if _on_branch(one.b) and _on_trunk(one.a)}
        step = start if start in branches else max(branches, default=None)
        largest = max((_budget(one.b) for one in every if _on_branch(one.b)), default=0)
        chosen: dict[str, set[Pair]] = {}
        for one in every:
            ends_here = _on_branch(one.b) and (_step(one.b), _budget(one.b)) == (step, largest)
            from_peak = one.a == peaks.get(one.seed)
            for label, holds in (
                ("base → OOD peak", place_of(one.a) == BASE and one.b == peaks.get(one.seed)),
                (f"OOD peak → SFT {latest}", from_peak and _on_trunk(one.b) and _step(one.b) == latest),
                (f"SFT {step} → + RL {largest}", ends_here and _on_trunk(one.a) and _step(one.a) == step),
                (f"OOD peak → SFT {step} + RL {largest}", ends_here and from_peak),
            ):
                if holds:
                    chosen.setdefault(label, set()).add(one.pair)
        if not chosen:
            for one in every:
                label = f"{checkpoint_label(one.a)} → {checkpoint_label(one.b)}"
                if label in chosen or len(chosen) < MOST_SHOWN:
                    chosen.setdefault(label, set()).add(one.pair)
        found = [Story(label, frozenset(pairs)) for label, pairs in chosen.items()]
        return sorted(found, key=lambda story: ("+ RL" in story.label, story.label.startswith("OOD")))


def _step(name: str) -> int:
    place = place_of(name)
    return place.sft_step if place else 0


def _budget(name: str) -> int:
    place = place_of(name)
    return place.rl_step if place else 0


def _on_trunk(name: str) -> bool:
    place = place_of(name)
    return place is not None and place.seed is not None and place.rl_step == 0


def _on_branch(name: str) -> bool:
    return _budget(name) > 0


def best_start(accuracies: Accuracies, comparisons: Comparisons) -> int | None:
    """The SFT step past a seed's OOD peak from which RL (largest budget) gains most OOD accuracy, mean over seeds."""
    earliest = min((_step(peak) for peak in comparisons.peaks().values()), default=-1)
    gains: dict[int, float] = {}
    for step in accuracies.starts("ood"):
        before = accuracies.mean("ood", step)
        after = accuracies.mean("ood", step, max(accuracies.rl_steps("ood", step)))
        if before and after and step > earliest:
            gains[step] = after.value - before.value
    return max(gains, key=lambda step: gains[step]) if gains else None


def over_seeds(values: Iterable[tuple[Any, float | None]]) -> dict[Any, list[float]]:
    """Key -> the seeds' values, those that are known, in the order in which keys come."""
    found: dict[Any, list[float]] = {}
    for key, value in values:
        if value is not None:
            found.setdefault(key, []).append(value)
    return found
