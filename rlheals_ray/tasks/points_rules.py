"""The rules of GeneralPoints: what is dealt under the trained one, and under each OOD rule there is.

A rule differs from the trained one in one thing alone: what face cards count, how many cards are dealt, what they
are to make, or (`wording`) the sentences that say all this. An OOD rule is one
line of `OOD_RULES`; problems, prompts and the split follow from its `Terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from rlheals_ray.tasks.task import Rule

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FACES = ("J", "Q", "K")

Faces = tuple[int, int, int]
"""What J, Q and K count as."""

ID_FACES: Faces = (10, 10, 10)


@dataclass(frozen=True)
class Terms:
    """What one rule deals, what its cards count as and what they are to make."""

    rule: Rule
    label: str
    """Its name in ids and groups: problems of two rules are never the same."""
    cards: int
    targets: tuple[int, ...]
    faces: Faces = ID_FACES
    needs_face: bool = False
    """Whether every deal holds J, Q or K, without which it would be a deal of the trained rule."""

    @cached_property
    def worth(self) -> dict[str, int]:
        """What each card counts as: A 1, 2 to 10 their number, J, Q, K as the rule has them."""
        return {card: i + 1 for i, card in enumerate(RANKS)} | dict(zip(FACES, self.faces, strict=True))

    @cached_property
    def cards_worth(self) -> dict[int, tuple[str, ...]]:
        """The cards that count as each value, values ascending, cards in the order of RANKS."""
        values = sorted(set(self.worth.values()))
        return {value: tuple(card for card in RANKS if self.worth[card] == value) for value in values}

    @cached_property
    def plain_cards_worth(self) -> dict[int, int]:
        """How many of the cards that count as each value are no face cards."""
        return {value: len(set(cards) - set(FACES)) for value, cards in self.cards_worth.items()}


class Choices(Protocol):
    """The options that rules are made of; see points_options.py."""

    @property
    def cards(self) -> int: ...
    @property
    def targets(self) -> tuple[int, ...]: ...
    @property
    def ood_faces(self) -> Faces | None: ...
    @property
    def ood_cards(self) -> int | None: ...
    @property
    def ood_targets(self) -> tuple[int, ...] | None: ...


@dataclass(frozen=True)
class OodRule:
    """One way to be out of distribution."""

    terms: Callable[[Choices], Terms]
    option: str | None = None
    """The option that it takes; None if there is nothing to choose."""


def id_terms(choices: Choices) -> Terms:
    """The trained rule: J, Q and K count as 10."""
    return Terms("id", "id", choices.cards, choices.targets)


def _faces(choices: Choices) -> Terms:
    return Terms("ood", "ood", choices.cards, choices.targets, (11, 12, 13), needs_face=True)


def _other_faces(choices: Choices) -> Terms:
    faces = choices.ood_faces or ID_FACES
    label = "ood." + ".".join(f"{face}{value}" for face, value in zip(FACES, faces, strict=True))
    return Terms("ood", label, choices.cards, choices.targets, faces, needs_face=True)


def _larger(choices: Choices) -> Terms:
    return Terms("ood", "ood.larger", choices.ood_cards or choices.cards, choices.targets)


def _target(choices: Choices) -> Terms:
    return Terms("ood", "ood.target", choices.cards, choices.ood_targets or ())


def _wording(choices: Choices) -> Terms:
    return Terms("ood", "ood.wording", choices.cards, choices.targets)


OOD_RULES: Mapping[str, OodRule] = {
    "faces": OodRule(_faces),
    "other_faces": OodRule(_other_faces, "ood_faces"),
    "larger": OodRule(_larger, "ood_cards"),
    "target": OodRule(_target, "ood_targets"),
    "wording": OodRule(_wording),
}
"""By the value of the option `ood`. Those that leave something to choose take an option of their own."""
