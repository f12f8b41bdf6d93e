"""Deals of cards: their groups, and which groups are held out or stay clear of training.

Cards are ranks; suits play no part, and a rank may occur any number of times. A group is a target and
a multiset of values: all orders of its cards, and under `id` all of 10, J, Q, K in place of one
another, are near-copies of one puzzle and fall on the same side of the split.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

from rlheals_ray.tasks.points_rules import FACES, Terms
from rlheals_ray.tasks.solver import Values, solvable
from rlheals_ray.tasks.splits import in_share
from rlheals_ray.tasks.task import Problem, Split

# Chosen for its sizes alone: of 3 cards with targets 18 and 24 it holds out 450 deals and leaves 648.
_SPLIT_SALT = "general_points/78"


@dataclass(frozen=True)
class GeneralPointsProblem(Problem):
    """A target and an ordered deal of cards."""

    cards: tuple[str, ...]
    values: tuple[int, ...]
    """What each card is worth under the rule."""
    target: int


def problem_of(cards: tuple[str, ...], terms: Terms, target: int) -> GeneralPointsProblem:
    """The problem of one deal, with its id and group; whether it can be solved is not asked."""
    values = tuple(terms.worth[card] for card in cards)
    return _problem(cards, values, terms, target, Group(target, terms, tuple(sorted(values))).label)


def _problem(
    cards: tuple[str, ...], values: Values, terms: Terms, target: int, group: str
) -> GeneralPointsProblem:
    name = f"{target}:{terms.label}:{'-'.join(cards)}"
    return GeneralPointsProblem(name, terms.rule, group, cards, values, target)


@dataclass(frozen=True)
class Group:
    """All deals of one target and one multiset of values (ascending)."""

    target: int
    terms: Terms
    values: Values

    @cached_property
    def label(self) -> str:
        return f"{self.target}:{self.terms.label}:{'-'.join(map(str, self.values))}"

    @cached_property
    def size(self) -> int:
        """How many ordered deals it has; 0 where the rule needs a face card and there is none of these values."""
        return self._arrangements * self._choices(self.values, self.terms.needs_face)

    @cached_property
    def _arrangements(self) -> int:
        repeats = math.prod(math.factorial(n) for n in Counter(self.values).values())
        return math.factorial(len(self.values)) // repeats

    def held_out(self, share: float) -> bool:
        """Whether it belongs to the ID evaluation: a fixed draw per group, whatever else is drawn."""
        return in_share(f"{_SPLIT_SALT}/{self.label}", share)

    def deal(self, index: int) -> GeneralPointsProblem:
        """The deal of this number, 0 <= index < size."""
        index, order = divmod(index, self._arrangements)
        values = _arrangement(self.values, order, self._arrangements)
        needs_face = self.terms.needs_face
        cards: list[str] = []
        for at in reversed(range(len(values))):
            for card in self.terms.cards_worth[values[at]]:
                face_missing = needs_face and card not in FACES
                beginning = self._choices(values[:at], face_missing)
                if index < beginning:
                    break
                index -= beginning
            needs_face = face_missing
            cards.append(card)
        return _problem(tuple(reversed(cards)), values, self.terms, self.target, self.label)

    def _choices(self, values: Values, needs_face: bool) -> int:
        """In how many ways cards can be worth these values in this order, at least one of them a face or not."""
        terms = self.terms
        ways = math.prod(len(terms.cards_worth[value]) for value in values)
        return ways - math.prod(terms.plain_cards_worth[value] for value in values) if needs_face else ways


def groups(terms: Terms, split: Split, trained: Terms, held_out: float) -> list[Group]:
    """The groups of a rule in a split, solvable or not, in a fixed order; `trained` is the ID rule.

    An OOD rule has no train split, and no deal of it has a multiset of values that ID training deals for any
    of its targets: what is asked is the rule on a new hand, never a known hand in another guise. With other
    faces or other targets that leaves the hands which are held out, or make nothing, under each ID target
    (and any with a value that ID has not). Faces of 11 to 13 and larger deals are new to begin with.
    """
    return list(_groups(terms, split, trained, held_out))


def reachable(target: int, terms: Terms, trained: Terms, held_out: float, split: Split = "eval") -> bool:
    """Whether a rule has any deal in the split that makes the target."""
    candidates = _groups(terms, split, trained, held_out)
    return any(solvable(group.values, target) for group in candidates if group.target == target)


def counted(terms: Terms, split: Split, trained: Terms, held_out: float, most: int | None = None) -> int:
    """How many deals of a rule in a split can be solved; from `most` on they are not counted further."""
    there = 0
    for group in _groups(terms, split, trained, held_out):
        if most is not None and there >= most:
            break
        there += group.size if solvable(group.values, group.target) else 0
    return there


def _groups(terms: Terms, split: Split, trained: Terms, held_out: float) -> Iterator[Group]:
    if terms.rule != "id" and split == "train":
        return
    for target in terms.targets:
        for values in combinations_with_replacement(terms.cards_worth, terms.cards):
            group = Group(target, terms, values)
            if terms.rule == "id":
                if group.held_out(held_out) == (split == "eval"):
                    yield group
            elif group.size and not _in_training(values, trained, held_out):
                yield group


def _in_training(values: Values, trained: Terms, held_out: float) -> bool:
    if len(values) != trained.cards or not trained.cards_worth.keys() >= set(values):
        return False
    return any(
        not Group(target, trained, values).held_out(held_out) and solvable(values, target)
        for target in trained.targets
    )


def draw(candidates: list[Group], seed: str) -> Iterator[GeneralPointsProblem]:
    """Every deal of the solvable groups once: one of each group, then another of each, and so on."""
    rng = random.Random(seed)
    waiting: list[tuple[Group, list[int]]] = []
    for group in rng.sample(candidates, len(candidates)):
        if solvable(group.values, group.target):
            order = rng.sample(range(group.size), group.size)
            yield group.deal(order.pop())
            waiting.append((group, order))
    while waiting := [(group, order) for group, order in waiting if order]:
        for group, order in waiting:
            yield group.deal(order.pop())


def _arrangement(values: Values, index: int, count: int) -> Values:
    """The distinct permutation of a multiset, of `count`, that has this number in lexicographic order."""
    left = Counter(values)
    arranged = []
    for remaining in range(len(values), 0, -1):
        for value, times in left.items():  # ascending, as values are
            beginning = count * times // remaining
            if index < beginning:
                arranged.append(value)
                break
            index -= beginning
        left[value] -= 1
        count = beginning
    return tuple(arranged)
