"""The held-out losses of the trunks' checkpoints: one task for each trunk and rule, beside the probes."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray

from rlheals_ray import tables
from rlheals_ray.config import Study, TaskSettings
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.plan_memory import losses_bytes
from rlheals_ray.grid.session import Session
from rlheals_ray.lineage import Trunk
from rlheals_ray.need import Need, Offer
from rlheals_ray.tasks import Problem, ood_rules

Losses = dict[tuple[Trunk, str], ray.ObjectRef]


def start_losses(session: Session, done: Sequence[Trunk]) -> Losses:
    """Score the trunks' checkpoints on held-out ID and OOD demonstrations, where that is not done."""
    study, files = session.study, session.files
    pending = [trunk for trunk in done if not files.is_done(session.units.losses(trunk))]
    if not pending:
        return {}
    session.connect()
    for trunk in pending:
        session.started(session.units.losses(trunk))
    references: Losses = {}
    offers = [Offer.of(node) for node in ray.nodes() if node["Alive"]]
    place = losses_need(study, session.needs["tasks"], offers).options()
    for name, rule in (("id", "id"), ("ood", ood_rules(session.task)[0])):
        problems = probe_problems(session.task, study.evaluation, rule)
        for trunk in pending:
            directories = [files.checkpoint(trunk.checkpoint(step)) for step in study.sft.steps]
            score = _score_losses.options(name=f"losses {trunk.path} {name}", **place)
            references[trunk, name] = score.remote(directories, study.task, problems)
    return references


def losses_need(study: Study, need: Need, offers: Sequence[Offer]) -> Need:
    """What such a task reserves: `need`, and so much memory that no node runs more of them than it has memory for.

    At most what a node has: a model that leaves no room there for a second one is then scored alone. Where the study
    says what learners or generators reserve, its own word on tasks holds: what these leave is not known here, and a
    task that asks for more would wait for ever.
    """
    named = study.resources
    largest = need.most_memory(offers)
    if named.learner.memory_gib or named.generator.memory_gib or not largest:
        return need
    wanted = sum(losses_bytes(study).values())
    return replace(need, memory=max(need.memory, min(wanted, int(largest))))


def finish_losses(session: Session, losses: Losses) -> None:
    """Complete the trunks' rows of tables/sft."""
    for trunk in dict.fromkeys(trunk for trunk, _ in losses):
        unit = session.units.losses(trunk)
        try:
            part = session.files.read_part("sft", session.units.trunk(trunk))
            for name in ("id", "ood"):
                values = pa.array(ray.get(losses[trunk, name]), pa.float64())
                part = part.set_column(part.schema.get_field_index(f"{name}_loss"), f"{name}_loss", values)
        except Exception:
            session.fail(unit.name, traceback.format_exc())
            continue
        session.files.write_part("sft", unit, part.cast(tables.SFT))
        session.done(unit)


@ray.remote(num_cpus=1)
def _score_losses(
    directories: Sequence[Path], task: TaskSettings, problems: Sequence[Problem]
) -> list[float]:
    from rlheals_ray.sft.losses import held_out_losses

    return held_out_losses(directories, task, problems)
