"""Edits arranged for reading: each beside its controls over the seeds, and in rows along what varies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rlheals_ray.evaluation.statistics import wilson
from rlheals_ray.report.comparisons import checkpoint_label
from rlheals_ray.report.paired import Paired
from rlheals_ray.report.results import Accuracies, Row, Tables, place_of

CONTROL_KINDS = ("weight_swap", "interpolation", "random_angle", "random_norm")
AXES = ("t", "k", "layers", "roles", "mode")
"""What a grid of edits varies, in the order in which figures ask."""
_CHOSEN = {"peak": "the OOD peak", "healed": "where RL healed best"}
"""Anchors that OOD accuracy chose, in words."""
HELD_OUT = (
    "Where donor or recipient is the OOD peak or where RL healed best, OOD accuracies are over the half of the "
    "problems that had no say in choosing it; edits.parquet holds those over all."
)
CHOSEN = (
    "The OOD peak, and where RL healed best, were chosen on half of these OOD problems: that flatters such a donor or "
    "recipient, and edits and controls that take after it."
)
"""Instead, where the other half is not known: no episodes or no task to tell it, or one cluster."""


class Bar(NamedTuple):
    """An accuracy@1, its interval and how many problems it rests on; means over seeds."""

    value: float
    low: float | None
    high: float | None
    n: int | None


class Way(NamedTuple):
    """How far along donor − recipient a change goes, and how large it is; means over seeds."""

    projection: float | None
    residual: float | None
    smallest: float | None
    delta_norm: float | None


class EditGroup(NamedTuple):
    """One edit over its seeds, with its controls."""

    donor: str
    recipient: str
    factors: str | None
    part: str
    mode: str
    k: int | float | None
    """A number of directions, a fraction of them, or None for all."""
    t: float
    layers: tuple[int, ...] | None
    roles: tuple[str, ...]
    bars: Mapping[str, Mapping[str, Bar]]
    """By rule, then by kind; "recipient" and "donor" stand among the kinds."""
    ways: Mapping[str, Way]
    """By kind."""
    checkpoints: Mapping[str, Mapping[int | None, str]]
    """By kind, then by seed: the checkpoint's name in `episodes`."""
    held_out: bool = False
    """Whether the OOD bars are over the half of the problems that chose neither donor nor recipient."""

    @property
    def label(self) -> str:
        which = "" if self.mode == "concatenate" else f", {self.mode}"
        turn = "" if self.t == 1 else f", t = {self.t:g}"
        named = f", {' '.join(self.roles)}" if self.roles else ""
        return (
            f"{self.factors or 'factors'} of {self.donor} in {self.recipient}, {directions(self.k, self.part)}"
            f"{turn}{which}, {layer_label(self.layers)}{named}"
        )

    @property
    def chosen(self) -> bool:
        """Whether donor or recipient was chosen by its accuracy on half of the OOD problems."""
        return not {self.donor, self.recipient}.isdisjoint(_CHOSEN.values())

    @property
    def episodes(self) -> set[str]:
        """The names in `episodes` of all its checkpoints."""
        return {name for by_seed in self.checkpoints.values() for name in by_seed.values()}

    @property
    def projection(self) -> float | None:
        return self.ways["edit"].projection if "edit" in self.ways else None

    @property
    def residual(self) -> float | None:
        return self.ways["edit"].residual if "edit" in self.ways else None

    def coordinate(self, axis: str) -> Any:
        return getattr(self, axis)

    def others(self, axis: str) -> tuple[Any, ...]:
        """Everything that the edit is, apart from one axis; and which problems its accuracies are over."""
        names = ("donor", "recipient", "factors", "part", "held_out", *(n for n in AXES if n != axis))
        return tuple(getattr(self, name) for name in names)


def directions(k: int | float | None, part: str = "top") -> str:
    """How many singular directions, in words."""
    if k is None:
        return "all directions"
    side = "last" if part == "tail" else "top"
    return f"{side} {100 * k:g} % of the directions" if isinstance(k, float) else f"{side} {k} directions"


def layer_label(layers: Sequence[int] | None) -> str:
    if not layers:
        return "all layers"
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {min(layers)} to {max(layers)}"


def chosen_words(groups: Iterable[EditGroup]) -> str:
    """What is to be said of the problems behind the groups' accuracies; empty where nothing was chosen by them."""
    of = {group.held_out for group in groups if group.chosen}
    return "".join(f" {words}" for held_out, words in ((True, HELD_OUT), (False, CHOSEN)) if held_out in of)


