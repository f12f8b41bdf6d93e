"""From a study's directory to report.html: one self-contained page, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from rlheals_ray.report.findings import findings_of
from rlheals_ray.report.findings_weights import weight_findings
from rlheals_ray.report.layout import Section
from rlheals_ray.report.results import Accuracies
from rlheals_ray.report.sections import sections
from rlheals_ray.report.sections_rules import of_rule, rules_findings, rules_of_study, rules_section
from rlheals_ray.report.source import Source, facts, read_study
from rlheals_ray.report.words import Finding
from rlheals_ray.storage import write_text

QUESTION = "How long should SFT run, and how much RL then wins back the generalisation SFT lost?"
COMPARED = "How far did these weights drift, and how far did they rotate?"
STATUS = {True: ("yes", "agrees"), False: ("no", "disagrees"), None: ("open", "note")}
"""Class and word of a finding: whether it agrees with what the paper reports."""
FINDINGS = "What this study shows, and what it does not"
FINDINGS_NOTE = (
    "Every sentence is computed from this study’s tables. “Agrees” and “disagrees”: with what “RL Fine-Tuning Heals "
    "OOD Forgetting in SFT” (arXiv 2509.12235) reports; “note”: open, or needed to read the others. Accuracies are "
    "shares of problems solved at the first attempt; brackets are 95 % intervals over the probe problems."
)
SHAPES = {
    "circle": "M11 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "ring": "M10 6a5 5 0 1 0 10 0a5 5 0 1 0-10 0M11.8 6a3.2 3.2 0 1 1 6.4 0a3.2 3.2 0 1 1-6.4 0",
    "square": "M11 2h8v8h-8z",
    "triangle-up": "M15 1l5 9h-10z",
    "triangle-down": "M15 11l5-9h-10z",
    "diamond": "M15 0l5 6l-5 6l-5-6z",
    "x": "M11 3.5l1.5-1.5l2.5 2.5l2.5-2.5l1.5 1.5l-2.5 2.5l2.5 2.5l-1.5 1.5l-2.5-2.5l-2.5 2.5l-1.5-1.5l2.5-2.5z",
}
"""Plotly's marks as SVG paths in a legend's 30 by 12 pixels."""
DASHES = {"solid": "", "dash": "8 4", "dot": "2 4", "dashdot": "8 4 2 4"}


def build_report(study_directory: Path) -> Path:
    """Write `<study_directory>/report.html` from its tables, study.yaml and timings.json; returns its path.

    Tables may be missing, empty or partial: the page then says what is not there yet. The page loads
    nothing from anywhere. Raises FileNotFoundError when the directory itself does not exist.
    """
    directory = Path(study_directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: there is no study here; run jobs/grid.py first")
    path = directory / "report.html"
    write_text(path, render(read_study(directory)))
    return path


def render(source: Source) -> str:
    """The whole page as HTML. All text is escaped; figures travel as JSON that cannot end its script."""
    if source.outside:
        findings, parts = (
            weight_findings(source.tables, Accuracies(source.tables["scores"])),
            sections(source),
        )
    else:
        rules = rules_of_study(source)
        first = of_rule(source, rules[0])
        findings, parts = findings_of(first.tables, first.clusters), sections(first)
        if len(rules) > 1:
            findings = [*findings, *rules_findings(source, rules)]
            parts.insert(1, rules_section(source, rules))
    return render_page(
        title=source.name,
        question=COMPARED if source.outside else QUESTION,
        facts=facts(source),
        findings=findings,
        sections=parts,
    )


def render_page(
    title: str,
    question: str,
    facts: Sequence[tuple[str, str]],
    findings: Sequence[Finding],
    sections: Sequence[Section],
    findings_title: str = FINDINGS,
    findings_note: str = FINDINGS_NOTE,
    status: Mapping[bool | None, tuple[str, str]] = STATUS,
) -> str:
    """A page of findings and sections, of whatever it is about."""
    plots = {
        figure.name: [plot.to_json().replace("<", "\\u003c") for plot in figure.plots.values()]
        for section in sections
        for figure in section.figures
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_asset("page.html.j2")).render(
        title=title,
        question=question,
        facts=facts,
        findings=findings,
        findings_title=findings_title,
        findings_note=findings_note,
        sections=sections,
        plots=plots,
        status=status,
        dashes=DASHES,
        shapes=SHAPES,
        style=_asset("style.css"),
        script=_asset("page.js"),
        plotly=get_plotlyjs(),
    )


@cache
def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
