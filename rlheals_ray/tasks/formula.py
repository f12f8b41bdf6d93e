"""Exact arithmetic formulas: whole numbers, + - * / and parentheses, nothing else.

The parser is strict because it is a reward: no powers, no floor division, no decimals, no signs, no
look-alike characters, nothing evaluated by Python. Values are fractions, so 8/(3-8/3) is exactly 24.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 512
MAX_DEPTH = 64
MAX_DIGITS = 4

_BLANKS = " \t\r\n"
# [0-9], not \d, which takes every script's digits; the last alternative catches what is not allowed.
_TOKEN = re.compile(rf"[0-9]++|[-+*/()=]|[^{_BLANKS}]")
_SIGNS = frozenset("-+*/()=")

_Ratio = tuple[int, int]
"""Numerator and denominator, neither in lowest terms nor with a positive denominator: the intermediate values of a
formula, whose length bounds theirs. Fractions would be reduced at every step, at several times the cost."""


class FormulaError(ValueError):
    """The text is not a legal formula; the message says why, without quoting the text."""


@dataclass(frozen=True)
class Formula:
    """A legal formula's exact value, the numbers it uses in reading order, and N if it ends in `= N`."""

    value: Fraction
    numbers: tuple[int, ...]
    claimed: int | None = None


def parse(text: str) -> Formula:
    """The formula that `text` spells, evaluated exactly; time is linear in its bounded length.

    A trailing `= N` is read, not believed: compare `claimed` with what was asked for.
    Raises FormulaError for anything else, division by zero included.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"it is longer than {MAX_CHARACTERS} characters")
    return _Reader(_tokens(text)).formula()


def _tokens(text: str) -> list[str]:
    tokens: list[str] = _TOKEN.findall(text)
    for token in tokens:
        if token in _SIGNS:
            continue
        if not "0" <= token[0] <= "9":
            raise FormulaError("only whole numbers, + - * / and parentheses are allowed")
        if len(token) > MAX_DIGITS or (len(token) > 1 and token[0] == "0"):
            raise FormulaError(f"numbers have at most {MAX_DIGITS} digits and no leading zero")
    return tokens


class _Reader:
    """Recursive descent: sum = product ((+|-) product)*, product = atom ((*|/) atom)*."""

    __slots__ = ("_at", "_numbers", "_tokens")

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0
        self._numbers: list[int] = []

    def formula(self) -> Formula:
        top, bottom = self._sum(0)
        numbers = tuple(self._numbers)
        claimed = None
        if self._tokens[self._at] == "=":
            self._at += 1
            claimed = self._number()
        if self._tokens[self._at]:
            raise FormulaError("an operator or a parenthesis is missing or misplaced")
        return Formula(Fraction(top, bottom), numbers, claimed)

    def _number(self) -> int:
        token = self._tokens[self._at]
        if not token.isdigit():
            raise FormulaError("a number is missing where one is needed")
        self._at += 1
        number = int(token)
        self._numbers.append(number)
        return number

    def _sum(self, depth: int) -> _Ratio:
        top, bottom = self._product(depth)
        while (sign := self._tokens[self._at]) == "+" or sign == "-":
            self._at += 1
            term_top, term_bottom = self._product(depth)
            term = term_top * bottom
            top = top * term_bottom + term if sign == "+" else top * term_bottom - term
            bottom *= term_bottom
        return top, bottom

    def _product(self, depth: int) -> _Ratio:
        top, bottom = self._atom(depth)
        while (sign := self._tokens[self._at]) == "*" or sign == "/":
            self._at += 1
            factor_top, factor_bottom = self._atom(depth)
            if sign == "/":
                if not factor_top:
                    raise FormulaError("it divides by zero")
                factor_top, factor_bottom = factor_bottom, factor_top
            top *= factor_top
            bottom *= factor_bottom
        return top, bottom

    def _atom(self, depth: int) -> _Ratio:
        if self._tokens[self._at] != "(":
            return self._number(), 1
        if depth == MAX_DEPTH:
            raise FormulaError(f"parentheses are nested more than {MAX_DEPTH} deep")
        self._at += 1
        value = self._sum(depth + 1)
        if self._tokens[self._at] != ")":
            raise FormulaError("a parenthesis is not closed")
        self._at += 1
        return value
