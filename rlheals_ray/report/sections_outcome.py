"""The page's sections on what a reader takes away: the recommendation, the controls of healing, the recipes."""

from __future__ import annotations

from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.edges import edge_table
from rlheals_ray.report.figures_controls import controls_figure
from rlheals_ray.report.figures_recommendation import trade_off
from rlheals_ray.report.figures_strands import NO_EDGE, along_sft, edge_ranges, healing_by_start
from rlheals_ray.report.findings_controls import NOT_RUN, control_cells, control_table
from rlheals_ray.report.layout import Section
from rlheals_ray.report.recommendation import chosen_row, recommendation_words, runners_up, serving
from rlheals_ray.report.results import Accuracies, Tables
from rlheals_ray.report.source import Source
from rlheals_ray.report.strands import strands
from rlheals_ray.report.unfinished import left_out_line, unfinished_table, waiting_line
from rlheals_ray.report.words import listed


def recommendation_section(source: Source) -> Section:
    """Where to stop SFT and how much RL then; the first thing after the findings."""
    section = Section("recommendation", "Where to stop")
    rows = source.tables["recommendation"].to_pylist()
    if not rows:
        section.missing.append("the recommendation table (recommendation.parquet) is empty.")
        return section
    section.lead.append(recommendation_words(rows))
    if (chosen := chosen_row(rows)) and any(row["ood"] for row in rows):
        where, section.command_first = serving(source, chosen)
        section.lead.append(where)
    section.lead.append(
        "Accuracies are of the half of the probe problems that did not choose. It holds for this base, task and these "
        "settings; another seed is another run."
    )
    if line := left_out_line(source.tables["branches"].to_pylist()):
        section.lead.append(line)
    section.add(trade_off(rows), "no cell has both accuracies.")
    if table := runners_up(rows):
        section.tables.append(table)
    return section


def controls_section(main: Tables, accuracies: Accuracies) -> Section:
    """RL against continued SFT and SFT on own samples; without them, what “heals” then means."""
    section = Section("controls", "Does RL heal more than as much SFT does?")
    figure = controls_figure(main["controls"], main["scores"], accuracies)
    controls = [row for row in main["branches"].to_pylist() if row["algorithm"] in CONTROLS]
    if figure is None:
        ran = {row["algorithm"] for row in controls}
        section.missing.append("a comparison of RL with a control (controls.parquet).")
        if not ran:
            section.lead.append(NOT_RUN.format(missing=listed(CONTROLS)))
    else:
        section.figures.append(figure)
        rows = [row for rule in ("ood", "id") for row in control_cells(main["controls"], rule)]
        if table := control_table(rows):
            section.tables.append(table)
    if table := unfinished_table(controls, "Controls that did not finish"):
        section.tables.insert(0, table)
    if line := waiting_line(controls):
        section.lead.append(line)
    return section


def recipes_sections(tables: Tables) -> list[Section]:
    """One section where the study has several recipes (or algorithms): which of them moves the boundary; else none."""
    every = strands(tables)
    if len(every) < 2:
        return []
    what = "recipe" if len({one.variant.recipe for one in every}) > 1 else "algorithm"
    section = Section("recipes", f"Which {what} moves the boundary?")
    section.lead.append(
        f"Controls, losses, weights, edits and hidden states on this page are of {every[0].name}, the {what} with "
        "most cells; the map has one figure for each."
    )
    section.add(along_sft(every, what), "no SFT checkpoint has been probed.")
    section.add(healing_by_start(every, what), "the boundary table (boundary.parquet) holds no cells.")
    section.add(edge_ranges(every, what), NO_EDGE)
    named = [{**row, "name": one.name} for one in every for row in one.edges]
    if table := edge_table(named, folded=True):
        section.tables.append(table)
    return [section]
