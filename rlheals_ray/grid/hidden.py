"""The stage about what checkpoints compute: hidden states and output distributions, on the same prompts for all.

Tasks of one CPU and one thread, each taking several checkpoints; resumable per checkpoint and per measure.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from rlheals_ray.evaluation.asked import Asked, ask_base, asked_of
from rlheals_ray.evaluation.collected import Order, collect, fingerprint_of
from rlheals_ray.evaluation.probe import probe_problems
from rlheals_ray.grid.hidden_tables import Places, hidden_tables
from rlheals_ray.grid.peaks import peak_step, probed_trunks
from rlheals_ray.grid.probes import side_by_side
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.units import Probe
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.need import Need, Offer
from rlheals_ray.storage import Unit, write_parquet
from rlheals_ray.tasks import rules_of

HIDDEN = "hidden"
"""Where a study keeps what was collected of each checkpoint."""
FIXED_BYTES, BYTES_PER_PARAMETER = 1 << 30, 5
"""Memory of a task: the process with its states, and a float32 model beside the base's head."""


def hidden_stage(session: Session) -> None:
    """Collect from every probed checkpoint of the map; measure likeness, paths and shift; leave the three tables."""
    if session.study.hidden is None:
        return
    files, wanted = session.files, _existing(session)
    pending = [probe for probe in wanted if not states_are_collected(session, probe)]
    if pending:
        session.connect()
        _collect(session, wanted, pending, _asked(session))
    unit = hidden_unit(session)
    if unit is None or files.is_done(unit):
        return
    files.begin(unit)
    session.connect()
    places = Places(
        [probe for probe in wanted if states_are_collected(session, probe)],
        [_file(session, probe.checkpoint) for probe in wanted if states_are_collected(session, probe)],
        _peaks(session),
    )
    need = session.needs["tasks"]
    for name, table in hidden_tables(session.study, places, _asked(session), need).items():
        files.write_part(name, unit, table)
    files.mark_done(unit)


def hidden_unit(session: Session) -> Unit | None:
    """The measures of what has been collected; None where nothing was, or the study wants none."""
    if session.study.hidden is None:
        return None
    collected = [
        session.units.hidden_states(probe)
        for probe in _existing(session)
        if states_are_collected(session, probe)
    ]
    return session.units.hidden(collected, _peaks(session)) if collected else None


def _existing(session: Session) -> list[Probe]:
    """The map's checkpoints that are there, made from the study's settings."""
    return [p for p in session.units.probes() if session.files.holds(p.checkpoint, p.made_by)]


def _peaks(session: Session) -> dict[Trunk, int]:
    return {trunk: peak_step(session, trunk) for trunk in probed_trunks(session)}


def _file(session: Session, checkpoint: str) -> Path:
    return session.files.root / HIDDEN / f"{checkpoint}.safetensors"


def states_are_collected(session: Session, probe: Probe) -> bool:
    """Whether the checkpoint's hidden states are there, collected as the study wants them."""
    # The file's own fingerprint is its marker: one write, nothing to disagree with.
    return fingerprint_of(_file(session, probe.checkpoint)) == session.units.hidden_states(probe).fingerprint


def _asked(session: Session) -> list[Asked]:
    """What every checkpoint is asked; the base is asked first, where that is not done."""
    study, files, unit = session.study, session.files, session.units.hidden_answers()
    path = files.root / HIDDEN / "answers.parquet"
    if not files.is_done(unit):
        assert study.hidden is not None
        problems = [
            problem
            for rule in rules_of(session.task)
            for problem in probe_problems(session.task, study.evaluation, rule)[: study.hidden.problems]
        ]
        files.begin(unit)
        session.started(unit)
        session.pool.wait_ready()
        base = files.checkpoint(BASE)
        samples, limit = study.hidden.samples, study.evaluation.max_new_tokens
        write_parquet(path, ask_base(session.pool, base, unit.fingerprint, problems, samples, limit))
        session.done(unit)
    return asked_of(pq.read_table(path))


def _collect(
    session: Session, wanted: Sequence[Probe], pending: Sequence[Probe], asked: Sequence[Asked]
) -> None:
    """Deal the checkpoints over as many tasks as there are slots, each of which reads the base once."""
    assert session.study.hidden is not None
    progress = StageProgress(HIDDEN, len(wanted), "checkpoints")
    progress.skip(len(wanted) - len(pending))
    base, last_tokens = str(session.files.checkpoint(BASE)), session.study.hidden.last_tokens
    held = ray.put(list(asked))
    resources = _resources(base, session.needs["tasks"])

    def one(share: Sequence[Probe]) -> None:
        left = list(share)
        task = _collect_share.options(
            name=f"hidden {share[0].checkpoint} and {len(share) - 1} more", **resources
        )
        try:
            orders = [_order(session, probe) for probe in share]
            for reference in task.remote(orders, base, held, last_tokens):
                failure, probe = ray.get(reference), left.pop(0)
                if failure:
                    session.fail(session.units.hidden_states(probe).name, failure)
                else:
                    session.events.unit(session.units.hidden_states(probe).name, "done")
                progress.advance(note=probe.checkpoint)
        except Exception:  # the process is gone, again and again
            cause = traceback.format_exc()
            for probe in left:
                session.fail(session.units.hidden_states(probe).name, cause)

    slots = min(session.task_slots, len(pending))
    side_by_side(one, [pending[slot::slots] for slot in range(slots)], slots)
    progress.end()


def _resources(base: str, need: Need) -> dict[str, Any]:
    """What a task asks Ray for: `need`, and so much memory that no node runs more of them than it has memory for.

    Raises RuntimeError where no node has the memory for one, which Ray would wait for in vain.
    """
    from rlheals_ray.models.checkpoint import Checkpoint

    checkpoint = Checkpoint(base)
    parameters = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    memory = max(need.memory, FIXED_BYTES + BYTES_PER_PARAMETER * parameters)
    largest = need.most_memory(Offer.of(node) for node in ray.nodes() if node["Alive"])
    if memory > largest:
        raise RuntimeError(
            f"hidden states need {memory / 2**30:.1f} GiB for one checkpoint in float32, and the largest node for "
            f"tasks ({need}) offers {largest / 2**30:.1f} GiB; add a larger node, or set hidden=null"
        )
    return need.options() | {"memory": memory}


def _order(session: Session, probe: Probe) -> Order:
    directory, out = session.files.checkpoint(probe.checkpoint), _file(session, probe.checkpoint)
    return Order(str(directory), str(out), session.units.hidden_states(probe).fingerprint)


@ray.remote(num_cpus=1, num_returns="streaming")
def _collect_share(orders: list[Order], base: str, asked: list[Asked], last_tokens: int) -> Iterator[Any]:
    import torch

    torch.set_num_threads(1)
    yield from collect(orders, base, asked, last_tokens)
