"""Whether an answer to an item of reasoning-gym is right, in bounded time whatever the answer holds.

Read for this: every `score_answer` of reasoning-gym 0.1.25. Three kinds of datasets follow from it.

*Refused*, no item of theirs is ever drawn (`REFUSED` says why): those whose items have no answer to show, and
`codeio`, which runs code that a language model wrote.

*Judged here*, because theirs runs the answer as Python, or gives full marks to wrong ones:

- `eval(answer)`: binary_matrix, n_queens, spiral_matrix, string_insertion. Full marks need the text itself, so
  texts are compared and nothing is lost.
- `sympy.parse_expr(answer)`, which is `eval`: countdown and puzzle24 (take numbers that were not dealt, `**` and,
  puzzle24, 24.5 for 24), simple_integration and intermediate_integration (take `Integral(f, x)`, the question
  itself; some own answers are that), polynomial_multiplication.
- `eval` of the item's own fields: bitwise_arithmetic, number_sorting (takes numbers off by 1).
- `Fraction(answer)`, which hangs on `1e999999999`: coin_flip (takes 0 for any probability below 0.0001).
- wrong: game_of_life_halting (takes any text), complex_arithmetic (takes `nan`), figlet_font (takes any ending
  after ten right letters), letter_jumble (takes any words after the right ones), game_of_life (takes any cells
  beside the board), gsm_symbolic (takes the first number, whatever its sign), polynomial_equations (takes any
  text where there is no root). pool_matrix is here for `numpy.loadtxt`, which warns about empty text.

*Judged by theirs*, all others that define `score_answer`: they compare, parse numbers, JSON or moves, and step
through the moves once, in time linear in the answer, which `MAX_EXTRA` bounds. Full marks (1.0) are a solution.
None starts a process, opens a file or runs text. Tolerances of theirs that stay: decimal_arithmetic and
number_format (0.001 and 0.01), advanced_geometry (two or three places), power_function (three digits).
"""

from __future__ import annotations

import decimal
import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rlheals_ray.tasks import expressions

Entry = dict[str, Any]
"""An item: `question`, `answer` and `metadata`."""
Verifier = Callable[[str, Entry], bool]

MAX_EXTRA = 1_000
"""An answer may have four times the characters of the item's own and this many more."""

_NO_ANSWER = "its items have no answer that a demonstration could show"
REFUSED = {
    "boxnet": _NO_ANSWER,
    "codeio": "it runs programs that a language model wrote, and not all answer alike each time",
    "composite": "it only mixes other datasets; name one of those",
    "graph_color": _NO_ANSWER,
    "propositional_logic": _NO_ANSWER,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
}

