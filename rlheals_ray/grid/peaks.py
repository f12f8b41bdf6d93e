"""The OOD peaks of a study's trunks, what RL healed best, and the checkpoints that edits name by them."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from rlheals_ray.evaluation.outcomes import first_attempts
from rlheals_ray.evaluation.peak import ood_peak, split_halves
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import Probe
from rlheals_ray.lineage import BASE, Branch, Trunk, branches_of, trunks
from rlheals_ray.tasks import ood_rules, rules_of


def probed_trunks(session: Session) -> list[Trunk]:
    """The trunks that have been probed as a whole, so that their OOD peak is known."""
    files, units = session.files, session.units
    return [
        trunk
        for trunk in trunks(session.study)
        if all(files.is_done(wanted.unit) for wanted in units.trunk_probes(trunk))
    ]


def peak_step(session: Session, trunk: Trunk) -> int:
    """The SFT step of the trunk's OOD peak, chosen on one half of the probe problems."""
    probes = session.units.trunk_probes(trunk)
    return _best(session, dict(zip(session.study.sft.steps, probes, strict=True)))


def healed_step(session: Session, trunk: Trunk, peak: int) -> int | None:
    """The SFT step past the peak from which the most RL leads to the best OOD accuracy, chosen on the same half.

    None while no branch from past the peak is done and probed.
    """
    done = session.files.is_done
    ends = {
        branch.sft_step: session.units.branch_probes(branch)[-1]
        for branch in finished_branches(session, trunk)
        if branch.sft_step > peak
    }
    probed = {step: wanted for step, wanted in ends.items() if done(wanted.unit)}
    return _best(session, probed) if probed else None


def _best(session: Session, probes: Mapping[int, Probe]) -> int:
    """The SFT step of the best accuracy of the first OOD rule on the selecting half."""
    episodes = pa.concat_tables([session.files.read_part("episodes", p.unit) for p in probes.values()])
    first = ood_rules(session.task)[0]
    problems, solved = first_attempts(episodes, first, [p.checkpoint for p in probes.values()])
    select, report = split_halves(problems, clusters(session))
    curves = {step: solved[:, index] for index, step in enumerate(probes)}
    return ood_peak(curves, select, report).step


def clusters(session: Session) -> dict[str, str]:
    """Problem id to the cluster that statistics resample: deals of one multiset are not independent."""
    problems = [
        p
        for rule in rules_of(session.task)
        for p in probe_problems(session.task, session.study.evaluation, rule)
    ]
    return {problem.id: problem.group for problem in problems}


def finished_branches(session: Session, trunk: Trunk) -> list[Branch]:
    """The RL branches of this trunk that are done and came to the last budget; none when the study has no RL."""
    files, units, last = session.files, session.units, session.study.rl.budgets[-1]
    return [
        branch
        for branch in branches_of(session.study, trunk)
        if files.is_done(unit := units.branch(branch))
        and files.holds(branch.checkpoint(last), unit.fingerprint)
    ]


def anchors(session: Session, trunk: Trunk) -> dict[str, int]:
    """The SFT steps that edits call `peak` and, once there is one, `healed`."""
    peak = peak_step(session, trunk)
    healed = healed_step(session, trunk, peak)
    return {"peak": peak} | ({} if healed is None else {"healed": healed})


def named_checkpoint(session: Session, trunk: Trunk, anchor: str, steps: Mapping[str, int]) -> str | None:
    """The checkpoint that an edit calls `anchor` (config/edits.py); None while its branch is not done.

    steps: as `anchors` finds them.
    """
    study = session.study
    kind, *numbers = anchor.split("-")
    match kind:
        case "base":
            return BASE
        case "peak":
            return trunk.checkpoint(steps["peak"])
        case "latest":
            return trunk.checkpoint(study.sft.steps[-1])
        case "sft":
            return trunk.checkpoint(int(numbers[0]))
        case "healed":
            start = steps.get("healed")
            if start is None:
                return None
            return Branch(trunk, start, study.rl.algorithm).checkpoint(study.rl.budgets[-1])
    start, budget = map(int, numbers)
    branch = Branch(trunk, start, study.rl.algorithm)
    made = session.files.holds(branch.checkpoint(budget), session.units.branch(branch).fingerprint)
    return branch.checkpoint(budget) if made else None
