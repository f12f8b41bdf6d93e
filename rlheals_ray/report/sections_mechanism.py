"""The page's sections on mechanism: weights, edits, hidden states, and what goes with accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlheals_ray.report import (
    figures_angles,
    figures_edits,
    figures_hidden,
    figures_predictors,
    figures_rotation,
    figures_shift,
    figures_spectra,
    figures_updates,
    figures_weights,
)
from rlheals_ray.report.comparisons import Comparisons, best_start
from rlheals_ray.report.edits import AXES, edit_groups
from rlheals_ray.report.figures import Figure
from rlheals_ray.report.layout import Section, Table
from rlheals_ray.report.results import Accuracies, Tables

MOST_EDITS = 4
"""Edits drawn each by itself, beside its controls; a grid of edits is drawn along what varies instead."""


def spectra_section(tables: Tables, accuracies: Accuracies) -> Section:
    section = Section("spectra", "Drift against rotation")
    comparisons = Comparisons(tables["spectra"])
    pairs = figures_weights.drift_and_rotation(comparisons)
    if pairs is None:
        section.missing.append("the spectra table (spectra.parquet) is empty.")
        return section
    stories = comparisons.shown(best_start(accuracies, comparisons))
    path = figures_rotation.rotation_path(comparisons)
    drawn = [
        path,
        pairs if path is None else None,
        figures_updates.updates(tables["updates"]),
        figures_angles.angle_curves(comparisons, stories),
        figures_angles.layer_maps(comparisons, stories),
        figures_spectra.overlays(tables["singular_values"], stories),
        replace(pairs, folded=True) if path is not None else None,
    ]
    section.figures += [figure for figure in drawn if figure is not None]
    heads = (
        "role",
        "k",
        "matrices",
        "drift of S, %",
        "angle",
        "null angle",
        "noise’s angle",
        "stretch",
        "turn",
    )
    section.tables.append(Table("By role, over all pairs", heads, figures_weights.by_role(comparisons)))
    if lines := figures_updates.by_role(tables["updates"]):
        columns = ("updates", "role", "k", "matrices", "cosine", "angle", "null angle")
        section.tables.append(Table("Two updates one after the other, by role", columns, lines))
    section.lines.append(
        "Stretch and turn: shares of ‖ΔW‖² within the k leading subspaces, on and off the diagonal of "
        "UᵀΔWV. Nearly all of a random change is off the diagonal too, so a large turn alone is no "
        "evidence of rotation."
    )
    return section


def edits_section(
    tables: Tables, accuracies: Accuracies, clusters: Mapping[str, str] | None = None
) -> Section:
    """`clusters`: of the OOD probe problems, as `edit_groups` takes them."""
    section = Section("edits", "The edit and its controls")
    groups = edit_groups(tables, accuracies, clusters)
    if not groups:
        section.missing.append("the edits table (edits.parquet) holds no scored edit.")
        return section
    along: list[Figure] = []
    for axis in AXES:
        if figure := figures_edits.along(groups, axis, explain=not along):
            along.append(figure)
    section.figures += along
    for index, group in enumerate(groups[:MOST_EDITS]):
        section.figures.append(replace(figures_edits.edit(group, index), folded=bool(along)))
    bare = [group.label for group in groups if "weight_swap" not in group.bars["ood"]]
    section.missing += [f"the plain weight swap beside “{label}”." for label in bare[:MOST_EDITS]]
    if len(groups) > MOST_EDITS:
        section.lines.append(
            f"{MOST_EDITS} of {len(groups)} edits are drawn each by itself; the table holds all."
        )
    if len(groups) > 1:
        section.tables.append(figures_edits.edit_table(groups))
    return section


def hidden_section(tables: Tables, accuracies: Accuracies) -> Section:
    section = Section("hidden", "Outputs and hidden states")
    section.add(
        figures_shift.output_shift(tables["shift"], accuracies),
        "the shift table (shift.parquet) is empty: output distributions were not measured.",
    )
    section.add(
        figures_hidden.similarity_maps(tables["similarity"]),
        "the similarity table (similarity.parquet) is empty: hidden states were not compared.",
    )
    section.add(
        figures_hidden.paths(tables["hidden"]),
        "the hidden table (hidden.parquet) is empty: checkpoints’ paths are not known.",
    )
    return section


def predictors_section(tables: Tables) -> Section:
    section = Section("predictors", "What goes with accuracy?")
    section.add(
        figures_predictors.correlations(tables["predictors"].to_pylist()),
        "the predictors table (predictors.parquet) is empty.",
    )
    if section.figures and (figure := figures_predictors.scatters(tables)):
        section.figures.append(figure)
    return section
