"""How problems, answers and feedback are put into words.

`paper` is the text-only GeneralPoints prompt of Chu et al., "SFT Memorizes, RL Generalizes"
(arXiv 2501.17161, appendix B), which the paper reuses. `compact` says the same with one
space-separated word per token, for a model whose whole vocabulary is `compact_vocabulary`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from rlheals_ray.tasks.deals import FACE_VALUES, FACES, RANKS, GeneralPointsProblem

_OPEN, _NUMBER, _FORMULA, _CLOSE = '{"cards":[', '],"number":[', '],"formula":"', '"}'
_LARGEST_WORD = 13


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer."""

    kind: Literal["illegal", "numbers", "nomatch"]
    reason: str
    """A clause in plain words; it never names a solution."""
    invalid: tuple[int, ...] = ()
    """Numbers used that were not dealt."""
    unused: tuple[int, ...] = ()
    """Numbers dealt that were not used."""


class Wording(Protocol):
    """A way to put things; `formula` comes space-separated from the solver."""

    def prompt(self, problem: GeneralPointsProblem) -> str: ...
    def answer(self, problem: GeneralPointsProblem, formula: str) -> str: ...
    def feedback(self, fault: Fault) -> str: ...


class Compact:
    """One word per token."""

    def prompt(self, problem: GeneralPointsProblem) -> str:
        rule = [f"{face} {value}" for face, value in zip(FACES, FACE_VALUES[problem.rule], strict=True)]
        return " ".join(["make", str(problem.target), "rule", *rule, "cards", *problem.cards, "reply"])

    def answer(self, problem: GeneralPointsProblem, formula: str) -> str:
        numbers = map(str, problem.values)
        return " ".join([_OPEN, *problem.cards, _NUMBER, *numbers, _FORMULA, formula, _CLOSE])

    def feedback(self, fault: Fault) -> str:
        if fault.kind != "numbers":
            return f"failed {fault.kind}"
        words = ["failed"]
        for name, numbers in (("invalid", fault.invalid), ("unused", fault.unused)):
            known = [str(n) for n in numbers if 1 <= n <= _LARGEST_WORD]
            words += [name, *known] if known else []
        # Every wrong number may lie outside the vocabulary.
        return " ".join(words if len(words) > 1 else ["failed", "invalid"])


class Paper:
    """Natural language. Answers are the paper's object, written as valid JSON."""

    def prompt(self, problem: GeneralPointsProblem) -> str:
        count, target, faces = len(problem.cards), problem.target, _FACES_COUNT_AS[problem.rule]
        cards, numbers = "xyzwvu"[:count], "abcdef"[:count]
        return (
            "[Task Description]\n"
            f"You are an expert {target} points card game player. You will receive a set of {count} cards.\n"
            f"Note that {faces}, and each card must be used once.\n"
            f"Your goal is to output a formula that evaluates to {target} using numbers from the cards and "
            "operators such as '+', '-', '*', '/', '(', ')', and '='.\n\n"
            "[Input]\n"
            f"Cards: {list(problem.cards)}\n\n"
            "[Output]\n"
            "{\n"
            f'  "cards": [{", ".join(cards)}], where {faces},\n'
            f'  "number": [{", ".join(numbers)}], where {_listed(numbers)} are the numbers on the cards,\n'
            f"  \"formula\": 'an equation that equals {target}',\n"
            "}"
        )

    def answer(self, problem: GeneralPointsProblem, formula: str) -> str:
        equation = f"{formula.replace(' ', '')}={problem.target}"
        fields = {"cards": list(problem.cards), "number": list(problem.values), "formula": equation}
        lines = ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in fields.items())
        return f"{{\n{lines}\n}}"

    def feedback(self, fault: Fault) -> str:
        return f"You failed this trial because {fault.reason}."


WORDINGS: dict[str, Wording] = {"compact": Compact(), "paper": Paper()}

_FACES_COUNT_AS = {
    "id": "'J', 'Q', and 'K' count as '10'",
    "ood": "'J', 'Q', and 'K' count as '11', '12', and '13' respectively",
}


def compact_vocabulary(targets: Iterable[int]) -> list[str]:
    """Every word that compact prompts, answers and feedback can hold, each once, in a fixed order."""
    words = [
        *("make", "rule", "cards", "reply"),
        *("failed", "illegal", "nomatch", "invalid", "unused"),
        *RANKS,
        *map(str, range(1, _LARGEST_WORD + 1)),
        *map(str, targets),
        *(_OPEN, _NUMBER, _FORMULA, _CLOSE),
        *("+", "-", "*", "/", "(", ")"),
    ]
    return list(dict.fromkeys(words))


def _listed(letters: str) -> str:
    return f"{', '.join(letters[:-1])}{',' if len(letters) > 2 else ''} and {letters[-1]}"
