"""Two studies side by side: what differs is told, what cannot be compared is said, wrong input writes nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from rlheals_ray.evaluation.statistics import cluster_sign_flip_p
from rlheals_ray.report.command_compare import main
from rlheals_ray.report.paired_studies import paired_cells, why_not_paired
from rlheals_ray.report.side_by_side import differing, render_comparison
from rlheals_ray.report.source import read_study
from rlheals_ray.report.strands import strands
from tests.report_outcomes import two_recipes, with_outcome
from tests.report_tables import empty, nano_like, opposite, rows_of, write_study


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_the_page_shows_both_studies_and_only_the_settings_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_study(tmp_path / "a", with_outcome(nano_like([0]), [0]), name="<i>one</i>")
    b = write_study(
        tmp_path / "b", two_recipes([0]), name="two", sft={"recipe": ["plain", "lora"], "steps": [0, 4]}
    )
    out = tmp_path / "both.html"
    assert main(["--compare", str(a), str(b), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    page = out.read_text()
    assert "<i>one" not in page and "A: &lt;i&gt;one" in page
    assert "sft.recipe" in page and "task.cards" not in page
    for name in ("along-sft", "healing-beside", "healing-by-start", "edges"):
        assert f'id="plot-{name}"' in page
    assert "B: two (lora)" in page and "Stop SFT at step 4" in page


@pytest.mark.parametrize("wrong", ["same", "linked", "empty", "absent", "out", "nowhere"])
def test_wrong_input_ends_with_2_and_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    a = write_study(tmp_path / "a", empty())
    other = {
        "same": a,
        "linked": tmp_path / "link",
        "empty": tmp_path / "none",
        "absent": tmp_path / "absent",
    }
    (tmp_path / "none").mkdir()
    (tmp_path / "link").symlink_to(a)
    b = other.get(wrong) or write_study(tmp_path / "b", empty())
    out = {"out": tmp_path / "none", "nowhere": tmp_path / "no" / "page.html"}.get(
        wrong, tmp_path / "page.html"
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["--compare", str(a), str(b), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("report: --") and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_studies_that_have_only_begun_make_a_page_too(tmp_path: Path) -> None:
    a, b = (write_study(tmp_path / name, empty()) for name in "ab")
    assert main(["--compare", str(a), str(b), "--out", str(tmp_path / "page.html")]) == 0
    assert "Not there yet" in (tmp_path / "page.html").read_text()


def test_settings_are_compared_field_by_field() -> None:
    a = {"sft": {"recipe": "plain", "steps": [0, 4]}, "edits": [{"k": 8}], "seeds": [0]}
    b = {
        "sft": {"recipe": ["plain", "lora"], "steps": [0, 4]},
        "edits": [{"k": 8}, {"k": None}],
        "seeds": [0],
    }
    assert differing(a, b) == [("sft.recipe", "plain", "[plain, lora]"), ("edits.1", "–", "k: null")]


def test_a_field_that_one_study_did_not_know_differs_only_where_its_default_would_change_it(
    tmp_path: Path,
) -> None:
    a = write_study(tmp_path / "a", empty(), rl={"algorithm": "ppo", "episodes": 160})
    b = write_study(tmp_path / "b", empty(), rl={"algorithm": "grpo"})
    page = render_comparison(read_study(a), read_study(b))
    assert "<td>rl.algorithm</td><td>ppo</td><td>grpo</td>" in page and "rl.episodes" not in page


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"task": {"name": "general_points", "cards": 4, "targets": [24]}}, "tasks differ"),
        ({"evaluation": {"problems": 10, "seed": 0}}, "evaluation.problems differs"),
    ],
)
def test_tests_are_paired_only_where_both_answered_the_same_problems(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    a = read_study(write_study(tmp_path / "a", nano_like([0])))
    b = read_study(write_study(tmp_path / "b", opposite([0]), **change))
    assert (why in why_not_paired(a, b)) and bool(why_not_paired(a, b)) is bool(why)


def test_one_problem_more_unpairs_them(tmp_path: Path) -> None:
    mine = nano_like([0])
    more = [{"checkpoint": "sft/seed=0/step=000004", "rule": "ood", "problem_id": "T24:99-98-97"}]
    mine["episodes"] = pa.concat_tables([mine["episodes"], rows_of("episodes", more)])
    a = read_study(write_study(tmp_path / "a", nano_like([0])))
    b = read_study(write_study(tmp_path / "b", mine))
    assert "OOD problems differ" in why_not_paired(a, b)


def test_paired_cells_average_each_studys_seeds_and_test_problem_by_problem() -> None:
    (a,), (b,) = strands(empty() | nano_like([0, 1])), strands(empty() | opposite([0]))
    cells = {(cell.rule, cell.sft_step, cell.rl_step): cell for cell in paired_cells(a, b, None)}
    assert {place[2] for place in cells} == {0}, "the invented studies have episodes along SFT alone"
    clear, same = cells["ood", 400, 0], cells["ood", 0, 0]
    assert clear.verdict == "B higher" and clear.low <= clear.difference <= clear.high
    assert (same.difference, same.p, same.verdict) == (0.0, 1.0, "unclear")

    solved: dict[str, dict[str, list[bool]]] = {"a": {}, "b": {}}
    for name, of in (("a", nano_like([0, 1])), ("b", opposite([0]))):
        for row in of["episodes"].to_pylist():
            if row["rule"] == "ood" and row["checkpoint"].endswith("step=000400"):
                solved[name].setdefault(row["problem_id"], []).append(row["solved_at"] == 1)
    shares = {
        name: {problem: sum(values) / len(values) for problem, values in of.items()}
        for name, of in solved.items()
    }
    problems = sorted(shares["a"])
    change = [shares["b"][problem] - shares["a"][problem] for problem in problems]
    labels = [" ".join(sorted(problem.replace(":", "-").split("-"))) for problem in problems]
    assert clear.difference == pytest.approx(sum(change) / len(change))
    assert clear.p == pytest.approx(cluster_sign_flip_p(change, labels))


def test_seeds_that_overlap_leave_a_difference_unclear_however_many_problems_say_it() -> None:
    lucky = nano_like([0, 1])
    rows = lucky["scores"].to_pylist()
    high = {"rule": "ood", "sft_step": 400, "rl_step": 0, "seed": 1}
    rows = [{**r, "acc_1": 0.95} if all(r[key] == value for key, value in high.items()) else r for r in rows]
    (a,), (b,) = (
        strands(empty() | lucky | {"scores": rows_of("scores", rows)}),
        strands(empty() | opposite([0])),
    )
    cell = next(cell for cell in paired_cells(a, b, None) if cell[:3] == ("ood", 400, 0))
    assert cell.q < 0.05 and cell.verdict == "unclear"
