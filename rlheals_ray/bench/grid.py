"""A small map with its trunk and its branches shared, beside every cell trained by itself, both through the whole
pipeline as a user runs it; and what `--plan` had predicted of the first.

A cell by itself is a study of one SFT step and one budget: its own trunk to that step, its own branch to that
budget. The base is made once, before the clock starts, and given to all of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.measure import Figure, Outcome, Ratio
from rlheals_ray.config import Study, dump_study, load_study
from rlheals_ray.grid.plan_counts import counts, sharing
from rlheals_ray.grid.plan_time import estimates
from rlheals_ray.grid.rates import measured, rates_for
from rlheals_ray.lineage import BASE

_JOB = "import sys; from rlheals_ray.grid.command import main; sys.exit(main('grid', '', sys.argv[1:]))"
_LEFT_OUT = ["edits=[]", "hidden=null", "controls.kinds=[]", "spectra={roles: [q], k: [8]}"]
"""What neither side runs: cells by themselves would repeat it for nothing."""


def add_options(parser: ArgumentParser) -> None:
    """Sizes of the map."""
    parser.set_defaults(repetitions=1)
    parser.add_argument(
        "--steps", type=positive, nargs=2, default=[20, 40], help="SFT steps that RL starts from"
    )
    parser.add_argument("--budgets", type=positive, nargs=2, default=[3, 6], help="RL budgets")
    parser.add_argument("--problems", type=positive, default=40, help="probe problems per rule")


def run(options: Namespace) -> Outcome:
    """Run both ways, `--repetitions` times in turn."""
    took: dict[str, list[float]] = {"shared": [], "apart": []}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-grid-") as directory:
        storage = Path(directory)
        whole = _study(options, storage, "shared", options.steps, options.budgets)
        cells = [
            _study(options, storage, f"cell-{step}-{budget}", [step], [budget])
            for step in options.steps
            for budget in options.budgets
        ]
        # Makes the base, and its rates are those of the plan: it is the calibration.
        first = _study(options, storage, "first", options.steps, options.budgets[:1])
        _run(first)
        trained: dict[str, tuple[int, int]] = {}
        predicted = _predicted(whole, storage)
        for repetition in range(options.repetitions):
            took["shared"].append(_timed([whole], storage))
            took["apart"].append(_timed(cells, storage))
            if repetition == 0:
                trained = {"shared": _trained([whole], storage), "apart": _trained(cells, storage)}
                notes += _notes(whole, storage, trained, predicted)
            for study in (whole, *cells):
                shutil.rmtree(storage / study.name)
    shared, apart = (Figure(f"wall time, {name}", "s", tuple(took[name])) for name in ("shared", "apart"))
    ratios = [
        Ratio(f"{what}, shared ÷ apart", "", (trained["shared"][i] / trained["apart"][i],))
        for i, what in enumerate(("SFT updates", "RL updates"))
    ]
    figures = [shared, apart]
    figures += [
        Figure(f"{what} trained, {name}", "", (float(trained[name][i]),))
        for name in trained
        for i, what in enumerate(("SFT updates", "RL updates"))
    ]
    settings = {"steps": options.steps, "budgets": options.budgets, "study": dump_study(whole)}
    return Outcome(settings, [*ratios, shared.over(apart, "wall time, shared ÷ apart")], figures, notes)


def _study(
    options: Namespace, storage: Path, name: str, steps: Sequence[int], budgets: Sequence[int]
) -> Study:
    return load_study("tiny", [
        f"name={name}", f"storage={storage}", f"sft.steps={sorted({0, *steps})}", f"rl.from_steps={list(steps)}",
        f"rl.budgets={[0, *budgets]}", f"evaluation.problems={options.problems}", *_LEFT_OUT,
    ])  # fmt: skip


def _run(study: Study) -> None:
    """The job in a process of its own. Raises RuntimeError when it fails."""
    root = Path(study.storage)
    file = root / f"{study.name}.yaml"

    file.write_text(yaml.safe_dump(dump_study(study)), encoding="utf-8")
    ended = subprocess.run([sys.executable, "-c", _JOB, str(file)], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{study.name} failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")


def _timed(studies: Sequence[Study], storage: Path) -> float:
    """Seconds of whole runs, the base given."""
    total = 0.0
    for study in studies:
        for part in (f"checkpoints/{BASE}", "markers/base.json"):
            source, target = storage / "first" / part, storage / study.name / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
        start = time.perf_counter()
        _run(study)
        total += time.perf_counter() - start
    return total


def _trained(studies: Sequence[Study], storage: Path) -> tuple[int, int]:
    """(SFT updates, RL updates) that the tables say were made."""
    sft = rl = 0
    for study in studies:
        tables = storage / study.name / "tables"
        sft += max(pq.read_table(tables / "sft.parquet", columns=["step"])["step"].to_pylist())
        rl += pq.read_metadata(tables / "rl.parquet").num_rows
    return sft, rl


def _predicted(whole: Study, storage: Path) -> dict[str, float | None]:
    """Seconds by stage, from the rates of the first map, of one budget."""
    rates = {name: rate.seconds for name, rate in rates_for(whole, storage / whole.name).items()}
    found = estimates(whole, rates)
    return {stage: one.seconds for stage, one in found.items() if stage != "base"}


def _notes(
    whole: Study, storage: Path, trained: dict[str, tuple[int, int]], predicted: dict[str, float | None]
) -> Iterator[str]:
    each, cost = counts(whole), sharing(whole)
    said = {"shared": (each.sft_updates, each.rl_updates), "apart": (cost.sft_apart, cost.rl_apart)}
    for name, made in trained.items():
        verdict = "as predicted" if made == said[name] else "NOT AS PREDICTED"
        yield f"{name}: SFT and RL updates made {made}, --plan said {said[name]}: {verdict}"
    root = storage / whole.name
    took: dict[str, Any] = json.loads((root / "timings.json").read_text())
    took["tables and report"] = measured(whole, root)["close"]
    for stage, seconds in predicted.items():
        if seconds is not None and took.get(stage):
            error = seconds / took[stage] - 1
            yield (
                f"{stage}: took {took[stage]:.1f} s, predicted {seconds:.1f} s from the rates of the same map at its "
                f"first budget ({error:+.0%}, {'within' if abs(error) <= 0.1 else 'NOT within'} 10 %)"
            )
