"""The sentences of the natural-language prompt, each in several wordings that say the same.

arXiv 2510.00237 holds the fixed instruction of SFT data to be the cause of much of what SFT loses under another
rule; a study whose prompts are worded in many ways is the control for that. What varies here are the words: the
trained rule, the answer's form and the facts (target, number of cards, what J, Q, K count as, that each card is
used once, the operators) are in every wording. The first of each sentence is the text-only GeneralPoints prompt of
Chu et al., "SFT Memorizes, RL Generalizes" (arXiv 2501.17161, appendix B).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlheals_ray.tasks.points_rules import Faces

OPENINGS = (
    "You are an expert {target} points card game player. You will receive a set of {count} cards.",
    "This is the game of {target} points. A hand of {count} cards is dealt to you.",
    "You hold {count} cards and play for exactly {target} points.",
    "Here is a puzzle with playing cards: {count} of them are dealt, and {target} is to be made of them.",
    "Solve a card puzzle. There are {count} cards, and the number to reach is {target}.",
)

ONCE = (
    "each card must be used once",
    "every card is to be used exactly once",
    "no card may be left out or used twice",
    "you must use all of the cards, each one time",
)

GOALS = (
    "Your goal is to output a formula that evaluates to {target} using numbers from the cards and "
    "operators such as '+', '-', '*', '/', '(', ')', and '='.",
    "Write one formula that equals {target}. It is made of the numbers on the cards with '+', '-', '*', '/', '(', "
    "')', and '='.",
    "Combine the numbers on the cards with '+', '-', '*' and '/', and with '(' and ')' where they are needed, so that "
    "the formula comes to {target}; it may end in '=' and that number.",
    "What is asked for is an equation of value {target} in which the cards' numbers are joined by '+', '-', '*', '/', "
    "'(', ')', and '='.",
)


def _count_as(faces: Faces) -> str:
    if len(set(faces)) == 1:
        return f"'J', 'Q', and 'K' count as '{faces[0]}'"
    return f"'J', 'Q', and 'K' count as '{faces[0]}', '{faces[1]}', and '{faces[2]}' respectively"


def _each_is_worth(faces: Faces) -> str:
    j, q, k = faces
    return f"a J is worth {j}, a Q is worth {q} and a K is worth {k}"


def _equations(faces: Faces) -> str:
    j, q, k = faces
    return f"J = {j}, Q = {q} and K = {k}"


def _stand_for(faces: Faces) -> str:
    if len(set(faces)) == 1:
        return f"J, Q and K all stand for the number {faces[0]}"
    return f"J, Q and K stand for the numbers {faces[0]}, {faces[1]} and {faces[2]}, in this order"


def _value_of(faces: Faces) -> str:
    j, q, k = faces
    return f"the value of the jack (J) is {j}, of the queen (Q) {q} and of the king (K) {k}"


FACES_COUNT: tuple[Callable[[Faces], str], ...] = (
    _count_as, _each_is_worth, _equations, _stand_for, _value_of,
)  # fmt: skip

NOTES = ("Note that {faces}, and {once}.", "Mind that {once}, and that {faces}.", "Here {faces}; {once}.")


@dataclass(frozen=True)
class Phrasing:
    """Which wording each sentence has, by its place in the tuples above."""

    opening: int = 0
    faces: int = 0
    once: int = 0
    note: int = 0
    goal: int = 0
    goal_first: int = 0
    """Whether the goal stands before the note on cards."""


_SIZES = (len(OPENINGS), len(FACES_COUNT), len(ONCE), len(NOTES), len(GOALS), 2)

PHRASINGS = math.prod(_SIZES)
"""How many there are."""

Pool = tuple[Sequence[int], ...]
"""For each sentence in turn, the wordings that may be taken."""

EVERY: Pool = tuple(map(range, _SIZES))
TRAINED: Pool = (range(3), range(3), range(2), range(2), range(2), range(2))
"""What is left to all other rules where the OOD rule `wording` is asked; the published sentences are among them."""
RESERVED: Pool = (range(3, 5), range(3, 5), range(2, 4), range(2, 3), range(2, 4), range(2))
"""Those of the OOD rule `wording`: not one sentence of TRAINED, whose order alone is no news."""


def numbered(number: int, pool: Pool = EVERY) -> Phrasing:
    """The phrasing of this number, modulo the size of the pool; 0 of EVERY is the published one."""
    chosen = []
    for places in pool:
        number, place = divmod(number, len(places))
        chosen.append(places[place])
    return Phrasing(*chosen)


def phrasing_of(problem_id: str, pool: Pool = EVERY) -> Phrasing:
    """The phrasing of a problem: drawn evenly, the same in every process, for either split and every seed."""
    digest = hashlib.blake2b(f"phrasing/{problem_id}".encode(), digest_size=8).digest()
    return numbered(int.from_bytes(digest, "big"), pool)


def described(phrasing: Phrasing, target: int, cards: Sequence[str], faces: Faces) -> str:
    """The prompt of a deal: what the game is, the cards, and the form of the answer, which is always the same."""
    count = len(cards)
    face_values = FACES_COUNT[phrasing.faces](faces)
    note = NOTES[phrasing.note].format(faces=face_values, once=ONCE[phrasing.once])
    goal = GOALS[phrasing.goal].format(target=target)
    letters, numbers = "xyzwvu"[:count], "abcdef"[:count]
    return "\n".join(
        (
            "[Task Description]",
            OPENINGS[phrasing.opening].format(target=target, count=count),
            *((goal, note) if phrasing.goal_first else (note, goal)),
            "",
            "[Input]",
            f"Cards: {list(cards)}",
            "",
            "[Output]",
            "{",
            f'  "cards": [{", ".join(letters)}], where {face_values},',
            f'  "number": [{", ".join(numbers)}], where {_listed(numbers)} are the numbers on the cards,',
            f"  \"formula\": 'an equation that equals {target}',",
            "}",
        )
    )


def _listed(letters: str) -> str:
    return f"{', '.join(letters[:-1])}{',' if len(letters) > 2 else ''} and {letters[-1]}"
