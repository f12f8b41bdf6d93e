"""The report on mechanism: every figure of a full study, none that its tables cannot carry, words that follow numbers.

The tables are invented (tests/report_mechanism.py); what is tested is the reading of them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlheals_ray.report import Finding, build_report, findings_of
from rlheals_ray.report.comparisons import Comparisons, checkpoint_label
from tests.report_mechanism import branch, spectra, trunk, updates, whole
from tests.report_outcomes import with_outcome
from tests.report_tables import rows_of, write_study

TABLES = ("spectra", "updates", "singular_values", "edits", "hidden", "similarity", "shift", "predictors")
FIGURES = (
    "rotation", "updates", "angles", "layers", "overlays", "spectra", "edits-t", "edits-k", "edits-layers",
    "edits-mode", "edit-0", "shift", "similarity", "paths", "predictors", "scatters",
)  # fmt: skip


@pytest.fixture(scope="module")
def full() -> dict[str, pa.Table]:
    return whole((0, 1))


def drawn(page: str) -> dict[str, list[dict[str, Any]]]:
    """Figure name -> its plots, in the order of its views."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, plot in re.findall(r'id="data-([\w-]+)-\d+">(.*?)</script>', page):
        found.setdefault(name, []).append(json.loads(plot))
    return found


def by_kind(of: dict[str, pa.Table]) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings_of(of)}


def test_a_full_study_has_every_figure_and_misses_nothing(full: dict[str, pa.Table], tmp_path: Path) -> None:
    page = build_report(write_study(tmp_path / "study", with_outcome(full))).read_text()
    plots = drawn(page)
    assert set(FIGURES) <= set(plots)
    assert "Not there yet" not in page
    for name, views in plots.items():
        for view in views:
            assert any(trace.get("x") or trace.get("z") for trace in view["data"]), name


@pytest.mark.parametrize("missing", TABLES)
def test_any_one_table_of_the_mechanism_may_be_missing(
    full: dict[str, pa.Table], missing: str, tmp_path: Path
) -> None:
    mine = {name: content for name, content in full.items() if name != missing}
    findings_of(mine)
    page = build_report(write_study(tmp_path / "study", mine)).read_text()
    assert len(drawn(page)) >= len(FIGURES) - 6


OLD = {
    "spectra": ("null_angle_v", "noise_angle_u", "noise_angle_v", "random_power", "chordal_u", "chordal_v"),
    "edits": ("group", "part", "t", "k_fraction", "smallest", "delta_norm"),
}


def test_tables_from_before_these_columns_are_read_as_far_as_they_go(
    full: dict[str, pa.Table], tmp_path: Path
) -> None:
    mine = {name: content for name, content in full.items() if name not in TABLES}
    mine |= {name: full[name].drop_columns(list(columns)) for name, columns in OLD.items()}
    page = build_report(write_study(tmp_path / "study", mine)).read_text()
    assert {"rotation", "angles", "edit-0"} <= set(drawn(page))
    assert "angle ÷ noise’s angle</label>" not in page and "noise of equal ‖ΔW‖</li>" not in page
    assert "beyond_noise" not in by_kind(mine)


def test_a_directory_with_comparisons_alone_has_a_short_page_about_them(tmp_path: Path) -> None:
    pair = {"seed": None, "a": "/models/Qwen2.5-7B", "b": "/models/Qwen2.5-7B-Instruct"}
    rows = [row | pair for row in spectra((0,), 6, (), 400, 0, drift=0.02, angle=0.1).to_pylist()]
    rows = [row for row in rows if row["matrix"]][:84]
    (tmp_path / "tables").mkdir()
    pq.write_table(rows_of("spectra", rows), tmp_path / "tables" / "spectra.parquet")
    both = {"a": "/models/base", "b": "/models/sft", "c": "/models/rl"}
    of = [row | both for row in updates((0,), 6, (60,), 30, -0.3).to_pylist()[:12]]
    pq.write_table(rows_of("updates", of), tmp_path / "tables" / "updates.parquet")
    page = build_report(tmp_path).read_text()
    assert {"spectra", "angles", "layers"} == set(drawn(page))
    assert "models/Qwen2.5-7B → models/Qwen2.5-7B-Instruct" in page
    assert "base → models/sft → models/rl" in page
    assert "Weights rotate more than their singular values drift: over all pairs" in page
    for of_a_study in ("Not there yet", "Where RL heals", "jobs/grid.py", "How long should SFT run"):
        assert of_a_study not in page.split("<script>")[0], of_a_study


