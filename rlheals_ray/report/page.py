"""From a study's directory to report.html: one self-contained page, written whole or not at all."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from rlheals_ray.report.findings import findings_of
from rlheals_ray.report.findings_weights import weight_findings
from rlheals_ray.report.results import Accuracies
from rlheals_ray.report.sections import sections
from rlheals_ray.report.source import Source, facts, read_study
from rlheals_ray.storage import write_text

QUESTION = "How long should SFT run, and how much RL then wins back the generalisation SFT lost?"
COMPARED = "How far did these weights drift, and how far did they rotate?"
STATUS = {True: ("yes", "agrees"), False: ("no", "disagrees"), None: ("open", "note")}
"""Class and word of a finding: whether it agrees with what the paper reports."""
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
    parts = sections(source)
    weights = weight_findings(source.tables, Accuracies(source.tables["scores"]))
    plots = {
        figure.name: [plot.to_json().replace("<", "\\u003c") for plot in figure.plots.values()]
        for part in parts
        for figure in part.figures
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_asset("page.html.j2")).render(
        title=source.name,
        question=COMPARED if source.outside else QUESTION,
        facts=facts(source),
        findings=weights if source.outside else findings_of(source.tables, source.clusters),
        sections=parts,
        plots=plots,
        status=STATUS,
        dashes=DASHES,
        style=_asset("style.css"),
        script=_asset("page.js"),
        plotly=get_plotlyjs(),
    )


@cache
def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
