"""The stage that tests cause against correlation: every edit with its controls, written and probed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlheals_ray import tables
from rlheals_ray.config import EditSettings, EditVariant, InputError, edit_kinds
from rlheals_ray.grid.peaks import anchors, named_checkpoint, probed_trunks
from rlheals_ray.grid.probes import probe_all
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.spectra import FACTORS
from rlheals_ray.grid.units import Probe, edit_group
from rlheals_ray.lineage import BASE
from rlheals_ray.storage import StudyFiles, Unit

if TYPE_CHECKING:
    from rlheals_ray.spectra.edit import Edit, EditReport
    from rlheals_ray.spectra.orders import Order

PIECES = "pieces"
"""Where edited matrices wait to be linked into their checkpoints."""


@dataclass(frozen=True)
class PlannedEdit:
    """One checkpoint to be written by an edit or a control: its unit, its probe, and whose it is."""

    unit: Unit
    probe: Probe
    edit: Edit
    donor: str
    recipient: str
    groups: tuple[tuple[str, EditVariant], ...]
    """The edits that it belongs to, as itself or as a control: a weight swap serves all of the same matrices."""


def planned_edits(session: Session) -> list[PlannedEdit]:
    """Every edit and control of the trunks whose peak is known and whose branches are done.

    None where donor and recipient turn out to be one checkpoint, as when the peak is the latest.
    """
    planned: dict[str, PlannedEdit] = {}
    for trunk in probed_trunks(session):
        steps = anchors(session, trunk)
        for settings in session.study.edits:
            donor, recipient = (
                named_checkpoint(session, trunk, anchor, steps)
                for anchor in (settings.donor, settings.recipient)
            )
            if donor is None or recipient is None or donor == recipient:
                continue
            for variant in settings.variants(session.study.spectra.roles):
                group = (edit_group(trunk, settings, variant, session.study.spectra.roles), variant)
                for kind in edit_kinds(variant.factors):
                    unit, probe = session.units.edit(trunk, settings, variant, kind, steps)
                    before = planned.get(unit.name)
                    planned[unit.name] = PlannedEdit(
                        unit,
                        probe,
                        _edit(session, settings, variant, kind, trunk.seed, donor, recipient),
                        donor,
                        recipient,
                        (*(before.groups if before else ()), group),
                    )
    return list(planned.values())


def _edit(
    session: Session,
    settings: EditSettings,
    variant: EditVariant,
    kind: str,
    seed: int,
    donor: str,
    recipient: str,
) -> Edit:
    from rlheals_ray.models.checkpoint import Checkpoint
    from rlheals_ray.spectra.edit import Edit
    from rlheals_ray.spectra.roles import locate

    directory = session.files.checkpoint(recipient)
    layers = None
    if variant.blocks != 1:
        # The base has the same layers, and is there even where the recipient was removed (retention.py).
        base = Checkpoint(session.files.checkpoint(BASE))
        places = [place for name in base.names() if (place := locate(name))]
        layers = variant.layers(1 + max(layer for layer, _ in places if layer is not None))
    return Edit(
        donor_directory=str(session.files.checkpoint(donor)),
        recipient_directory=str(directory),
        factors=variant.factors,
        k=variant.k,
        mode=variant.mode,
        part=variant.part,
        t=variant.t,
        roles=variant.roles,
        layers=layers,
        kind=kind,
        seed=seed,
    )


def edit_stage(session: Session) -> None:
    """Every edit with its controls: write the checkpoints together, probe them, leave the rows of tables/edits."""
    files = session.files
    plans = planned_edits(session)
    pending = [plan for plan in plans if not files.is_done(plan.unit)]
    if pending:
        _write(session, pending)
    written = [plan for plan in plans if files.is_done(plan.unit)]
    probe_all(session, [plan.probe for plan in written], "probe edits")
    for plan in written:
        if files.is_done(plan.probe.unit):
            files.write_part("edits", plan.unit, _rows(files, plan))


def _write(session: Session, pending: list[PlannedEdit]) -> None:
    from rlheals_ray.spectra.ablation import Order, run_edits

    files = session.files
    session.connect()
    progress = StageProgress("edit", len(pending), "checkpoints")
    orders = []
    for plan in pending:
        files.begin(plan.unit, plan.probe.checkpoint)
        session.started(plan.unit)
        orders.append(Order(plan.edit, str(files.checkpoint(plan.probe.checkpoint)), files.stamps(plan.unit)))
    factors, pieces, slots = str(files.root / FACTORS), str(files.root / PIECES), session.task_slots
    need = session.needs["tasks"]
    spread: dict[str, Any] = {"concurrency": slots, "num_cpus": need.cpus, "memory": need.memory}
    spread["labels"] = need.labels
    reports = by_pair(orders, lambda some: run_edits(some, factors, pieces, **spread))
    for plan, report in zip(pending, reports, strict=True):
        if isinstance(report, str):
            session.fail(plan.unit.name, report)
        else:
            session.done(plan.unit, **asdict(report))
    progress.advance(len(pending))
    progress.end()
    # What checkpoints took of them they hold by links; what failed is made again.
    shutil.rmtree(files.root / PIECES, ignore_errors=True)


def by_pair(
    orders: Sequence[Order], run: Callable[[Sequence[Order]], list[EditReport | str]]
) -> list[EditReport | str]:
    """What `run` reports of each order; where it refuses them together, of each donor and recipient apart.

    A diverged checkpoint so costs the edits that need it, and no others.
    """
    try:
        return run(orders)
    except InputError as error:
        pairs = [(order.edit.donor_directory, order.edit.recipient_directory) for order in orders]
        if len(set(pairs)) == 1:
            return [str(error)] * len(orders)
    reports: dict[int, EditReport | str] = {}
    for pair in dict.fromkeys(pairs):
        mine = [index for index, of in enumerate(pairs) if of == pair]
        reports.update(zip(mine, by_pair([orders[index] for index in mine], run), strict=True))
    return [reports[index] for index in range(len(orders))]


def _rows(files: StudyFiles, plan: PlannedEdit) -> pa.Table:
    details = files.details(plan.unit)
    found = {name: details[name] for name in ("projection", "residual", "smallest", "delta_norm")}
    measured = ("rule", "n", "acc_1", "acc_1_low", "acc_1_high", "acc_k")
    scores = files.read_part("scores", plan.probe.unit).to_pylist()
    return tables.table(
        "edits",
        [
            _columns(plan, group, variant) | found | {column: score[column] for column in measured}
            for group, variant in plan.groups
            for score in scores
        ],
    )


def _columns(plan: PlannedEdit, group: str, variant: EditVariant) -> dict[str, Any]:
    return {
        "edit": plan.unit.name.removeprefix("edit/"),
        "group": group,
        "recipe": plan.probe.recipe,
        "seed": plan.probe.seed,
        "donor": plan.donor,
        "recipient": plan.recipient,
        "kind": plan.edit.kind,
        "mode": variant.mode,
        "factors": variant.factors,
        "part": variant.part,
        "k": variant.k if isinstance(variant.k, int) else None,
        "k_fraction": variant.k if isinstance(variant.k, float) else None,
        "t": variant.t,
        "layers": None if plan.edit.layers is None else list(plan.edit.layers),
        "roles": list(plan.edit.roles),
    }
