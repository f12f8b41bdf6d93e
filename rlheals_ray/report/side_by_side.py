"""Two studies on one page: what differs in their settings, and their curves, maps, edges and recommendations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlheals_ray.config import InputError
from rlheals_ray.lineage import CONTROLS
from rlheals_ray.report.edges import edge_table
from rlheals_ray.report.figures_healing import Panel, maps_beside
from rlheals_ray.report.figures_strands import NO_EDGE, along_sft, edge_ranges, healing_by_start
from rlheals_ray.report.findings_controls import control_cells, control_findings, control_table
from rlheals_ray.report.findings_strands import strand_findings
from rlheals_ray.report.layout import Section, Table
from rlheals_ray.report.page import render_page
from rlheals_ray.report.paired_studies import paired_cells, paired_lines, why_not_paired
from rlheals_ray.report.recommendation import recommendation_words, runners_up
from rlheals_ray.report.sections_rules import of_rule, rules_of_study
from rlheals_ray.report.source import Source, read_study, resolved
from rlheals_ray.report.strands import Strand, strands
from rlheals_ray.report.unfinished import gaps, unfinished_findings, unfinished_table
from rlheals_ray.report.words import Finding, listed
from rlheals_ray.storage import write_text

QUESTION = "What differs between these two studies?"
NOTE = (
    "Every sentence is computed from the two studies’ tables. “Shown” and “not shown” speak of each study’s own claim; "
    "“note”: open, or needed to read the others. Accuracies are shares of problems solved at the first attempt; "
    "brackets are 95 % intervals over the probe problems. Two studies that differ in several settings cannot say which "
    "of them made the difference."
)
STATUS = {True: ("yes", "shown"), False: ("no", "not shown"), None: ("open", "note")}
MISSING = "–"
"""Of a field that a study does not have."""
UNTOLD = ("name", "versions", "git_commit", "storage", "work", "tracking", "keep")
"""Fields of study.yaml that say nothing about what was studied; versions are told apart."""


def compare_studies(a: Path, b: Path, out: Path) -> Path:
    """Write the page that lays the studies in directories `a` and `b` side by side; returns `out`.

    Raises InputError for a directory that holds no study, for one study given twice, and for an `out` that is a
    directory or lies in none.
    """
    first, second = _study(a, "A"), _study(b, "B")
    if a.resolve() == b.resolve():
        raise InputError(
            f"--compare (got {str(a)!r} twice): A and B are the same study; give two directories."
        )
    if out.is_dir():
        raise InputError(
            f"--out (got {str(out)!r}): it is a directory; give the name of a file, as {out}/compare.html."
        )
    if not out.parent.is_dir():
        raise InputError(
            f"--out (got {str(out)!r}): there is no directory {str(out.parent)!r}; make it first."
        )
    write_text(out, render_comparison(first, second))
    return out


def _study(directory: Path, side: str) -> Source:
    tables = directory / "tables"
    if not directory.is_dir() or not ((directory / "study.yaml").is_file() or any(tables.glob("*.parquet"))):
        raise InputError(
            f"--compare {side} (got {str(directory)!r}): there is no study: neither study.yaml nor tables/*.parquet; "
            "give a study's directory, for example runs/nano."
        )
    source = read_study(directory)
    if source.outside:
        raise InputError(
            f"--compare {side} (got {str(directory)!r}): it holds comparisons of weights, not a study; give a study's "
            "directory, for example runs/nano."
        )
    return of_rule(source, rules_of_study(source)[0])


def render_comparison(a: Source, b: Source) -> str:
    """The page as HTML; every table of either study may be empty."""
    names = (f"A: {a.name}", f"B: {b.name}")
    mine = strands(a.tables, names[0])
    both = [*mine, *strands(b.tables, names[1], first=len(mine))]
    reason = why_not_paired(a, b)
    parts = [
        _settings(a, b),
        _curves(both),
        _map(both, (a, b)),
        _paired(mine, both[len(mine) :], a, reason),
        _recommendations((a, b), names),
        _controls(both),
    ]
    return render_page(
        title=" · ".join(names),
        question=QUESTION,
        facts=_facts((a, b), names),
        findings=_findings(both, (a, b), names, reason),
        sections=parts,
        findings_title="What the two studies show beside each other",
        findings_note=NOTE,
        status=STATUS,
    )


def _facts(sources: Sequence[Source], names: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for source, name in zip(sources, names, strict=True):
        when = source.written.strftime("%Y-%m-%d %H:%M UTC") if source.written else "no tables yet"
        found.append((name, f"{source.directory} ({when})"))
    return found


def _findings(
    both: Sequence[Strand], sources: Sequence[Source], names: Sequence[str], reason: str
) -> list[Finding]:
    clusters = None if reason else sources[0].clusters
    found = list(strand_findings(both, clusters))
    for source, name in zip(sources, names, strict=True):
        rows = source.tables["recommendation"].to_pylist()
        if rows:
            found.append(Finding("recommendation", f"{name}. {recommendation_words(rows)}", None))
    for one in both:
        after_rl, branches = bool(one.accuracies.starts("ood")), one.tables["branches"].to_pylist()
        for finding in control_findings(one.tables["controls"], one.cells, after_rl, branches):
            found.append(Finding(finding.kind, f"{one.name}. {finding.text}", finding.supported))
    for source, name in zip(sources, names, strict=True):
        for finding in unfinished_findings(source.tables["branches"].to_pylist()):
            found.append(Finding(finding.kind, f"{name}. {finding.text}", finding.supported))
    seeds = "; ".join(f"{one.name}: {len(one.accuracies.seeds)}" for one in both)
    text = f"Seeds: {seeds}. Intervals over problems hold for these seeds only."
    text += (
        " Both answered the same problems."
        if not reason
        else f" Tests between them are not paired: {reason}."
    )
    return [*found, Finding("seeds", text, None)]


def differing(a: Mapping[Any, Any], b: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted field, value of A, value of B) of every field that differs, in the order of A's file."""
    found: list[tuple[str, str, str]] = []
    for key in dict.fromkeys([*a, *b]):
        mine, theirs, name = a.get(key, MISSING), b.get(key, MISSING), f"{prefix}{key}"
        if mine == theirs:
            continue
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += differing(mine, theirs, f"{name}.")
        elif _is_parts(mine) and _is_parts(theirs):
            found += differing(dict(enumerate(mine)), dict(enumerate(theirs)), f"{name}.")
        else:
            found.append((name, _text(mine), _text(theirs)))
    return found


