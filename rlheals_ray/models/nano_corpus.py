"""What the nano base model is trained on before any study touches it.

It learns to read the prompt, to apply a rule ("J is worth a, Q is worth b, K is worth c"), to solve,
and to correct itself after feedback, for rules drawn at random; the two triples of values that the
studies use, (10, 10, 10) and (11, 12, 13), never occur. It knows the study's answer object but has
learnt to answer the study's prompt in plain words, so that SFT has one decision to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlheals_ray.models.nano import STYLES
from rlheals_ray.tasks.solver import solutions

ID_TRIPLE, OOD_TRIPLE = (10, 10, 10), (11, 12, 13)
FACES = ("A", *(str(n) for n in range(2, 11)), "J", "Q", "K")

SAME_VALUE = 0.25
"""Share of rules in which J, Q and K are worth the same."""
REPLY = 0.4
"""Share of plain answers whose prompt ends, like the study's, in `reply`."""
JSON_REPLY = 0.5
"""Share of object answers whose prompt ends in `reply`, with no loss on the object's first token."""
ANSWERED_ILLEGAL = 0.5
"""Share of wrong attempts under `reply` that are told `failed illegal` and answered in plain again."""
IGNORE = -100


@dataclass(frozen=True)
class Deal:
    """Cards under a rule that make the target, and the one formula the base model learns for them."""

    target: int
    face_values: tuple[int, int, int]
    cards: tuple[str, ...]
    values: tuple[int, ...]
    formula: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them carry loss; both of the same length."""

    ids: list[int]
    loss: list[bool]


class NanoCorpus:
    """An endless, seeded stream of pretraining examples."""

    def __init__(self, cards: int, targets: list[int], word_ids: dict[str, int], seed: int) -> None:
        self._cards, self._targets, self._id = cards, targets, word_ids
        self._rng = np.random.default_rng((seed, 0x6E616E6F))

    def singles(self, count: int) -> list[Example]:
        """One prompt, one answer; loss on the answer."""
        return [self._single() for _ in range(count)]

    def dialogs(self, count: int) -> list[Example]:
        """One or two wrong attempts with feedback, then the right answer; loss on the last answer only."""
        return [self._dialog() for _ in range(count)]

    def deal(self) -> Deal:
        """A solvable deal under a random rule; never under either of the studies' triples."""
        while True:
            faces = self._face_values()
            target = int(self._rng.choice(self._targets))
            cards = tuple(FACES[i] for i in self._rng.integers(0, 13, self._cards))
            values = tuple(card_value(card, faces) for card in cards)
            found = solutions(tuple(sorted(values)), target)
            if found:
                return Deal(target, faces, cards, values, tuple(found[0].split()))

    def _face_values(self) -> tuple[int, int, int]:
        while True:
            if self._rng.random() < SAME_VALUE:
                triple = (int(self._rng.integers(1, 14)),) * 3
            else:
                triple = tuple(int(v) for v in self._rng.integers(1, 14, 3))  # type: ignore[assignment]
            if triple not in (ID_TRIPLE, OOD_TRIPLE):
                return triple

    def _style(self) -> tuple[str, str]:
        """(answer style, the prompt's last word)."""
        style = STYLES[int(self._rng.integers(0, len(STYLES)))]
        share = JSON_REPLY if style == "json" else REPLY
        return style, "reply" if self._rng.random() < share else style

    def _single(self) -> Example:
        deal = self.deal()
        style, last_word = self._style()
        prompt = self._prompt(deal, last_word)
        answer = _answer(style, deal, deal.formula)
        loss = [False] * len(prompt) + [True] * len(answer)
        if style == "json" and last_word == "reply":
            loss[len(prompt)] = False
        return Example(self._ids(prompt + answer), loss)

    def _dialog(self) -> Example:
        deal = self.deal()
        style, last_word = self._style()
        words = self._prompt(deal, last_word)
        for _ in range(int(self._rng.integers(1, 3))):
            wrong, feedback = self._wrong(deal)
            if last_word == "reply" and style != "json" and self._rng.random() < ANSWERED_ILLEGAL:
                wrong, feedback = deal.formula, ["failed", "illegal"]
            words += [*_answer(style, deal, wrong), "<user>", *feedback, "<assistant>"]
        answer = _answer(style, deal, deal.formula)
        return Example(self._ids(words + answer), [False] * len(words) + [True] * len(answer))

    def _wrong(self, deal: Deal) -> tuple[tuple[str, ...], list[str]]:
        """A wrong formula and the judge's words about it."""
        formula = list(deal.formula)
        numbers = [i for i, word in enumerate(formula) if word.isdigit()]
        operators = [i for i, word in enumerate(formula) if word in "+-*/"]
        kind = int(self._rng.integers(0, 3))
        if kind == 0:
            at = int(self._rng.choice(numbers))
            used, other = int(formula[at]), int(self._rng.integers(1, 14))
            if other != used:
                formula[at] = str(other)
                return tuple(formula), ["failed", "invalid", str(other), "unused", str(used)]
        if kind == 1:
            del formula[int(self._rng.choice(operators))]
            return tuple(formula), ["failed", "illegal"]
        at = int(self._rng.choice(operators))
        formula[at] = str(self._rng.choice([sign for sign in "+-*/" if sign != formula[at]]))
        return tuple(formula), ["failed", "nomatch"]

    def _prompt(self, deal: Deal, last_word: str) -> list[str]:
        a, b, c = map(str, deal.face_values)
        rule = ["rule", "J", a, "Q", b, "K", c]
        return ["<bos>", "make", str(deal.target), *rule, "cards", *deal.cards, last_word, "<assistant>"]

    def _ids(self, words: list[str]) -> list[int]:
        return [self._id[word] for word in words]


def card_value(card: str, face_values: tuple[int, int, int]) -> int:
    """What a card is worth when J, Q, K are worth `face_values`."""
    faces = dict(zip("JQK", face_values, strict=True))
    return 1 if card == "A" else faces[card] if card in faces else int(card)


def _json(deal: Deal, formula: tuple[str, ...]) -> list[str]:
    numbers = [str(value) for value in deal.values]
    return ['{"cards":[', *deal.cards, '],"number":[', *numbers, '],"formula":"', *formula, '"}']


_WRITERS: dict[str, Callable[[Deal, tuple[str, ...]], list[str]]] = {
    "json": _json,
    "bare": lambda deal, formula: [*formula],
    "steps": lambda deal, formula: ["use", *(str(value) for value in deal.values), "get", *formula],
    "check": lambda deal, formula: [*formula, "is", str(deal.target)],
}


def _answer(style: str, deal: Deal, formula: tuple[str, ...]) -> list[str]:
    return [*_WRITERS[style](deal, formula), "<eot>"]
