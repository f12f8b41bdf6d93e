"""What a study may choose about GeneralPoints, and which choices do not go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from rlheals_ray.tasks.deals import reachable
from rlheals_ray.tasks.points_rules import ID_FACES, OOD_RULES, id_terms
from rlheals_ray.tasks.wording import LARGEST_WORD

Target = Annotated[int, Field(strict=True, ge=1, le=9999)]
OodName = Literal["faces", "other_faces", "larger", "target", "wording"]
Share = Annotated[float, Field(strict=True)]
Cards = Annotated[int, Field(strict=True, ge=2, le=6)]
FaceValue = Annotated[int, Field(strict=True, ge=1, le=99)]


class GeneralPointsOptions(BaseModel):
    """What a study may choose about the game."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cards: Cards = 4
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = (24,)
    wording: Literal["compact", "paper"] = "paper"
    additive_penalties: Annotated[bool, Field(strict=True)] = False
    """Add up the penalties of an answer, as the published code does, instead of taking the most severe."""
    held_out: Annotated[Share, Field(gt=0, lt=1)] = 0.4
    """Share of the ID (target, multiset of values) groups that evaluation keeps for itself."""
    second_solution: Annotated[Share, Field(ge=0, le=1)] = 0.3
    """Probability that a demonstration shows the second-shortest formula (see spellings.py)."""
    ood: OodName | Annotated[tuple[OodName, ...], Field(min_length=1)] = "faces"
    """How the OOD rule differs, or the OOD rules, each then called by its name here: J, Q, K count as 11, 12, 13; as
    `ood_faces`; `ood_cards` are dealt; they are to make `ood_targets`; `wording`: the trained rule on new hands, in
    sentences that training never has (points_phrasing.py). See `deals.groups` for what keeps clear of training."""
    ood_faces: Annotated[tuple[FaceValue, FaceValue, FaceValue] | None, Field(validate_default=True)] = None
    ood_cards: Annotated[Cards | None, Field(validate_default=True)] = None
    ood_targets: Annotated[tuple[Target, ...] | None, Field(min_length=1, validate_default=True)] = None
    phrasing: Literal["fixed", "diverse"] = "fixed"
    """Whether every prompt is worded alike or each problem has its own of the many wordings of points_phrasing.py."""

    @field_validator("targets", "ood_targets")
    @classmethod
    def _distinct(cls, targets: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if targets and len(set(targets)) != len(targets):
            raise ValueError(f"targets must be distinct; write {sorted(set(targets))}")
        return targets

    @field_validator("ood_faces", "ood_cards", "ood_targets")
    @classmethod
    def _goes_with_the_rule(cls, value: Any, info: ValidationInfo) -> Any:
        if any(name not in info.data for name in _EARLIER):  # one of them is wrong, and is reported by itself
            return value
        rule = next(name for name, each in OOD_RULES.items() if each.option == info.field_name)
        if rule in _names(info.data["ood"]):
            if value is None:
                raise ValueError(f"ood {rule} needs it; for example {info.field_name}={_EXAMPLES[rule]}")
            _CHECKS[rule](value, info.data)
            _check_reachable(value, rule, info)
        elif value is not None:
            chosen = ", ".join(_names(info.data["ood"]))
            raise ValueError(f"ood {chosen} has no use for it; leave it out or write ood={rule}")
        return value

    @field_validator("phrasing")
    @classmethod
    def _has_words_for_it(cls, phrasing: str, info: ValidationInfo) -> str:
        if phrasing == "diverse" and info.data.get("wording") == "compact":
            raise ValueError(
                "the compact wording has one phrasing, its vocabulary being closed; write phrasing=fixed or "
                "wording=paper"
            )
        return phrasing

    @field_validator("ood")
    @classmethod
    def _once_each(cls, ood: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        if "wording" in _names(ood) and info.data.get("wording") == "compact":
            raise ValueError(
                "the compact wording has one phrasing, so that there are no other sentences to ask in; write "
                "wording=paper or leave the rule wording out"
            )
        if len(set(_names(ood))) != len(_names(ood)):
            raise ValueError(f"each rule is named once; write {sorted(set(_names(ood)))}")
        return ood

    @property
    def ood_rules(self) -> dict[str, str]:
        """The OOD rules of the task: rule -> its line of OOD_RULES. One alone is called `ood`."""
        return {"ood": self.ood} if isinstance(self.ood, str) else {name: name for name in self.ood}

    def declared(self) -> dict[str, Any]:
        """What a fingerprint depends on: options that came later count only where they differ from the default."""
        later = {"ood", "ood_faces", "ood_cards", "ood_targets", "phrasing"}
        every = self.model_dump(mode="json")
        return {
            name: value
            for name, value in every.items()
            if name not in later or value != type(self).model_fields[name].default
        }


def _names(ood: str | tuple[str, ...]) -> tuple[str, ...]:
    return (ood,) if isinstance(ood, str) else ood


_EARLIER = ("cards", "targets", "wording", "held_out", "ood")
_EXAMPLES = {"other_faces": "[5,7,9]", "larger": 5, "target": "[36]"}


def _check_faces(faces: tuple[int, int, int], chosen: dict[str, Any]) -> None:
    ten = ID_FACES[0]
    if ten in faces:
        raise ValueError(
            f"under the trained rule J, Q and K count as {ten}, and the OOD rule must differ in each of the three; "
            f"write any numbers but {ten}"
        )
    if chosen["wording"] == "compact" and max(faces) > LARGEST_WORD:
        raise ValueError(
            f"the compact wording has no word for a card above {LARGEST_WORD}; write smaller numbers or wording=paper"
        )


def _check_cards(cards: int, chosen: dict[str, Any]) -> None:
    if cards <= chosen["cards"]:
        remedy = (
            f"write {chosen['cards'] + 1} or more, up to 6"
            if chosen["cards"] < 6
            else "write cards=5 or fewer"
        )
        raise ValueError(f"the trained rule deals {chosen['cards']} cards, and larger means more; {remedy}")


def _check_targets(targets: tuple[int, ...], chosen: dict[str, Any]) -> None:
    if both := sorted(set(targets) & set(chosen["targets"])):
        raise ValueError(f"{both} are trained on, being targets; write others")
    if chosen["wording"] == "compact" and max(targets) > LARGEST_WORD:
        raise ValueError(
            f"the compact vocabulary has the trained targets and the numbers up to {LARGEST_WORD} alone; write smaller "
            "targets or wording=paper"
        )


_CHECKS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "other_faces": _check_faces,
    "larger": _check_cards,
    "target": _check_targets,
}


def _check_reachable(value: Any, rule: str, info: ValidationInfo) -> None:
    """Every target of the OOD rule must be made by some deal of it."""
    chosen = GeneralPointsOptions.model_construct(**{**info.data, str(info.field_name): value})
    terms = OOD_RULES[rule].terms(chosen)
    for target in terms.targets:
        if not reachable(target, terms, id_terms(chosen), chosen.held_out):
            raise ValueError(
                f"no deal of this rule that stays clear of training can make {target}; write other numbers, "
                "deal more cards or raise held_out"
            )
