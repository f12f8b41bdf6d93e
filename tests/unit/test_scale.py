"""docs/scale.md's figures are those of the plan, fed with the assumptions that stand beside them."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlheals_ray.config import Study, load_study
from rlheals_ray.grid.model_size import model_size
from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.plan_time import estimates, time_lines
from rlheals_ray.grid.rates import UNITS
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.storage import StudyFiles

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text()
STAGES = {"SFT": "sft", "RL": "rl", "spectra": "spectra", "edits": "edit", "tables": "tables and report"}


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assumed_rates", ROOT / "cluster" / "assumed_rates.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["assumed_rates"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


ASSUMED = loaded()


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seven")
    shutil.copy(Path(__file__).parent / "data" / "qwen2.5-7b.config.json", directory / "config.json")
    return directory


def study_of(seven: Path, gpus: int) -> Study:
    """The study of scale.md's command, on 8 or 64 GPUs."""
    line = re.search(r"assumed_rates\.py (qwen2\.5-7b .*?) --storage", TEXT.replace("\\\n", " "))
    assert line
    given = [one.replace("base.model=DIR", f"base.model={seven}") for one in shlex.split(line[1])[1:]]
    return load_study("qwen2.5-7b", [*given, f"rollout.generators={gpus // 2}"])


def cells(row: str) -> list[str]:
    """Of the table row that begins with `row`, what stands under 8 and 64 GPUs."""
    found = re.findall(rf"^\| {re.escape(row)}[^|]*\| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert len(found) == 1, row
    return [cell.strip() for cell in found[0]]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def test_every_assumption_stands_there_with_its_value() -> None:
    stated = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TEXT, re.MULTILINE))
    price = stated.pop("price")
    assert numbers(price) == [4.0]
    assert {name: float(value) for name, value in stated.items()} == {
        one.name: getattr(ASSUMED.Assumed(), one.name) for one in fields(ASSUMED.Assumed)
    }


@pytest.mark.parametrize(("gpus", "place"), [(8, 0), (64, 1)])
def test_hours_and_money_are_the_plan_s(seven: Path, gpus: int, place: int) -> None:
    study = study_of(seven, gpus)
    rates = ASSUMED.assumed_rates(study, ASSUMED.Assumed())
    found = {stage: one.seconds for stage, one in estimates(study, rates).items()}
    assert set(found) == set(STAGES.values()) and None not in found.values()
    hours = {stage: (seconds or 0.0) / 3600 for stage, seconds in found.items()}
    for name, stage in STAGES.items():
        assert numbers(cells(f"hours of {name}")[place]) == [round(hours[stage], 1)], name
    total = sum(hours.values())
    assert numbers(cells("**hours in all**")[place]) == [round(total)]
    assert numbers(cells("GPU hours")[place]) == [round(total * gpus, -1)]
    assert numbers(cells("**money**")[place]) == [round(total * gpus * 4.0, -2)]


@pytest.mark.parametrize(("gpus", "place"), [(8, 0), (64, 1)])
def test_counts_in_a_row_are_the_plan_s(seven: Path, gpus: int, place: int) -> None:
    study = study_of(seven, gpus)
    each, needed = counts(study), resources_of(study)
    assert needed.groups == numbers(cells("branches side by side")[place])[0] == gpus // 8
    # A rate of one unit alone, all others nothing: what is left of the time is how many are in a row.
    for name, unit in (("SFT updates in a row", "sft"), ("RL updates in a row", "rl")):
        seconds = estimates(study, {**dict.fromkeys(UNITS, 0.0), unit: 1.0})
        assert seconds["sft" if unit == "sft" else "rl"].seconds == numbers(cells(name)[place])[0]
    assert numbers(cells("all of RL's updates")[place])[0] == each.rl_updates
    assert f"{each.branches} branches" in TEXT and f"{each.controls} controls" in TEXT


def test_rates_are_what_one_reckons_by_hand(seven: Path) -> None:
    """The large ones, from the assumptions as they stand in the text."""
    study = study_of(seven, 8)
    rates = ASSUMED.assumed_rates(study, ASSUMED.Assumed())
    assert set(rates) == set(UNITS) - {"base", "hidden"}
    parameters, learning = model_size(study).parameters, 4 * 312e12 * 0.3
    saved = 17 * 16 * parameters / 2e9 / 1600
    assert rates["sft"] == pytest.approx(8 * parameters * 64 * 265 / learning + saved, rel=0.01)
    tokens = 32 * (220 + 4 * 160)
    learn = (4 * 8 + 4) * parameters * tokens / learning
    cache = 8 * (220 + 500) * 2 * 28 * 512 * 2
    generate = 1000 * (2 * parameters + cache) / 1.2e12
    assert rates["rl"] == pytest.approx(learn + generate + 2 * parameters / 1.5e9, rel=0.01)
    assert rates["control"] == pytest.approx(28 * parameters * tokens * 8 / 6 / learning, rel=0.01)


def test_the_command_writes_what_the_plan_reads_and_says_that_it_is_assumed(
    seven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> Any:
        command = ["assumed_rates.py", "qwen2.5-7b", f"base.model={seven}", "--storage", str(tmp_path), *more]
        monkeypatch.setattr(sys, "argv", command)
        return ASSUMED.main()

    assert run("--set", "mfu=0.15", "hidden=null") == 0
    assert "assumed mfu                  0.15" in capsys.readouterr().out
    study = load_study("qwen2.5-7b", [f"base.model={seven}", "hidden=null"])
    first, *rest = time_lines(study, StudyFiles(tmp_path / study.name))
    assert first.startswith("time from nothing") and "?" not in first
    assert all("rates ASSUMED, not measured" in line for line in rest)
    assert run("--set", "speed=2") == 2
    assert "write name=number" in capsys.readouterr().err


def test_with_hidden_states_they_are_counted_too(seven: Path) -> None:
    study = load_study("qwen2.5-7b", [f"base.model={seven}"])
    rates = ASSUMED.assumed_rates(study, ASSUMED.Assumed())
    assert rates["hidden"] > 0 and None not in [one.seconds for one in estimates(study, rates).values()]