_NUMBER = re.compile(r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?", re.ASCII)
# At points inside and outside the unit circle, off the real axis, where branch cuts lie.
_POINTS = (0.31 + 0.17j, -0.42 + 0.23j, 0.13 - 0.61j, 1.37 + 0.45j, -1.21 - 0.38j, 1.93 - 0.29j)
_FEWEST_POINTS = 3
# Any number will do that nothing but C brings in: an answer times C must not pass.
_C = 0.7310585 - 0.4142136j
_RELATIVE = 1e-8


def verifier(dataset: str, theirs: Any) -> Verifier:
    """What judges answers to items of `dataset`; `theirs` is the package's own object for it.

    Never raises whatever the answer, and takes at most some milliseconds.
    """
    judge = _OURS.get(dataset) or _theirs(dataset, theirs)

    def solved(answer: str, entry: Entry) -> bool:
        if len(answer) > MAX_EXTRA + 4 * len(entry["answer"]):
            return False
        try:
            # Some of theirs compute with the decimal context that the process happens to have.
            with decimal.localcontext(decimal.DefaultContext):
                return judge(answer, entry)
        except Exception:  # theirs raise whatever comes: ValueError, KeyError, OverflowError, RecursionError
            return False

    return solved


def _theirs(name: str, dataset: Any) -> Verifier:
    from reasoning_gym.dataset import ProceduralDataset

    if type(dataset).score_answer is ProceduralDataset.score_answer:
        return _same_text
    shape = _SHAPES.get(name)
    # Not >= 1: calendar_arithmetic gives more than 1 to some wrong answers.
    return lambda answer, entry: bool(
        (not shape or shape.fullmatch(answer)) and dataset.score_answer(answer, entry) == 1.0
    )


def _same_text(answer: str, entry: Entry) -> bool:
    return bool(answer == entry["answer"])


def _same_word(answer: str, entry: Entry) -> bool:
    return bool(answer.replace(" ", "").lower() == entry["answer"].strip().lower())


def _same_words(answer: str, entry: Entry) -> bool:
    return bool(answer.lower().split() == entry["answer"].lower().split())


def _queens(answer: str, entry: Entry) -> bool:
    return answer in entry["metadata"]["valid_answers"]


def _target(answer: str, numbers: list[int], target: int) -> bool:
    tree = expressions.read(answer)
    # Before its value is computed: as many numbers as were dealt keep that small.
    return sorted(expressions.numbers(tree)) == sorted(numbers) and expressions.value(tree) == target


def _countdown(answer: str, entry: Entry) -> bool:
    return _target(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _puzzle24(answer: str, entry: Entry) -> bool:
    return _target(answer, entry["metadata"]["numbers"], 24)


def _polynomial(answer: str, entry: Entry) -> bool:
    wanted = expressions.monomials(expressions.read(entry["answer"]))
    return expressions.monomials(expressions.read(answer)) == wanted


def _antiderivative(answer: str, entry: Entry) -> bool:
    """Whether the derivative equals the integrand at complex points, of which most must be within reach."""
    metadata = entry["metadata"]
    written, integrand = expressions.read(answer), expressions.read(metadata["integrand"])
    constants = {"C": (_C, 0j), "E": (complex(math.e), 0j), "pi": (complex(math.pi), 0j)}
    reached = 0
    for point in _POINTS:
        names = {**constants, metadata["variable"]: (point, 1 + 0j)}
        try:
            slope, wanted = expressions.dual(written, names)[1], expressions.dual(integrand, names)[0]
            gap, size = abs(slope - wanted), abs(wanted)
        except ArithmeticError:
            continue
        except expressions.ExpressionError:
            return False
        except ValueError:  # cmath's word for a pole
            continue
        if not (math.isfinite(gap) and math.isfinite(size)):
            continue
        if gap > _RELATIVE * max(1.0, size):
            return False
        reached += 1
    return reached >= _FEWEST_POINTS


def _number(text: str) -> Fraction:
    """Exactly; raises ValueError for anything but one number, whose length is bounded."""
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        raise ValueError("not a number")
    return Fraction(stripped)


def _probability(answer: str, entry: Entry) -> bool:
    above, _, below = answer.partition("/")
    told = _number(above) / (_number(below) if below else 1)
    exact = Fraction(entry["metadata"]["rational"]["numerator"], entry["metadata"]["rational"]["denominator"])
    return abs(told - exact) <= min(Fraction(1, 10_000), exact / 100)


def _amount(answer: str, entry: Entry) -> bool:
    return _number(re.sub(r"[$€£%,]", "", answer)) == _number(entry["answer"])


def _whole(answer: str, entry: Entry) -> bool:
    return int(answer, 0) == int(entry["answer"], 0)


def _sorted_numbers(answer: str, entry: Entry) -> bool:
    told = json.loads(answer.replace("'", '"'))
    wanted = entry["metadata"]["sorted_numbers"]
    return isinstance(told, list) and [_number(str(n)) for n in told] == [_number(str(n)) for n in wanted]


def _roots(answer: str, entry: Entry) -> bool:
    told = answer.strip().strip('"')
    wanted = entry["answer"]
    return sorted(_listed(told)) == sorted(_listed(wanted))


def _listed(text: str) -> list[Fraction]:
    return [_number(part) for part in text.split(",")] if text.strip() else []


def _same_json(answer: str, entry: Entry) -> bool:
    # As text again, for 1 and True and 1.0 are equal in Python.
    told, wanted = (json.dumps(json.loads(text)) for text in (answer, entry["answer"]))
    return told == wanted


def _pooled(answer: str, entry: Entry) -> bool:
    told, wanted = (
        [[_number(cell) for cell in line.split()] for line in text.splitlines() if line.strip()]
        for text in (answer, entry["answer"])
    )
    if [len(row) for row in told] != [len(row) for row in wanted]:
        return False
    cells = zip((c for row in told for c in row), (c for row in wanted for c in row), strict=True)
    return all(abs(a - b) <= abs(b) / 100 + Fraction(1, 10**8) for a, b in cells)


_OURS: dict[str, Verifier] = {
    "binary_matrix": _same_text,
    "bitwise_arithmetic": _whole,
    "coin_flip": _probability,
    "countdown": _countdown,
    "figlet_font": _same_word,
    "game_of_life": _same_json,
    "game_of_life_halting": _same_text,
    "gsm_symbolic": _amount,
    "intermediate_integration": _antiderivative,
    "letter_jumble": _same_words,
    "n_queens": _queens,
    "number_sorting": _sorted_numbers,
    "polynomial_equations": _roots,
    "polynomial_multiplication": _polynomial,
    "pool_matrix": _pooled,
    "puzzle24": _puzzle24,
    "simple_integration": _antiderivative,
    "spiral_matrix": _same_text,
    "string_insertion": _same_text,
}

# What theirs may see at all.
_SHAPES = {"complex_arithmetic": re.compile(r"[-+0-9.eij() ]+", re.ASCII | re.IGNORECASE)}
