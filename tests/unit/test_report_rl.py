"""The report's figures of RL show what was measured, whatever the algorithm has, and nothing that it has not."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import pytest

from rlheals_ray.report.figures import Figure
from rlheals_ray.report.figures_rl import rl_learning, rl_time
from rlheals_ray.report.sections import sections
from rlheals_ray.report.source import read_study
from tests.report_tables import empty, nano_like, rows_of, write_study


def titles(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [
        unescape(note.text).removeprefix("<b>").removesuffix("</b>")
        for note in figure.plot.layout.annotations
    ]


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> pa.Table:
    return rows_of("rl", [{**row, **change(row)} for row in nano_like()["rl"].to_pylist()])


@pytest.mark.parametrize(("algorithm", "name"), [("grpo", "GRPO"), ("rloo", "RLOO")])
def test_an_algorithm_without_a_critic_has_no_panel_for_one(algorithm: str, name: str) -> None:
    table = changed(lambda row: {"algorithm": algorithm, "explained_variance": None, "value_loss": None})
    figure = rl_learning(table)
    assert set(titles(rl_learning(nano_like()["rl"]))) - set(titles(figure)) == {
        "critic's explained variance"
    }
    assert figure is not None and f"Learnt by {name}." in figure.caption


def test_an_update_without_a_value_is_left_out_of_its_line_alone() -> None:
    table = changed(lambda row: {"entropy": None} if row["rl_step"] == 3 else {})
    figure = rl_learning(table)
    assert figure is not None
    by_axis = {trace.yaxis: list(trace.x) for trace in figure.plot.data}
    entropy = f"y{titles(figure).index('policy entropy') + 1}"
    assert 3 not in by_axis[entropy] and 3 in by_axis["y"]


def test_the_bars_of_an_update_add_up_to_its_seconds() -> None:
    """Judging happens while episodes are made: it is taken out of their seconds, not counted twice."""
    figure = rl_time(nano_like()["rl"])
    assert figure is not None
    bars = [trace for trace in figure.plot.data if isinstance(trace, go.Bar)]
    rows = nano_like()["rl"].to_pylist()
    for index, start in enumerate(bars[0].x):
        mine = [row for row in rows if row["sft_step"] == int(start)]
        spent = sum(r["seconds_generate"] + r["seconds_sync"] + r["seconds_learn"] for r in mine) / len(mine)
        assert sum(bar.y[index] for bar in bars) == pytest.approx(spent)


def test_older_tables_without_the_new_columns_still_draw() -> None:
    older = changed(
        lambda row: {
            "tokens_per_second": None,
            "idle_share": None,
            "seconds_judge": None,
            "logprob_mismatch_kl": None,
        }
    )
    assert "policy entropy" in titles(rl_learning(older))
    assert titles(rl_time(older)) == ["seconds of one update"]


def test_a_study_without_rl_has_neither_figure() -> None:
    assert rl_learning(empty()["rl"]) is None and rl_time(empty()["rl"]) is None


def test_no_second_of_a_run_is_counted_twice(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", empty())
    (study / "timings.json").write_text(json.dumps({"sft": 1.5, "rl": 2.25, "total": 3.75, "report": 0.5}))
    page = sections(read_study(study))[-1]
    [times] = [table for table in page.tables if table.title == "Wall-clock time"]
    assert list(times.rows) == [("sft", "1.5"), ("rl", "2.2"), ("report", "0.5"), ("all", "4.2")]
