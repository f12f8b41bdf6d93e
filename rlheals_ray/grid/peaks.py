"""The OOD peaks of a study's trunks, and the checkpoints that edits name by them."""

from __future__ import annotations

import pyarrow as pa

from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import ood_peak, split_halves
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.session import Session
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
    episodes = pa.concat_tables([session.files.read_part("episodes", wanted.unit) for wanted in probes])
    problems, solved = first_attempts(episodes, "ood", [wanted.checkpoint for wanted in probes])
    select, report = split_halves(problems, clusters(session))
    curves = {step: solved[:, index] for index, step in enumerate(session.study.sft.steps)}
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


def named_checkpoint(session: Session, seed: int, anchor: str, peak: int) -> str | None:
    """The checkpoint that an edit calls `anchor` (config/edits.py); None while its branch is not done."""
    kind, *steps = anchor.split("-")
    numbers = [int(step) for step in steps]
    match kind:
        case "base":
            return BASE
        case "peak":
            return trunk_checkpoint(seed, peak)
        case "latest":
            return trunk_checkpoint(seed, session.study.sft.steps[-1])
        case "sft":
            return trunk_checkpoint(seed, numbers[0])
    done = session.files.is_done(session.units.branch(seed, numbers[0]))
    return branch_checkpoint(seed, numbers[0], numbers[1]) if done else None
