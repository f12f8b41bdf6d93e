"""How problems, answers and feedback are put into words.

`paper` is the text-only GeneralPoints prompt of Chu et al., "SFT Memorizes, RL Generalizes"
(arXiv 2501.17161, appendix B), which the paper reuses; `diverse` has many wordings of it (points_phrasing.py).
`compact` says the same with one space-separated word per token, for a model whose whole vocabulary is
`compact_vocabulary`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from rlheals_ray.tasks.deals import GeneralPointsProblem
from rlheals_ray.tasks.points_phrasing import EVERY, RESERVED, TRAINED, Phrasing, Pool, described, phrasing_of
from rlheals_ray.tasks.points_rules import FACES, RANKS, Faces

_OPEN, _NUMBER, _FORMULA, _CLOSE = '{"cards":[', '],"number":[', '],"formula":"', '"}'
LARGEST_WORD = 13
"""The largest number, targets apart, that the compact wording has a word for."""


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
    """A way to put things; `faces` is the rule, `formula` comes space-separated from the solver."""

    def prompt(self, problem: GeneralPointsProblem, faces: Faces) -> str: ...
    def answer(self, problem: GeneralPointsProblem, formula: str) -> str: ...
    def feedback(self, fault: Fault) -> str: ...


class Compact:
    """One word per token."""

    def prompt(self, problem: GeneralPointsProblem, faces: Faces) -> str:
        rule = [f"{face} {value}" for face, value in zip(FACES, faces, strict=True)]
        return " ".join(["make", str(problem.target), "rule", *rule, "cards", *problem.cards, "reply"])

    def answer(self, problem: GeneralPointsProblem, formula: str) -> str:
        numbers = map(str, problem.values)
        return " ".join([_OPEN, *problem.cards, _NUMBER, *numbers, _FORMULA, formula, _CLOSE])

    def feedback(self, fault: Fault) -> str:
        if fault.kind != "numbers":
            return f"failed {fault.kind}"
        words = ["failed"]
        for name, numbers in (("invalid", fault.invalid), ("unused", fault.unused)):
            known = [str(n) for n in numbers if 1 <= n <= LARGEST_WORD]
            words += [name, *known] if known else []
        # Every wrong number may lie outside the vocabulary.
        return " ".join(words if len(words) > 1 else ["failed", "invalid"])


class Paper:
    """Natural language. Answers are the paper's object, written as valid JSON."""

    def prompt(self, problem: GeneralPointsProblem, faces: Faces) -> str:
        return described(Phrasing(), problem.target, problem.cards, faces)

    def answer(self, problem: GeneralPointsProblem, formula: str) -> str:
        equation = f"{formula.replace(' ', '')}={problem.target}"
        fields = {"cards": list(problem.cards), "number": list(problem.values), "formula": equation}
        lines = ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in fields.items())
        return f"{{\n{lines}\n}}"

    def feedback(self, fault: Fault) -> str:
        return f"You failed this trial because {fault.reason}."


class Diverse(Paper):
    """Natural language in many wordings, one for each problem; answers and feedback as ever."""

    def __init__(self, pool: Pool = EVERY) -> None:
        self._pool = pool

    def prompt(self, problem: GeneralPointsProblem, faces: Faces) -> str:
        return described(phrasing_of(problem.id, self._pool), problem.target, problem.cards, faces)


def wording_of(
    wording: Literal["compact", "paper"], phrasing: Literal["fixed", "diverse"], ood: Iterable[str], rule: str
) -> Wording:
    """How `rule`, named as the option `ood` names it, is worded in a study with these options."""
    if wording == "compact":
        return Compact()
    if rule == "wording":
        return Diverse(RESERVED)
    if phrasing == "fixed":
        return Paper()
    return Diverse(TRAINED if "wording" in ood else EVERY)


def compact_vocabulary(targets: Iterable[int]) -> list[str]:
    """Every word that compact prompts, answers and feedback can hold, each once, in a fixed order."""
    words = [
        *("make", "rule", "cards", "reply"),
        *("failed", "illegal", "nomatch", "invalid", "unused"),
        *RANKS,
        *map(str, range(1, LARGEST_WORD + 1)),
        *map(str, targets),
        *(_OPEN, _NUMBER, _FORMULA, _CLOSE),
        *("+", "-", "*", "/", "(", ")"),
    ]
    return list(dict.fromkeys(words))
