"""The OOD peaks of a study's trunks, what RL healed best, and the checkpoints that edits name by them."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import ood_peak, split_halves
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import Probe
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.sft.names import BASE, trunk_checkpoint


def probed_seeds(session: Session) -> list[int]:
    """The seeds whose whole trunk has been probed, so that their OOD peak is known."""
    files, units = session.files, session.units
    return [
        s for s in session.study.seeds if all(files.is_done(wanted.unit) for wanted in units.trunk_probes(s))
    ]


def peak_step(session: Session, seed: int) -> int:
    """The SFT step of the seed's OOD peak, chosen on one half of the probe problems."""
    probes = session.units.trunk_probes(seed)
    return _best(session, dict(zip(session.study.sft.steps, probes, strict=True)))


def healed_step(session: Session, seed: int, peak: int) -> int | None:
    """The SFT step past the peak from which the most RL leads to the best OOD accuracy, chosen on the same half.

    None while no branch from past the peak is done and probed.
    """
    done = session.files.is_done
    ends = {
        step: session.units.branch_probes(seed, step)[-1]
        for step in finished_branches(session, seed)
        if step > peak
    }
    probed = {step: wanted for step, wanted in ends.items() if done(wanted.unit)}
    return _best(session, probed) if probed else None


def _best(session: Session, probes: Mapping[int, Probe]) -> int:
    """Of probed checkpoints by SFT step, the step of the best OOD accuracy on the half that selects."""
    episodes = pa.concat_tables([session.files.read_part("episodes", p.unit) for p in probes.values()])
    problems, solved = first_attempts(episodes, "ood", [p.checkpoint for p in probes.values()])
    select, report = split_halves(problems, clusters(session))
    curves = {step: solved[:, index] for index, step in enumerate(probes)}
    return ood_peak(curves, select, report).step


def clusters(session: Session) -> dict[str, str]:
    """Problem id to the cluster that statistics resample: deals of one multiset are not independent."""
    problems = [
        p for rule in ("id", "ood") for p in probe_problems(session.task, session.study.evaluation, rule)
    ]
    return {problem.id: problem.group for problem in problems}


def finished_branches(session: Session, seed: int) -> list[int]:
    """The SFT steps whose branch of this seed is done; none when the study has no RL."""
    study, files, units = session.study, session.files, session.units
    if study.rl.budgets[-1] == 0:
        return []
    return [step for step in study.rl.from_steps if files.is_done(units.branch(seed, step))]


def anchors(session: Session, seed: int) -> dict[str, int]:
    """The SFT steps that edits call `peak` and, once there is one, `healed`."""
    peak = peak_step(session, seed)
    healed = healed_step(session, seed, peak)
    return {"peak": peak} | ({} if healed is None else {"healed": healed})


def named_checkpoint(session: Session, seed: int, anchor: str, steps: Mapping[str, int]) -> str | None:
    """The checkpoint that an edit calls `anchor` (config/edits.py); None while its branch is not done.

    steps: as `anchors` finds them.
    """
    study = session.study
    kind, *numbers = anchor.split("-")
    match kind:
        case "base":
            return BASE
        case "peak":
            return trunk_checkpoint(seed, steps["peak"])
        case "latest":
            return trunk_checkpoint(seed, study.sft.steps[-1])
        case "sft":
            return trunk_checkpoint(seed, int(numbers[0]))
        case "healed":
            start = steps.get("healed")
            return None if start is None else branch_checkpoint(seed, start, study.rl.budgets[-1])
    start, budget = map(int, numbers)
    done = session.files.is_done(session.units.branch(seed, start))
    return branch_checkpoint(seed, start, budget) if done else None