def test_a_page_of_a_seven_billion_model_stays_small(tmp_path: Path) -> None:
    ks = (8, 32, 128, 512, 1024, 2048)
    starts = (0, 4, 15, 30, 60, 120, 400)
    mine = {"spectra": spectra((0,), 6, starts, 400, 30, drift=0.02, angle=0.1, layers=28, ks=ks)}
    assert mine["spectra"].num_rows > 30_000
    page = build_report(write_study(tmp_path / "study", mine)).read_text()
    plots = sum(len(plot) for plot in re.findall(r'type="application/json".*?</script>', page))
    assert plots < 1_000_000


def test_seeds_with_different_peaks_meet_under_one_label() -> None:
    one = spectra((0,), 6, (60,), 400, 30, drift=0.02, angle=0.1)
    other = spectra((1,), 8, (60,), 400, 30, drift=0.02, angle=0.1)
    stories = {story.label: len(story.pairs) for story in Comparisons(pa.concat_tables([one, other])).shown()}
    assert stories == {
        "base → OOD peak": 2,
        "OOD peak → SFT 400": 2,
        "SFT 60 → + RL 30": 2,
        "OOD peak → SFT 60 + RL 30": 2,
    }


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("base", "base"),
        ("sft/seed=2/step=000060", "SFT 60"),
        ("rl/seed=0/sft_step=000060/rl_step=000030", "SFT 60 + RL 30"),
        ("s3://bucket/models/llama/", "models/llama"),
        ("llama", "llama"),
    ],
)
def test_checkpoints_are_named_in_words(name: str, label: str) -> None:
    assert checkpoint_label(name) == label


@pytest.mark.parametrize(
    ("noise", "said", "supported"),
    [
        (0.5, "Rotation goes beyond noise at every k", True),
        (2.0, "turn less than noise", False),
        (1.0, "does not go beyond noise at every k", None),
    ],
)
def test_angles_are_held_against_those_of_noise(noise: float, said: str, supported: bool | None) -> None:
    rows = [
        row | {"noise_angle_u": noise * row["angle_u_mean"], "noise_angle_v": noise * row["angle_v_mean"]}
        for row in spectra((0,), 6, (60,), 400, 30, drift=0.02, angle=0.1).to_pylist()
    ]
    found = by_kind({"spectra": rows_of("spectra", rows)})["beyond_noise"]
    assert said in found.text and found.supported is supported
    assert f"{1 / noise:.1f} at k = 8, {1 / noise:.1f} at k = 16 and {1 / noise:.1f} at k = 32" in found.text


@pytest.mark.parametrize(("cosine", "said"), [(-0.3, "RL goes against"), (0.2, "RL does not undo")])
def test_rl_undoes_sft_only_where_every_seed_goes_against_it(cosine: float, said: str) -> None:
    found = by_kind({"updates": updates((0, 1), 6, (60,), 30, cosine)})["undoes"]
    assert said in found.text and found.supported is (cosine < 0)


def test_rl_that_goes_against_all_of_sft_is_no_undoing_of_what_was_forgotten() -> None:
    rows = [
        row | {"cosine": -0.4 if row["a"] == "base" else -0.3}
        for row in updates((0, 1), 6, (60,), 30, 0).to_pylist()
    ]
    found = by_kind({"updates": rows_of("updates", rows)})["undoes"]
    assert "RL goes against SFT as a whole" in found.text and found.supported is None


def test_rl_from_before_the_peak_undoes_nothing() -> None:
    assert "undoes" not in by_kind({"updates": updates((0, 1), 6, (0, 4), 30, -0.3)})


def test_spectra_that_look_random_are_told_with_the_tests_power() -> None:
    rows = [
        row | {"looks_random": row["layer"] == 0}
        for row in spectra((0,), 6, (), 400, 0, drift=0.02, angle=0.1).to_pylist()
    ]
    found = by_kind({"spectra": rows_of("spectra", rows)})["looks_random"]
    assert "21 of 84 compared matrices" in found.text and "in 90 % of cases" in found.text


def test_the_best_predictor_is_never_told_without_its_reference_and_its_number(
    full: dict[str, pa.Table],
) -> None:
    found = by_kind(full)["predictors"]
    assert found.supported is None
    assert "best of many on the same data" in found.text and "ID accuracy@1, ρ = " in found.text
    assert "Rotation beside forward KL: " in found.text


def test_names_of_invented_checkpoints_are_those_of_the_pipeline() -> None:
    from rlheals_ray.lineage import Branch, Trunk

    assert trunk(1, 60) == Trunk("plain", 1).checkpoint(60)
    assert branch(1, 60, 30) == Branch(Trunk("plain", 1), 60, "ppo").checkpoint(30)
