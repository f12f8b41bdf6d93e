"""The page's sections: which figures, tables and notes stand where, and what is not there yet."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.report import figures_accuracy, figures_rl, figures_training
from rlheals_ray.report.figures import Figure
from rlheals_ray.report.figures_headline import headline as draw_headline
from rlheals_ray.report.findings_recovery import healing_cells
from rlheals_ray.report.layout import Section, Table
from rlheals_ray.report.results import Accuracies, Row, Tables, Variant, of_variant, rows, variants
from rlheals_ray.report.sections_mechanism import (
    edits_section,
    hidden_section,
    predictors_section,
    spectra_section,
)
from rlheals_ray.report.source import Source
from rlheals_ray.report.words import algorithm_name, interval, number


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
    curves = Section("curves", "Attempts and form along SFT")
    curves.add(figures_accuracy.curves(accuracies), "no SFT checkpoint has been probed.")
    learning = Section("rl", "What RL itself saw")
    learning.add(figures_rl.rl_learning(main["rl"]), "the RL table (rl.parquet) holds no updates.")
    if time := figures_rl.rl_time(main["rl"]):
        learning.figures.append(time)
    return [
        *_recovery(source.tables, every),
        curves,
        training,
        learning,
        spectra_section(main, accuracies),
        edits_section(main, accuracies),
        hidden_section(main, accuracies),
        predictors_section(source.tables),
        _provenance(source),
    ]


def _recovery(tables: Tables, every: Sequence[Variant]) -> list[Section]:
    """Headline and heat map; further recipes and algorithms get their own below the main one's."""
    headline = Section("headline", "What SFT loses and what RL wins back")
    healing = Section("healing", "Where RL heals")
    for index, variant in enumerate(every):
        mine = of_variant(tables, variant)
        accuracies, cells = Accuracies(mine["scores"]), healing_cells(mine["boundary"])
        name = ", ".join(algorithm_name(part) for part in variant if part) or "the only variant"
        problems = {
            rule: max((row["n"] or 0 for row in rows(mine["scores"], rule=rule)), default=0)
            for rule in ("ood", "id")
        }
        figure = draw_headline(accuracies, cells, {r: n for r, n in problems.items() if n})
        _named(headline, figure, index, len(every), name, "no SFT checkpoint has been probed.")
        if figure and not accuracies.starts("ood"):
            headline.missing.append("no checkpoint after RL has been probed; the figure shows SFT alone.")
        if figure:
            headline.tables.append(_accuracy_table(accuracies, name if len(every) > 1 else ""))
        title = "Healing: OOD accuracy after RL − before"
        cell_map = figures_accuracy.healing_map(cells, title, "healing")
        _named(
            healing,
            cell_map,
            index,
            len(every),
            name,
            "the boundary table (boundary.parquet) holds no cells.",
        )
        if cells:
            healing.tables.append(_cell_table(cells, name if len(every) > 1 else ""))
        if seeds := figures_accuracy.seed_maps(mine["boundary"].to_pylist()):
            _named(healing, seeds, index, len(every), name, "")
    return [headline, healing]


def _named(section: Section, figure: Figure | None, index: int, count: int, name: str, absent: str) -> None:
    """Add a variant's figure under a name of its own, so that several can stand on one page."""
    if figure and count > 1:
        plain = f"{figure.name}-{index}" if index else figure.name
        figure = Figure(plain, f"{figure.title} ({name})", figure.plot, figure.caption, figure.keys)
    section.add(figure, absent if count == 1 else f"{name}: {absent}")


def _accuracy_table(accuracies: Accuracies, name: str) -> Table:
    lines = []
    for rule in ("ood", "id"):
        for step in accuracies.sft_steps(rule):
            for rl_step in (0, *accuracies.rl_steps(rule, step)):
                if mean := accuracies.mean(rule, step, rl_step):
                    by_seed = ", ".join(f"{number(value)} (seed {seed})" for seed, value in mean.seeds)
                    over = interval(mean.seed_low, mean.seed_high).strip() or "one seed"
                    cells = (number(mean.value), interval(mean.low, mean.high).strip(), over, by_seed)
                    lines.append((rule.upper(), str(step), str(rl_step), *cells))
    heads = ("rule", "SFT step", "RL step", "accuracy@1", "over problems (Wilson)", "over seeds (t)", "seeds")
    return Table(f"The numbers{f' ({name})' if name else ''}", heads, lines)


def _cell_table(cells: Sequence[Row], name: str) -> Table:
    lines = [
        (
            str(row["sft_step"]),
            str(row["rl_step"]),
            f"{number(row['ood_sft'])} → {number(row['ood_rl'])}",
            number(row["healing"], signed=True),
            interval(row["healing_low"], row["healing_high"]).strip(),
            interval(row["healing_seed_low"], row["healing_seed_high"]).strip() or "one seed",
            "–" if row["q"] is None else f"{row['q']:.2g}",
            number(row["forgetting"]),
            number(row["recovery"]) + interval(row["recovery_low"], row["recovery_high"]),
            row["verdict"] or "",
        )
        for row in cells
    ]
    heads = (
        "SFT step",
        "RL step",
        "OOD",
        "healing",
        "over problems",
        "over seeds (t)",
        "q",
        "forgetting",
        "recovery",
    )
    return Table(f"Every cell with both intervals{f' ({name})' if name else ''}", (*heads, "verdict"), lines)


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