def edit_groups(
    tables: Tables, accuracies: Accuracies, clusters: Mapping[str, str] | None = None
) -> list[EditGroup]:
    """Edits grouped over seeds by what they put where, each with its controls.

    Where donor or recipient was chosen by OOD accuracy, OOD bars are over the problems that had no say in it, if the
    episodes tell (`clusters`: of their problems, as `Paired` takes them); all others are the tables', over all.
    A control joins the edit of its `group`; in tables without groups, the edit that has the same seed, donor,
    recipient, k, layers, roles and, where it names any, factors.
    """
    every = [row for row in tables["edits"].to_pylist() if row["acc_1"] is not None]
    scores = {
        (row["checkpoint"], row["rule"]): row
        for row in tables["scores"].to_pylist()
        if row["acc_1"] is not None
    }
    families: dict[tuple[object, ...], list[Row]] = {}
    members: dict[str, list[Row]] = {}
    for row in every:
        if row["kind"] == "edit":
            families.setdefault(_family(row), []).append(row)
        elif row["kind"] and row["group"]:
            members.setdefault(row["group"], []).append(row)
    loose = [row for row in every if row["kind"] not in (None, "edit") and not row["group"]]
    found = []
    for edits in families.values():
        names = {row["group"] for row in edits}
        controls = [row for name in names if name for row in members.get(name, ())]
        if None in names:
            ends = {_ends(row) for row in edits}
            controls += [r for r in loose if _ends(r) in ends and r["factors"] in (None, edits[0]["factors"])]
        found.append(_group(edits, controls, scores, accuracies))
    names = {name for group in found if group.chosen for name in group.episodes}
    paired = Paired(tables["episodes"], names, clusters)
    return [_held_out(group, paired) if group.chosen else group for group in found]


def _held_out(group: EditGroup, paired: Paired) -> EditGroup:
    """With OOD bars over problems that chose neither end; unchanged where a checkpoint has no episodes of them."""
    bars = {}
    for kind in group.bars["ood"]:
        counts = [paired.solved(name) for name in group.checkpoints.get(kind, {}).values()]
        known = [count for count in counts if count is not None]
        if not known or len(known) < len(counts):
            return group
        low, high = (fmean(bounds) for bounds in zip(*(wilson(*count) for count in known), strict=True))
        bars[kind] = Bar(fmean(solved / n for solved, n in known), low, high, known[0][1])
    return group._replace(bars={**group.bars, "ood": bars}, held_out=True)


def _group(
    edits: Sequence[Row],
    controls: Sequence[Row],
    scores: Mapping[tuple[str, str], Row],
    accuracies: Accuracies,
) -> EditGroup:
    bars: dict[str, dict[str, Bar]] = {}
    for rule in ("ood", "id"):
        here = [row for row in edits if row["rule"] == rule]
        kinds: dict[str, list[Row]] = {
            end: [score for row in here if (score := _score_of(row, end, scores, accuracies))]
            for end in ("recipient", "donor")
        }
        kinds["edit"] = here
        for row in controls:
            if row["rule"] == rule:
                kinds.setdefault(row["kind"], []).append(row)
        bars[rule] = {name: _bar(mine) for name, mine in kinds.items() if mine}
    by_kind: dict[str, list[Row]] = {}
    names: dict[str, dict[int | None, str]] = {}
    for row in [*edits, *controls]:
        by_kind.setdefault(row["kind"], []).append(row)
        names.setdefault(row["kind"], {})[row["seed"]] = f"edit/{row['edit']}"
        if row["kind"] == "edit":
            for end in ("donor", "recipient"):
                if row[end]:
                    names.setdefault(end, {})[row["seed"]] = row[end]
    one = edits[0]
    return EditGroup(
        _anchor(edits, "donor"),
        _anchor(edits, "recipient"),
        one["factors"],
        one["part"] or "top",
        one["mode"] if one["mode"] not in (None, "top") else "concatenate",
        one["k"] if one["k"] is not None else one["k_fraction"],
        1.0 if one["t"] is None else one["t"],
        None if not one["layers"] else tuple(one["layers"]),
        tuple(one["roles"] or ()),
        bars,
        {kind: _way(rows) for kind, rows in by_kind.items()},
        names,
    )


