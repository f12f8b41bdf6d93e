"""A study's tables, from the parts of the units that are done: a stage that only reads, and may run at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rlheals_ray import tables
from rlheals_ray.config import Study
from rlheals_ray.evaluation.boundary import boundary_rows
from rlheals_ray.evaluation.controls import control_rows
from rlheals_ray.evaluation.edges import edge_rows
from rlheals_ray.evaluation.predictors import predictor_rows
from rlheals_ray.evaluation.recommendation import recommendation_rows
from rlheals_ray.evaluation.rules import OOD, back, under
from rlheals_ray.grid.branch_states import branch_rows
from rlheals_ray.grid.edits import planned_edits
from rlheals_ray.grid.hidden import hidden_unit
from rlheals_ray.grid.peaks import clusters
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.spectra import spectra_units
from rlheals_ray.lineage import trunks
from rlheals_ray.tasks import ood_rules


def tables_stage(session: Session) -> None:
    """Compact every table from the parts of the units that are done, and work out what rests on all of them."""
    study, files, units = session.study, session.files, session.units
    edits = planned_edits(session)
    files.compact("sft", [units.losses(trunk) for trunk in trunks(study)])
    files.compact("rl", [unit for _, unit in [*units.branches(), *units.controls()]])
    compared = list(spectra_units(session).values())
    for name in ("spectra", "updates", "singular_values"):
        files.compact(name, compared)
    measured = [unit] if (unit := hidden_unit(session)) else []
    for name in ("hidden", "similarity", "shift"):
        files.compact(name, measured)
    files.compact("edits", [plan.unit for plan in edits if files.is_done(plan.probe.unit)])
    probes = [*units.probes(), *units.control_probes(), *(plan.probe for plan in edits)]
    episodes = files.compact("episodes", [probe.unit for probe in probes])
    scores = files.compact("scores", [probe.unit for probe in probes])
    rules = ood_rules(session.task)
    outcomes = outcome_rows(study, rules, episodes, scores, clusters(session))
    for name, rows in ({"branches": branch_rows(session)} | outcomes).items():
        files.write_table(name, tables.table(name, rows))
    every = {name: files.read_table(name) for name in tables.SCHEMAS if name != "predictors"}
    files.write_table("predictors", tables.table("predictors", _predictors(rules, every)))


def outcome_rows(
    study: Study, rules: Sequence[str], episodes: pa.Table, scores: pa.Table, groups: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the tables that rest on the whole map: table -> rows. `groups`: problem id -> cluster label.

    Every OOD rule of `rules` has a map of its own, edges and a recommendation; rows of rule `id` are there once.
    """
    cells = with_starts(scores, study)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in OUTCOMES}
    for rule in rules:
        own = _outcome_rows(study, under(episodes, rule), under(cells, rule), groups)
        for name in ("boundary", "controls"):
            found[name] += [back(row, rule) for row in own[name] if rule == rules[0] or row["rule"] != "id"]
        for name in ("edges", "recommendation"):
            found[name] += [back(row, rule) for row in own[name]]
    return found


OUTCOMES = ("boundary", "controls", "edges", "recommendation")


def _predictors(rules: Sequence[str], every: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Rows of tables/predictors: under each OOD rule, with that rule's accuracies; of rule `id` once."""
    found = []
    for rule in rules:
        for row in predictor_rows({name: under(table, rule) for name, table in every.items()}):
            of_rule = row["quantity"] == f"accuracy_{OOD}"
            if row["rule"] != "id" or of_rule or rule == rules[0]:
                found.append(back(row, rule) | ({"quantity": f"accuracy_{rule}"} if of_rule else {}))
    return found


def _outcome_rows(
    study: Study, episodes: pa.Table, cells: pa.Table, groups: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The same for a study whose OOD rule is `ood`.

    Every recipe is judged by itself, and a control in families of its own (boundary_rows is called once for each).
    """
    algorithm, recipes = study.rl.algorithm, study.sft.recipes
    boundary, controls, edges = [], [], []
    for recipe in recipes:
        healing = boundary_rows(episodes, cells, groups, recipe, algorithm)
        edges += edge_rows(healing, episodes, cells, groups, recipe, algorithm)
        boundary += healing
        for control in study.controls.kinds:
            boundary += boundary_rows(episodes, cells, groups, recipe, control, stage="control")
            controls += control_rows(episodes, cells, groups, recipe, algorithm, control)
    return {
        "boundary": boundary,
        "controls": controls,
        "edges": edges,
        "recommendation": recommendation_rows(
            episodes, cells, groups, study.recommendation, recipes, algorithm
        ),
    }


def with_starts(scores: pa.Table, study: Study) -> pa.Table:
    """The scores, and with budget 0 the SFT checkpoints again as the branches' own starts."""
    if 0 not in study.rl.budgets:
        return scores
    starts = [
        row | {"stage": "rl"}
        for row in scores.to_pylist()
        if row["stage"] == "sft" and row["sft_step"] in study.rl.from_steps
    ]
    return pa.concat_tables([scores, tables.table("scores", starts)])
