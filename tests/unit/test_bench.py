"""Benchmarks: their command line, the arithmetic of pairs and spread, and a smallest run of each."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.bench.command import main
from rlheals_ray.bench.measure import Figure, Outcome, Ratio, alternate, at_least, at_most, record, render
from rlheals_ray.bench.registry import BENCHMARKS

JOB = Path(__file__).parents[2] / "jobs" / "bench.py"
SMALLEST = {
    "rollout": ["--episodes", "6", "--one-at-a-time", "2", "--max-num-seqs", "4", "--base-steps", "3",
                "--sft-steps", "2", "--attempts", "2"],
    "rl": ["--episodes", "4", "--group-size", "2", "--updates", "1", "--base-steps", "3", "--sft-steps", "2"],
    "sft": ["--updates", "2", "--batch-size", "4"],
    "sync": ["--sizes", "1", "--readers", "1", "2", "--engine-sizes", "1"],
    "spectra": ["--layers", "2", "--ks", "2", "--blocks", "2", "--settings", "2", "--memory-layers", "1", "2",
                "--scaling-layers", "2"],
    "tasks": ["--problems", "60", "--answers", "60", "--hands", "3"],
}  # fmt: skip
"""All but `grid`, whose smallest run is eleven whole studies."""


def test_both_sides_are_measured_in_turn() -> None:
    calls: list[tuple[str, int]] = []

    def arm(name: str):  # type: ignore[no-untyped-def]
        return lambda repetition: calls.append((name, repetition))

    alternate({"A": arm("A"), "B": arm("B")}, 3)
    assert calls == [("A", 0), ("B", 0), ("A", 1), ("B", 1), ("A", 2), ("B", 2)]


def test_every_ratio_is_that_of_a_pair_and_the_spread_is_theirs() -> None:
    a, b = Figure("a", "s", (1.0, 6.0, 2.0)), Figure("b", "s", (2.0, 3.0, 1.0))
    ratio = a.over(b, "a ÷ b")
    assert ratio.values == (0.5, 2.0, 2.0)
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 2.0, 2.0)


@given(
    st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=1, max_size=9),
    st.floats(0.1, 10),
)
def test_a_machine_that_slows_both_sides_of_a_pair_alike_changes_no_ratio(
    pairs: list[tuple[float, float]], factor: float
) -> None:
    slowed = [(a * (factor if i % 2 else 1), b * (factor if i % 2 else 1)) for i, (a, b) in enumerate(pairs)]
    ratios = [
        Figure("a", "s", tuple(a for a, _ in run)).over(Figure("b", "s", tuple(b for _, b in run)), "a ÷ b")
        for run in (pairs, slowed)
    ]
    assert ratios[1].values == pytest.approx(ratios[0].values)
    assert ratios[0].low <= ratios[0].median <= ratios[0].high


def test_what_does_not_pair_is_refused() -> None:
    with pytest.raises(ValueError):
        Figure("a", "s", (1.0, 2.0)).over(Figure("b", "s", (1.0,)), "a ÷ b")
    with pytest.raises(ValueError, match="cannot be compared"):
        Figure("a", "s", (1.0,)).over(Figure("b", "tokens/s", (1.0,)), "a ÷ b")
    with pytest.raises(ValueError, match="nothing was measured"):
        Figure("a", "s", ())


def test_the_median_decides_whether_a_target_is_met() -> None:
    values = (0.9, 0.96, 1.2)
    assert Ratio("r", "", values, at_least(0.95)).met
    assert not Ratio("r", "", values, at_least(0.97)).met
    assert Ratio("r", "", values, at_most(0.96)).met
    assert Ratio("r", "", values).met is None


def test_what_is_printed_holds_ratio_spread_figures_settings_and_versions() -> None:
    figure = Figure("pool", "tokens/s", (9000.0, 8000.0, 9500.0))
    ratio = figure.over(
        Figure("bare", "tokens/s", (10000.0, 10000.0, 9500.0)), "pool ÷ bare", target=at_least(0.95)
    )
    outcome = Outcome({"episodes": 2048}, [ratio], [figure], ["the weights are loaded before"])
    around = {"date": "today", "versions": {"ray": "2"}}
    text = render("rollout", outcome, around)
    assert "pool ÷ bare: 0.9 (0.8..1, n=3)  target ≥ 0.95: MISSED" in text
    assert "pool: 9,000 tokens/s (8,000..9,500, n=3)" in text
    assert all(part in text for part in ("episodes: 2048", "loaded before", "'ray': '2'"))
    written = json.loads(json.dumps(record("rollout", outcome, around)))
    assert written["ratios"][0]["values"] == [0.9, 0.8, 1.0]
    assert written["ratios"][0]["met"] is False
    assert written["settings"] == {"episodes": 2048}


def test_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)


@pytest.mark.parametrize("arguments", [["speed"], ["speed", "--episodes", "3"], []])
def test_an_unknown_name_ends_with_2_and_names_the_valid_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(name in message for name in ("NAME", *arguments[:1], *BENCHMARKS))


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_wrong_options_end_with_2_before_anything_starts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--repetitions", "0"], ["--nonsense"], ["--repetitions", "many"]):
        with pytest.raises(SystemExit) as end:
            main([name, *wrong])
        assert end.value.code == 2
        assert wrong[0] in capsys.readouterr().err
    absent = tmp_path / "absent" / "result.json"
    assert main([name, "--json", str(absent)]) == 2
    assert str(absent) in capsys.readouterr().err


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_benchmark_is_registered_with_options_and_loads_nothing_heavy(name: str) -> None:
    code = (
        "import sys, contextlib\nfrom rlheals_ray.bench.command import main\n"
        f"with contextlib.suppress(SystemExit): main([{name!r}, '--help'])\n"
        "assert not {'torch', 'vllm', 'transformers', 'trl'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--repetitions" in done.stdout


def test_the_published_edit_of_a_matrix_is_the_mode_concatenate() -> None:
    torch = pytest.importorskip("torch")
    from rlheals_ray.bench.published_edit import published_matrix
    from rlheals_ray.spectra.linalg import decompose
    from rlheals_ray.spectra.recombination import recombine

    generator = torch.Generator().manual_seed(0)
    late = torch.randn(40, 24, generator=generator)
    peak = late + 0.1 * torch.randn(40, 24, generator=generator)
    for k in (1, 7, 23):
        ours = recombine(decompose(late), decompose(peak), k)
        assert float((ours - published_matrix(peak, late, k)).norm() / ours.norm()) < 1e-5


def test_an_ablation_has_every_k_in_every_block_and_runs_whole_what_is_spread_over_both() -> None:
    from rlheals_ray.bench.spectra_ablation import settings_of, whole

    settings = settings_of(30, 12, 4)
    assert len(set(settings)) == 48
    assert sorted({layer for setting in settings for layer in setting.layers}) == list(range(30))
    assert all(0 < setting.share < 1 for setting in settings)
    run = whole(settings, 4)
    assert set(run) <= set(settings)
    assert len({setting.layers for setting in run}) == len({setting.share for setting in run}) == 4


@pytest.mark.parametrize("count", [2, 3])
def test_the_brute_force_baselines_find_a_formula_exactly_where_there_is_one(count: int) -> None:
    from rlheals_ray.bench.tasks import first_formula, first_value
    from rlheals_ray.tasks.formula import parse
    from rlheals_ray.tasks.solver import solvable

    for values in itertools.combinations_with_replacement(range(1, 14, 2), count):
        found = first_formula(values, 24)
        assert (found is not None) == first_value(values, 24) == solvable(values, 24)
        if found:
            assert parse(found).value == 24
            assert sorted(parse(found).numbers) == list(values)


def test_the_brute_force_baselines_find_the_fraction_on_the_way() -> None:
    from rlheals_ray.bench.tasks import first_formula, first_value

    assert first_value((3, 3, 8, 8), 24)
    assert first_formula((8, 3, 8, 3), 24) == "(8/(3-(8/3)))"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALLEST))
def test_a_smallest_run_measures_every_ratio(name: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(JOB), name, *SMALLEST[name], "--repetitions", "2", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAY_ADDRESS": ""})
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(out.read_text())
    assert result["ratios"]
    assert all(len(ratio["values"]) == 2 and ratio["low"] > 0 for ratio in result["ratios"])
    assert result["versions"]["ray"]
    assert result["machine"]["cores"]
    assert result["settings"]["repetitions"] == 2