class EditSeries(NamedTuple):
    """Edits that differ in one thing alone."""

    axis: str
    label: str
    groups: tuple[EditGroup, ...]


def rows_along(groups: Iterable[EditGroup], axis: str) -> list[EditSeries]:
    """Every family of at least two edits that differ in `axis` alone, along it; the longest families first."""
    families: dict[tuple[Any, ...], list[EditGroup]] = {}
    for group in groups:
        families.setdefault(group.others(axis), []).append(group)
    several = [mine for mine in families.values() if len({g.coordinate(axis) for g in mine}) > 1]
    several.sort(key=lambda mine: -len(mine))
    names = [name for name in ("donor", "recipient", "factors", "part", *AXES) if name != axis]
    # A family is named by that in which the families differ.
    telling = [name for name in names if len({getattr(mine[0], name) for mine in several}) > 1]
    return [
        EditSeries(
            axis,
            ", ".join(text for name in telling if (text := _words(name, mine[0]))) or "all",
            tuple(sorted(mine, key=lambda group: _order(axis, group))),
        )
        for mine in several
    ]


def _words(name: str, group: EditGroup) -> str:
    match name:
        case "k":
            return directions(group.k, group.part)
        case "layers":
            return layer_label(group.layers)
        case "roles":
            return " ".join(group.roles)
        case "t":
            return f"t = {group.t:g}"
        case "donor" | "recipient":
            return f"{'of' if name == 'donor' else 'in'} {getattr(group, name)}"
        case "part":
            return "" if group.part == "top" else "tail"
    return str(getattr(group, name))


def _order(axis: str, group: EditGroup) -> Any:
    match axis:
        case "k":  # numbers, then fractions, then all
            return (group.k is None, isinstance(group.k, float), group.k or 0)
        case "layers":
            return group.layers or (-1,)
        case "mode":
            modes = ("concatenate", "orthonormal", "rotate")
            return modes.index(group.mode) if group.mode in modes else len(modes)
    return group.coordinate(axis)


def _family(row: Row) -> tuple[object, ...]:
    """What an edit is apart from its seed."""
    if row["group"]:
        return (re.sub(r"(^|_)seed=-?\d+(_|$)", r"\1", row["group"]),)
    return (row["factors"], row["mode"], _unseeded(row["recipient"]), *_where(row))


def _where(row: Row) -> tuple[object, ...]:
    return (row["k"], tuple(row["layers"] or ()), tuple(row["roles"] or ()))


def _ends(row: Row) -> tuple[object, ...]:
    return (row["seed"], row["donor"], row["recipient"], *_where(row))


def _unseeded(checkpoint: str | None) -> tuple[object, ...]:
    """What a checkpoint is apart from its seed, so that the seeds of one edit meet."""
    place = place_of(checkpoint)
    return (checkpoint,) if place is None else (place.sft_step, place.rl_step)


def _anchor(edits: Sequence[Row], end: str) -> str:
    """Donor or recipient in words: as the study's group calls it, else by the seeds' checkpoints."""
    named = re.search(
        r"(^|_)(?P<anchor>peak|healed)-into-" if end == "donor" else r"-into-(?P<anchor>peak|healed)_",
        edits[0]["group"] or "",
    )
    if named:
        return _CHOSEN[named["anchor"]]
    labels = dict.fromkeys(checkpoint_label(row[end]) for row in edits if row[end])
    return " or ".join(labels) or f"the {end}"


def _mean(group: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in group if row[column] is not None]
    return fmean(values) if values else None


def _bar(group: Sequence[Row]) -> Bar:
    low, high = _mean(group, "acc_1_low"), _mean(group, "acc_1_high")
    return Bar(fmean(row["acc_1"] for row in group), low, high, group[0]["n"])


def _way(group: Sequence[Row]) -> Way:
    return Way(*(_mean(group, column) for column in Way._fields))


def _score_of(
    row: Row, end: str, scores: Mapping[tuple[str, str], Row], accuracies: Accuracies
) -> Row | None:
    """Score of an edit's donor or recipient: by its checkpoint's name, else by the place that it names."""
    exact = scores.get((row[end], row["rule"]))
    place = place_of(row[end])
    if exact is not None or place is None:
        return exact
    seed = place.seed if place.seed is not None else row["seed"]
    return accuracies.row(row["rule"], seed or 0, place.sft_step, place.rl_step)
