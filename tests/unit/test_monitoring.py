"""Metrics: one table in code, of which the page and the dashboard say nothing else; no problem is ever a tag."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.lineage import branches, controls
from rlheals_ray.monitoring import METRICS, UPDATE_COLUMNS, Metric, place_of, stage_of

REPOSITORY = Path(__file__).parents[2]
EXPORTED = {metric.exported: metric for metric in METRICS}

SELECTED = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
LABELS = re.compile(r"\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|without|on)\s*\(([^)]*)\)")
WINDOW = re.compile(r"\[[^\]]*\]")
NAME = re.compile(r"[A-Za-z_:][\w:]*(?!\w|\s*\()")


def names_in(query: str) -> set[str]:
    """The metrics that a PromQL query reads: its words, less labels, windows, groupings and functions."""
    for other in (LABELS, WINDOW, GROUPING):
        query = other.sub(" ", query)
    return set(NAME.findall(query))


def tags_in(query: str) -> set[str]:
    """The labels that a PromQL query selects or groups by."""
    selected = {label for found in LABELS.findall(query) for label in SELECTED.findall(found)}
    grouped = {label.strip() for found in GROUPING.findall(query) for label in found.split(",")}
    return (selected | grouped) - {""}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPOSITORY / "cluster/grafana/rlheals_ray.json").read_text())
    return found


def queries() -> Iterator[tuple[str, str, str]]:
    """Title, query and legend of every target of every panel; those of variables have no legend."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            selector, _, label = variable["definition"].removeprefix("label_values(")[:-1].rpartition(",")
            yield variable["name"], f"sum by ({label.strip()}) ({selector})", ""


def test_what_a_query_reads_is_told_apart_from_its_functions_and_labels() -> None:
    query = 'sum by (stage) (rate(ray_a_total{study=~"$study", State!~"X|Y"}[$__rate_interval])) / max(b_2)'
    assert names_in(query) == {"ray_a_total", "b_2"}
    assert tags_in(query) == {"stage", "study", "State"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"rlheals_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.tags[:2] == ("study", "stage") and set(metric.tags) <= {"study", "stage", "cell"}
    assert metric.unit and metric.meaning and "|" not in metric.meaning
    assert metric.meaning.isascii(), "Ray takes no other description"


def test_every_name_is_used_once() -> None:
    assert len(EXPORTED) == len(METRICS)


def test_the_page_has_the_same_table() -> None:
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `rlheals_")]
    assert rows == [
        f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(m.tags)} | {m.meaning} |" for m in METRICS
    ]


def test_the_gauges_of_an_update_are_columns_of_its_table() -> None:
    assert set(UPDATE_COLUMNS) <= set(tables.RL.names)
    assert {metric for metric in METRICS if "cell" in metric.tags} == set(UPDATE_COLUMNS.values())


@pytest.mark.parametrize(("title", "query", "legend"), list(queries()), ids=lambda text: str(text)[:40])
def test_the_dashboard_asks_for_what_is_exported(title: str, query: str, legend: str) -> None:
    rays = set(re.findall(r"\bray_\w+", inspect.getsource(default_dashboard_panels)))
    read = names_in(query)
    assert read and read <= set(EXPORTED) | rays, (
        f"{title}: {read - set(EXPORTED) - rays} is exported by nobody"
    )
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")
    for name in read & set(EXPORTED):
        wanted = tags_in(query) | set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert wanted <= set(EXPORTED[name].tags), f"{title}: {name} has no tag {wanted}"
        # A counter by itself says when its process was started; its rate says what happens.
        assert EXPORTED[name].kind == "gauge" or f"rate({name}" in query


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    shown = {name for _, query, _ in queries() for name in names_in(query)}
    assert set(EXPORTED) <= shown


def test_panels_of_the_dashboard_have_an_id_each_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        place = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not place & taken, panel["title"]
        taken |= place


@given(st.text("abcs=_0123456789", min_size=1), st.text("abcs=_/0123456789"))
def test_a_units_name_is_its_stage_and_its_cell(stage: str, cell: str) -> None:
    assert place_of(f"{stage}/{cell}") == (stage, cell)
    assert place_of(stage) == (stage, "")


@given(st.one_of(st.none(), st.integers(), st.text(), st.sampled_from(["probe", "hidden"])))
def test_whatever_episodes_are_for_there_are_three_stages(purpose: object) -> None:
    assert stage_of(purpose) in {"rl", "probe", "hidden"}


def test_there_are_as_many_cells_as_branches_and_controls() -> None:
    study = load_study("tiny", ["seeds=[0,1]", "controls.kinds=[continued_sft]"])
    every = [*branches(study), *controls(study)]
    assert len({place_of(branch.name) for branch in every}) == len(every)


def test_without_a_connection_recording_does_nothing_and_does_not_load_ray() -> None:
    program = (
        "import sys\n"
        "from rlheals_ray.monitoring import METRICS, record_generated, record_update, serve_study\n"
        "serve_study('tiny')\n"
        "for metric in METRICS: metric.record(1.0, stage='rl', cell='seed=0')\n"
        "record_update('rl/seed=0/sft_step=000004', {'solved_at_1': 0.5})\n"
        "record_generated('probe', 3, 100, 0.5)\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
