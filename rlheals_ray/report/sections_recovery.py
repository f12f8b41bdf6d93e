"""The page's sections on recovery: what SFT loses and RL wins back, and the map of where RL heals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.edges import edge_table
from rlheals_ray.report.figures import Figure
from rlheals_ray.report.figures_headline import headline as draw_headline
from rlheals_ray.report.figures_healing import healing_map, seed_maps
from rlheals_ray.report.findings_recovery import healing_cells
from rlheals_ray.report.layout import Section, Table
from rlheals_ray.report.results import Accuracies, Row, rows
from rlheals_ray.report.source import Source
from rlheals_ray.report.strands import of_edges
from rlheals_ray.report.unfinished import gaps, unfinished_table, waiting_line
from rlheals_ray.report.variants import Variant, of_variant
from rlheals_ray.report.words import count, interval, number


def recovery_sections(source: Source, every: Sequence[Variant]) -> list[Section]:
    """Headline and heat map; further recipes and algorithms get their own below the main one's."""
    tables = source.tables
    headline = Section("headline", "What SFT loses and what RL wins back")
    healing = Section("healing", "Where RL heals")
    for index, variant in enumerate(every):
        mine = of_variant(tables, variant)
        accuracies, cells = Accuracies(mine["scores"]), healing_cells(mine["boundary"])
        name = variant.label
        branches = mine["branches"].to_pylist()
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
        missing = gaps(branches, _budgets(source, cells))
        cell_map = healing_map(cells, title, "healing", missing)
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
        if seeds := seed_maps(mine["boundary"].to_pylist(), missing):
            _named(healing, seeds, index, len(every), name, "")
        if table := edge_table(of_edges(tables["edges"], variant), name if len(every) > 1 else ""):
            healing.tables.insert(index, table)
    everything = tables["branches"].to_pylist()
    if table := unfinished_table(row for row in everything if row["algorithm"] not in CONTROLS):
        healing.tables.insert(0, table)
    if line := waiting_line(row for row in everything if row["algorithm"] not in CONTROLS):
        healing.lead.append(line)
    return [headline, healing]


def _budgets(source: Source, cells: Sequence[Row]) -> list[int]:
    """The map's RL budgets above 0: those of the settings and those of the cells, as where a column has no cell yet."""
    settings = source.study.get("rl")
    planned = settings.get("budgets") if isinstance(settings, dict) else None
    known = {b for b in planned if isinstance(b, int) and b > 0} if isinstance(planned, list) else set()
    return sorted(known | {row["rl_step"] for row in cells})


def _named(section: Section, figure: Figure | None, index: int, count: int, name: str, absent: str) -> None:
    """Add a variant's figure under a name of its own, so that several can stand on one page."""
    if figure and count > 1:
        plain = f"{figure.name}-{index}" if index else figure.name
        figure = replace(figure, name=plain, title=f"{figure.title} ({name})")
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
            count(row["seeds"]),
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
        "seeds",
        "q",
        "forgetting",
        "recovery",
    )
    return Table(f"Every cell with both intervals{f' ({name})' if name else ''}", (*heads, "verdict"), lines)
