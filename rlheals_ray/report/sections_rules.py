"""The page of a study with several OOD rules: a map for each of them, side by side.

The rest of the page is of the first rule, which is the one that peaks, losses and the export are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlheals_ray.evaluation.rules import ood_rules_of, under
from rlheals_ray.report.edges import edge_table
from rlheals_ray.report.figures_healing import Panel, maps_beside
from rlheals_ray.report.figures_strands import NO_EDGE, along_sft, edge_ranges, healing_by_start
from rlheals_ray.report.layout import Section
from rlheals_ray.report.recommendation import recommendation_words
from rlheals_ray.report.source import Source
from rlheals_ray.report.strands import Strand, strands
from rlheals_ray.report.unfinished import gaps
from rlheals_ray.report.words import Finding, listed
from rlheals_ray.tasks import ood_rules


def rules_of_study(source: Source) -> list[str]:
    """The OOD rules that the study probes, the first the one that the page is about."""
    found = ood_rules_of(source.tables.values())
    told = [] if source.task is None else [rule for rule in ood_rules(source.task) if rule in found]
    return [*told, *(rule for rule in found if rule not in told)]


def of_rule(source: Source, rule: str) -> Source:
    """The study as one with this OOD rule alone would stand."""
    return replace(source, tables={name: under(table, rule) for name, table in source.tables.items()})


def rules_section(source: Source, rules: Sequence[str]) -> Section:
    """Curves, maps, edges and recommendations of all OOD rules beside each other."""
    every: list[Strand] = []
    for rule in rules:
        every += strands(of_rule(source, rule).tables, rule, first=len(every))
    section = Section("rules", "Does it depend on the OOD rule?")
    section.lead.append(
        f"This study probes {len(rules)} OOD rules: {listed(rules)}. Everything else on this page, the findings "
        f"included, is of {rules[0]}."
    )
    section.add(along_sft(every, "OOD rule"), "no SFT checkpoint has been probed.")
    parts = [
        Panel(
            one.name,
            one.cells,
            gaps(one.tables["branches"].to_pylist(), {row["rl_step"] for row in one.cells}),
        )
        for one in every
    ]
    section.add(
        maps_beside(parts, "Healing: OOD accuracy after RL − before"),
        "the boundary table (boundary.parquet) holds no cells.",
    )
    section.add(healing_by_start(every, "OOD rule"), "the boundary table (boundary.parquet) holds no cells.")
    section.add(edge_ranges(every, "OOD rule"), NO_EDGE)
    if table := edge_table([{**row, "name": one.name} for one in every for row in one.edges]):
        section.tables.append(table)
    return section


def rules_findings(source: Source, rules: Sequence[str]) -> list[Finding]:
    """What is recommended under each rule that the page is not about."""
    found = []
    for rule in rules[1:]:
        if rows := of_rule(source, rule).tables["recommendation"].to_pylist():
            found.append(Finding("recommendation", f"Under {rule}: {recommendation_words(rows)}", None))
    return found
