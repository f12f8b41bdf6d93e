"""Deals of cards: what a rule makes of them, their groups, and which groups are held out.

Cards are ranks; suits play no part, and a rank may occur any number of times. A group is a target and
a multiset of values: all orders of its cards, and under `id` all of 10, J, Q, K in place of one
another, are near-copies of one puzzle and fall on the same side of the split.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

from rlheals_ray.tasks.solver import Values, solvable
from rlheals_ray.tasks.task import Problem, Rule, Split

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
FACES = ("J", "Q", "K")
FACE_VALUES: dict[Rule, tuple[int, int, int]] = {"id": (10, 10, 10), "ood": (11, 12, 13)}

# Chosen for its sizes alone: of 3 cards with targets 18 and 24 it holds out 450 deals and leaves 648.
_SPLIT_SALT = "general_points/78"


@dataclass(frozen=True)
class GeneralPointsProblem(Problem):
    """A target and an ordered deal of cards."""

    cards: tuple[str, ...]
    values: tuple[int, ...]
    """What each card is worth under the rule."""
    target: int


def card_value(card: str, rule: Rule) -> int:
    """A=1, 2..10 their number, J, Q, K as the rule has them."""
    if card in FACES:
        return FACE_VALUES[rule][FACES.index(card)]
    return RANKS.index(card) + 1


def problem_of(cards: tuple[str, ...], rule: Rule, target: int) -> GeneralPointsProblem:
    """The problem of one deal, with its id and group; whether it can be solved is not asked."""
    values = tuple(card_value(card, rule) for card in cards)
    name = f"{target}:{rule}:{'-'.join(cards)}"
    group = Group(target, rule, tuple(sorted(values))).label
    return GeneralPointsProblem(name, rule, group, cards, values, target)


@dataclass(frozen=True)
class Group:
    """All deals of one target and one multiset of values (ascending)."""

    target: int
    rule: Rule
    values: Values

    @property
    def label(self) -> str:
        return f"{self.target}:{self.rule}:{'-'.join(map(str, self.values))}"

    @property
    def size(self) -> int:
        """How many ordered deals it has."""
        return self._arrangements * math.prod(len(_cards_worth(value, self.rule)) for value in self.values)

    @property
    def _arrangements(self) -> int:
        repeats = math.prod(math.factorial(n) for n in Counter(self.values).values())
        return math.factorial(len(self.values)) // repeats

    def held_out(self, share: float) -> bool:
        """Whether it belongs to the ID evaluation: a fixed draw per group, whatever else is drawn."""
        digest = hashlib.blake2b(f"{_SPLIT_SALT}/{self.label}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64

    def deal(self, index: int) -> GeneralPointsProblem:
        """The deal of this number, 0 <= index < size."""
        index, order = divmod(index, self._arrangements)
        cards = []
        for value in _arrangement(self.values, order):
            choices = _cards_worth(value, self.rule)
            index, chosen = divmod(index, len(choices))
            cards.append(choices[chosen])
        return problem_of(tuple(cards), self.rule, self.target)


def groups(cards: int, targets: tuple[int, ...], rule: Rule, split: Split, held_out: float) -> list[Group]:
    """The split's groups, solvable or not, in a fixed order.

    `ood` has no train split, and its groups hold at least one face card.
    """
    if rule == "ood" and split == "train":
        return []
    worths = sorted({card_value(rank, rule) for rank in RANKS})
    drawn = [Group(t, rule, v) for t in targets for v in combinations_with_replacement(worths, cards)]
    if rule == "ood":
        return [group for group in drawn if group.values[-1] >= min(FACE_VALUES["ood"])]
    return [group for group in drawn if group.held_out(held_out) == (split == "eval")]


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


def _cards_worth(value: int, rule: Rule) -> list[str]:
    return [rank for rank in RANKS if card_value(rank, rule) == value]


def _arrangement(values: Values, index: int) -> Values:
    """The distinct permutation of a multiset that has this number in lexicographic order."""
    left = Counter(values)
    count = math.factorial(len(values)) // math.prod(math.factorial(n) for n in left.values())
    arranged = []
    for remaining in range(len(values), 0, -1):
        for value in sorted(left):
            beginning = count * left[value] // remaining
            if index < beginning:
                break
            index -= beginning
        arranged.append(value)
        left -= Counter((value,))
        count = beginning
    return tuple(arranged)
