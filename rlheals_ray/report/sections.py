"""The page's sections: which figures, tables and notes stand where, and what is not there yet."""

from __future__ import annotations

import shlex

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.report import figures_accuracy, figures_rl, figures_training
from rlheals_ray.report.layout import Section, Table
from rlheals_ray.report.loss_stops import loss_stops, loss_table
from rlheals_ray.report.results import Accuracies
from rlheals_ray.report.sections_mechanism import (
    edits_section,
    hidden_section,
    predictors_section,
    spectra_section,
)
from rlheals_ray.report.sections_outcome import controls_section, recipes_sections, recommendation_section
from rlheals_ray.report.sections_recovery import recovery_sections
from rlheals_ray.report.source import Source
from rlheals_ray.report.variants import of_variant, variants


def sections(source: Source) -> list[Section]:
    """All sections after the findings, in the order of the page; each is there even when it is empty.

    A directory with comparisons of weights and no study has only what can be said of these.
    """
    if source.outside:
        return [spectra_section(source.tables, Accuracies(source.tables["scores"])), _provenance(source)]
    every = variants(source.tables)
    main = of_variant(source.tables, every[0])
    accuracies = Accuracies(main["scores"])
    training = Section("losses", "Do the losses tell where the OOD peak is?")
    training.add(
        figures_training.losses(main["sft"], accuracies), "the SFT table (sft.parquet) holds no losses."
    )
    stops = loss_stops(main["sft"], accuracies, main["episodes"], source.clusters)
    if table := loss_table(stops, main["predictors"].to_pylist()):
        training.tables.append(table)
        training.lines.append(
            "Accuracies in this table are of the half of the OOD problems that did not choose the peak. ρ is "
            "Spearman’s, over the SFT checkpoints of all seeds and recipes: correlation, not cause."
        )
    curves = Section("curves", "Attempts and form along SFT")
    curves.add(figures_accuracy.curves(accuracies), "no SFT checkpoint has been probed.")
    learning = Section("rl", "What RL itself saw")
    learning.add(figures_rl.rl_learning(main["rl"]), "the RL table (rl.parquet) holds no updates.")
    if time := figures_rl.rl_time(main["rl"]):
        learning.figures.append(time)
    return [
        recommendation_section(source),
        *recovery_sections(source, every),
        controls_section(main, accuracies),
        *recipes_sections(source.tables),
        curves,
        training,
        learning,
        spectra_section(main, accuracies),
        edits_section(main, accuracies, source.clusters),
        hidden_section(main, accuracies),
        predictors_section(source.tables),
        _provenance(source),
    ]


def _provenance(source: Source) -> Section:
    section = Section("provenance", "How these numbers were made")
    lines = []
    for name, table in source.tables.items():
        if source.outside and not table.num_rows:
            continue
        made = [_made_by(table, column) for column in ("engine", "wrapped_model", "train_run")]
        lines.append((f"{name}.parquet", str(table.num_rows), *made))
    heads = ("table", "rows", "engine", "wrapped model", "Ray Train run")
    section.tables.append(Table("Rows and what made them", heads, lines, folded=False))
    if source.timings:
        # "total" spans the stages before tables and report: it would count them twice.
        spent = {stage: seconds for stage, seconds in source.timings.items() if stage != "total"}
        times = [
            (stage, f"{seconds:,.1f}") for stage, seconds in (spent | {"all": sum(spent.values())}).items()
        ]
        section.tables.append(Table("Wall-clock time", ("stage", "seconds"), times, folded=False))
    elif not source.outside:
        section.missing.append("stage timings (timings.json).")
    section.missing += [f"{file}: it cannot be read ({why})." for file, why in source.unreadable.items()]
    if not source.outside:
        section.lines.append(
            "Running the study again resumes it; finished stages are reused only where no input changed:"
        )
        section.command = _commands(source)
    return section


def _made_by(table: pa.Table, column: str) -> str:
    """The distinct values of a provenance column; of many, the first two and how many more."""
    if column not in table.column_names:
        return "–"
    values = sorted({str(value) for value in pc.unique(table[column]).to_pylist() if value is not None})
    more = f" and {len(values) - 2} more" if len(values) > 3 else ""
    return (", ".join(values[:2] if more else values) + more) or "–"


def _commands(source: Source) -> str:
    """The commands that make these numbers again, storage included where it is not the default."""
    storage = source.study.get("storage")
    where = f" --storage {shlex.quote(str(storage))}" if storage and storage != "./runs" else ""
    name = shlex.quote(source.name)
    return f"python jobs/grid.py {name}{where}\npython jobs/report.py {name}{where}"
