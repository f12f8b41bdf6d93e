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

# [0-9], not \d, which takes every script's digits; the last alternative catches what is not allowed.
_TOKEN = re.compile(r"[ \t\r\n]*+(?:([0-9]++)|([-+*/()=])|(.))", re.DOTALL)


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
    return _Reader(_tokens(text.strip(" \t\r\n"))).formula()


def _tokens(text: str) -> list[str]:
    tokens = []
    for number, sign, other in _TOKEN.findall(text):
        if other:
            raise FormulaError("only whole numbers, + - * / and parentheses are allowed")
        if len(number) > MAX_DIGITS or (len(number) > 1 and number[0] == "0"):
            raise FormulaError(f"numbers have at most {MAX_DIGITS} digits and no leading zero")
        tokens.append(number or sign)
    return tokens


class _Reader:
    """Recursive descent: sum = product ((+|-) product)*, product = atom ((*|/) atom)*."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0
        self._numbers: list[int] = []

    def formula(self) -> Formula:
        value = self._sum(0)
        numbers = tuple(self._numbers)
        claimed = None
        if self._take("="):
            claimed = self._number()
        if self._next:
            raise FormulaError("an operator or a parenthesis is missing or misplaced")
        return Formula(value, numbers, claimed)

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self, options: str) -> str:
        token = self._next
        if not token or token not in options:
            return ""
        self._at += 1
        return token

    def _number(self) -> int:
        token = self._next
        if not token.isdigit():
            raise FormulaError("a number is missing where one is needed")
        self._at += 1
        self._numbers.append(int(token))
        return self._numbers[-1]

    def _sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while sign := self._take("+-"):
            term = self._product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._atom(depth)
        while sign := self._take("*/"):
            factor = self._atom(depth)
            if sign == "*":
                value *= factor
            elif factor:
                value /= factor
            else:
                raise FormulaError("it divides by zero")
        return value

    def _atom(self, depth: int) -> Fraction:
        if not self._take("("):
            return Fraction(self._number())
        if depth == MAX_DEPTH:
            raise FormulaError(f"parentheses are nested more than {MAX_DEPTH} deep")
        value = self._sum(depth + 1)
        if not self._take(")"):
            raise FormulaError("a parenthesis is not closed")
        return value
