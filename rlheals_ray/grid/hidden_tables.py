"""From what was collected of checkpoints to the tables hidden, similarity and shift: a task for each rule and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from rlheals_ray.config import Study
from rlheals_ray.evaluation.asked import Asked
from rlheals_ray.evaluation.collected import layer_count, layer_states, numbers
from rlheals_ray.evaluation.statistics import cluster_bootstrap, percentile_interval
from rlheals_ray.grid.units import Probe
from rlheals_ray.lineage import BASE, Trunk, branches_of, trunks
from rlheals_ray.need import Need
from rlheals_ray.tables import table

if TYPE_CHECKING:
    from rlheals_ray.evaluation.hidden_measures import Likeness, Paths

Row = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """The checkpoints that were collected, in the order of the scores table."""

    probes: Sequence[Probe]
    files: Sequence[Path]
    peaks: Mapping[Trunk, int]
    """Trunk to the SFT step of its OOD peak, where that is known."""


def hidden_tables(
    study: Study, places: Places, asked: Sequence[Asked], need: Need | None = None
) -> dict[str, pa.Table]:
    """The tables hidden, similarity and shift. Needs a Ray connection; each layer's task reserves `need`."""
    rules = sorted({one.rule for one in asked})
    rows = {rule: _rows_of(asked, rule) for rule in rules}
    compared = compared_pairs(study, places)
    columns = [_columns(probe) for probe in places.probes]
    held = ray.put((list(places.files), [(a, b) for _, a, b in compared]))
    keys = [(rule, layer) for rule in rules for layer in range(layer_count(places.files[0]))]
    hidden: list[Row] = []
    similarity: list[Row] = []
    options = (need or Need()).options()
    measured = ray.get(
        [
            _measure_layer.options(name=f"hidden {rule} layer={layer}", **options).remote(
                held, layer, rows[rule]
            )
            for rule, layer in keys
        ]
    )
    for (rule, layer), (likenesses, paths) in zip(keys, measured, strict=True):
        n = rows[rule].stop - rows[rule].start
        where = {"rule": rule, "layer": layer, "n": n}
        hidden += [column | where | _coordinates(paths, place) for place, column in enumerate(columns)]
        similarity += [
            {
                "recipe": trunk.recipe,
                "seed": trunk.seed,
                "a": places.probes[a].checkpoint,
                "b": places.probes[b].checkpoint,
            }
            | where
            | likeness._asdict()
            for (trunk, a, b), likeness in zip(compared, likenesses, strict=True)
        ]
    shift = [
        column | {"rule": rule} | shift_columns(file, rows[rule], asked)
        for column, file in zip(columns, places.files, strict=True)
        for rule in rules
    ]
    return {
        "hidden": table("hidden", hidden),
        "similarity": table("similarity", similarity),
        "shift": table("shift", shift),
    }


def compared_pairs(study: Study, places: Places) -> list[tuple[Trunk, int, int]]:
    """(trunk, a, b), places of checkpoints: base and peak against all of the trunk; branches' starts and ends."""
    place = {probe.checkpoint: index for index, probe in enumerate(places.probes)}
    pairs: dict[tuple[Trunk, int, int], None] = {}
    for trunk in trunks(study):
        members = [probe.checkpoint for probe in places.probes if probe.trunk == trunk]
        peak = trunk.checkpoint(places.peaks[trunk]) if trunk in places.peaks else None
        named = [(anchor, other) for anchor in (BASE, peak) for other in members]
        named += [
            (branch.start, branch.checkpoint(study.rl.budgets[-1])) for branch in branches_of(study, trunk)
        ]
        for a, b in named:
            if a in place and b in place and a != b:
                pairs[trunk, place[a], place[b]] = None
    return list(pairs)


def shift_columns(file: Path, rows: slice, asked: Sequence[Asked]) -> Row:
    """What tables.SHIFT says of one checkpoint's `file` on the problems `rows` of `asked`.

    forward_kl: mean over problems of the KL of a whole answer, with a bootstrap interval over clusters of problems;
    forward_kl_token: the same total, per token.
    """
    kl, entropy, margin = (numbers(file, name)[rows] for name in ("kl", "entropy", "margin"))
    problems = asked[rows]
    tokens = sum(len(answer) for problem in problems for answer in problem.answers)
    draws = cluster_bootstrap(kl.mean(axis=1)[:, None], [problem.group for problem in problems])
    low, high = percentile_interval(draws[:, 0])
    return {
        "n": len(problems),
        "entropy": float(entropy.mean()),
        "margin": float(margin.mean()),
        "forward_kl": float(kl.mean()),
        "forward_kl_low": low,
        "forward_kl_high": high,
        "forward_kl_token": float(kl.sum() / tokens),
        "tokens": tokens,
    }


def _rows_of(asked: Sequence[Asked], rule: str) -> slice:
    """Where the problems of a rule stand: one after the other."""
    places = [place for place, one in enumerate(asked) if one.rule == rule]
    return slice(places[0], places[-1] + 1)


def _columns(probe: Probe) -> Row:
    """Which checkpoint, as in the scores table."""
    return {
        "checkpoint": probe.checkpoint,
        "stage": probe.stage,
        "recipe": probe.recipe,
        "seed": probe.seed,
        "sft_step": probe.sft_step,
        "rl_step": probe.rl_step,
    }


def _coordinates(paths: Paths, place: int) -> Row:
    found = {
        "pca_1": paths.pca[place, 0],
        "pca_2": paths.pca[place, 1],
        "pca_share_1": paths.shares[0],
        "pca_share_2": paths.shares[1],
        "tsne_1": paths.tsne[place, 0],
        "tsne_2": paths.tsne[place, 1],
    }
    return {name: None if math.isnan(value) else float(value) for name, value in found.items()}


@ray.remote
def _measure_layer(
    held: tuple[list[Path], list[tuple[int, int]]], layer: int, rows: slice
) -> tuple[list[Likeness], Paths]:
    from rlheals_ray.evaluation.hidden_measures import likenesses, paths

    files, pairs = held
    states = layer_states(files, layer, rows)
    return likenesses(states, pairs), paths(states.mean(axis=1, dtype=np.float64))