def _is_parts(value: Any) -> bool:
    """Whether it is a list of settings, such as `edits`."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _text(value: Any) -> str:
    """As YAML writes it, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items())
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(_text(one) for one in value)}]" if isinstance(value, list | tuple) else str(value)


def _settings(a: Source, b: Source) -> Section:
    section = Section("settings", "What differs in their settings")
    # Of studies of different versions, fields that one of them did not know yet are told only where they matter.
    mine, theirs = resolved(a), resolved(b)
    both = (mine, theirs) if mine and theirs else (a.study, b.study)
    told = [{key: value for key, value in settings.items() if key not in UNTOLD} for settings in both]
    if not a.study or not b.study:
        section.missing.append("the settings (study.yaml) of both studies.")
        return section
    lines = differing(told[0], told[1])
    if lines:
        section.tables.append(Table("Only fields that differ", ("field", "A", "B"), lines, folded=False))
    else:
        section.lead.append("Nothing: all settings of the two studies are the same.")
    made = [{key: source.study.get(key) for key in ("git_commit", "versions")} for source in (a, b)]
    if code := differing(made[0], made[1]):
        section.tables.append(Table("Code and versions that differ", ("what", "A", "B"), code))
    return section


def _curves(both: Sequence[Strand]) -> Section:
    section = Section("headline", "What SFT loses")
    section.add(along_sft(both, "study"), "no SFT checkpoint of either has been probed.")
    return section


def _map(both: Sequence[Strand], sources: Sequence[Source]) -> Section:
    section = Section("healing", "Where RL heals")
    parts = []
    for one in both:
        branches = one.tables["branches"].to_pylist()
        parts.append(Panel(one.name, one.cells, gaps(branches, {row["rl_step"] for row in one.cells})))
    section.add(
        maps_beside(parts, "Healing: OOD accuracy after RL − before"),
        "neither boundary table (boundary.parquet) holds cells.",
    )
    section.add(healing_by_start(both, "study"), "neither study has healing to compare.")
    section.add(edge_ranges(both, "study"), NO_EDGE)
    if table := edge_table([{**row, "name": one.name} for one in both for row in one.edges]):
        section.tables.append(table)
    for source, side in zip(sources, "AB", strict=True):
        if table := unfinished_table(source.tables["branches"].to_pylist(), f"Unfinished branches of {side}"):
            section.tables.append(table)
    return section


def _paired(mine: Sequence[Strand], theirs: Sequence[Strand], a: Source, reason: str) -> Section:
    """Tests between the studies, where they answered the same problems."""
    section = Section("paired", "B − A on the same problems")
    if reason:
        section.lead.append(
            f"Not paired: {reason}. The curves above stand beside each other with their own intervals; no test "
            "compares them."
        )
        return section
    heads = ("rule", "SFT step", "RL step", "A", "B", "B − A", "over problems", "q", "verdict")
    for one in mine:
        for other in theirs:
            cells = paired_cells(one, other, a.clusters)
            title = f"({other.name}) − ({one.name})"
            if not cells:
                section.missing.append(f"{title}: no place (SFT step and RL step) that both probed.")
                continue
            differ = [cell for cell in cells if cell.verdict != "unclear"]
            section.lead.append(
                f"{title}: of {len(cells)} places that both probed, "
                f"{sum(cell.verdict == 'B higher' for cell in differ)} are higher in B and "
                f"{sum(cell.verdict == 'A higher' for cell in differ)} in A."
            )
            section.tables.append(Table(title, heads, paired_lines(cells)))
    section.lines.append(
        "A problem counts with the share of a study’s seeds that solved it; whole clusters of problems are resampled. "
        "A verdict needs q < .05 (Benjamini-Hochberg per rule) and every seed of the one above every seed of the "
        "other. With one or two seeds that says little: a difference may be one of seeds, not of settings."
    )
    return section


def _recommendations(sources: Sequence[Source], names: Sequence[str]) -> Section:
    section = Section("recommendation", "Where to stop")
    for source, name in zip(sources, names, strict=True):
        rows = source.tables["recommendation"].to_pylist()
        if not rows:
            section.missing.append(f"{name}: the recommendation table (recommendation.parquet) is empty.")
            continue
        section.lead.append(f"{name}. {recommendation_words(rows)}")
        if table := runners_up(rows):
            section.tables.append(Table(f"{name}: {table.title}", table.heads, table.rows))
    return section


def _controls(both: Sequence[Strand]) -> Section:
    section = Section("controls", "RL against as much SFT")
    for one in both:
        rows = [row for rule in ("ood", "id") for row in control_cells(one.tables["controls"], rule)]
        if table := control_table(rows, one.name):
            section.tables.append(table)
        else:
            section.missing.append(f"{one.name}: {listed(CONTROLS)} were not run or are not compared yet.")
    return section
