"""How long a study takes from nothing, stage by stage: its counts times recorded or calibrated rates.

Branches side by side share the machine's cores. A rate was measured with as many of them side by side as there will
be (rates.py), so it holds what they cost each other. Runs are whole: 27 branches in 8 lanes take four rounds, the last
of them with lanes idle. In the sweep learners and engines alternate: probes of one branch run beside the learning of
the next, which is counted as if they did not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlheals_ray.config import Study
from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.rates import UNITS, Rate, rates_for
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.storage import StudyFiles

Seconds = Mapping[str, float]


@dataclass(frozen=True)
class Estimate:
    """Of one stage."""

    seconds: float | None
    """None: a rate is not known."""
    missing: tuple[str, ...] = ()


def _lanes(study: Study, count: int) -> int:
    """How many of `count` runs train side by side."""
    return max(1, min(resources_of(study).groups, count))


def _probes(study: Study, count: int, rate: float) -> float:
    teams = study.rollout.generators // study.rollout.generators_per_branch
    return math.ceil(count / teams) * rate


def sft_wall(study: Study, rates: Seconds, rest: float | None = None) -> float:
    """Trunks, the probes of their checkpoints, and the start of engines and workers; KeyError without a rate."""
    each = counts(study)
    rounds = math.ceil(each.trunks / _lanes(study, each.trunks))
    updates = each.sft_updates // each.trunks
    probes = 1 + each.trunks * len(study.sft.steps)
    started = rates["sft_rest"] if rest is None else rest
    trained = rounds * updates * rates["sft"] if updates else 0.0
    return trained + _probes(study, probes, rates["probe"]) + started


def rl_wall(study: Study, rates: Seconds) -> float:
    """Branches, controls, and their probes; KeyError without a rate."""
    each = counts(study)
    if not each.branches:
        return 0.0
    updates = study.rl.budgets[-1]
    runs = [updates * rates["rl"] + rates["branch_rest"]] * each.branches
    if each.controls:
        runs += [updates * rates["control"] + rates["branch_rest"]] * each.controls
    probes = each.probes - 1 - each.trunks * len(study.sft.steps) + each.control_probes
    worked = _last_end(runs, _lanes(study, each.branches))
    return worked + _probes(study, probes, rates["probe"]) + rates["rl_rest"]


def _last_end(runs: Iterable[float], lanes: int) -> float:
    """When the last of runs of these lengths ends, each begun in its turn by the lane that is free first."""
    ends = [0.0] * lanes
    for seconds in runs:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


def estimates(study: Study, rates: Seconds) -> dict[str, Estimate]:
    """Every stage's wall time."""
    each = counts(study)
    out: dict[str, Estimate] = {}
    if study.base.model == "nano":
        out["base"] = _times(rates, base=study.base.steps)
    for stage, wall in (("sft", sft_wall), ("rl", rl_wall)):
        try:
            out[stage] = Estimate(wall(study, rates))
        except KeyError as error:
            out[stage] = Estimate(None, (str(error.args[0]),))
    out["spectra"] = _times(rates, spectra=each.compared)
    if each.hidden:
        out["hidden"] = _times(rates, hidden=each.hidden)
    if each.edits:
        teams = study.rollout.generators // study.rollout.generators_per_branch
        out["edit"] = _times(rates, edit=each.edits, probe=math.ceil(each.edits / teams))
    out["tables and report"] = _times(rates, close=1)
    return out


def _times(rates: Seconds, **work: int) -> Estimate:
    missing = tuple(name for name in work if name not in rates)
    if missing:
        return Estimate(None, missing)
    return Estimate(sum(rates[name] * count for name, count in work.items()))


def time_lines(study: Study, files: StudyFiles) -> list[str]:
    """For the plan: each stage's time, the total, and where each rate is from."""
    rates = rates_for(study, files.root)
    found = estimates(study, {name: rate.seconds for name, rate in rates.items()})
    known = {stage: one.seconds for stage, one in found.items() if one.seconds is not None}
    parts = ", ".join(f"{stage} {_clock(known[stage]) if stage in known else '?'}" for stage in found)
    missing = dict.fromkeys(name for one in found.values() for name in one.missing)
    if not known:
        return [
            f"time: unknown, no finished study under {str(files.root.parent)!r} has recorded rates for these settings; "
            "--plan --calibrate measures them"
        ]
    total = f"{_clock(sum(known.values()))}{' and what is unknown' if missing else ''}"
    lines = [f"time from nothing on these slots: about {total} ({parts})"]
    if missing:
        lines.append(
            f"not known: seconds of {', '.join(UNITS[name] for name in missing)}; --calibrate measures them"
        )
    return [*lines, *_sources(rates)]


def _sources(rates: Mapping[str, Rate]) -> list[str]:
    by_source: dict[str, list[str]] = {}
    for name, rate in rates.items():
        by_source.setdefault(rate.source, []).append(f"{rate.seconds:.3g} s {UNITS[name]}")
    return [f"rates {source}: {', '.join(some)}" for source, some in by_source.items()]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
