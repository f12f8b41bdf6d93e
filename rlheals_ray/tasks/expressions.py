"""Arithmetic and calculus expressions that a model wrote: read by a small grammar, never run by Python.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "/") signed)*
    signed  = ("+" | "-")* power
    power   = atom ("**" signed)?
    atom    = number | name | name "(" sum ")" | "(" sum ")"

Three readings of one tree: its exact value, the monomials of an expanded polynomial, and its value with its
derivative at a complex point. Length and depth are bounded, so each takes linear time and little of the stack.
"""

from __future__ import annotations

import cmath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 3_000
MAX_DEPTH = 24
MAX_DIGITS = 40
MAX_EXPONENT = 64
"""Of a number; a name may have any whole exponent that can be written."""
MAX_BITS = 2_000
"""Of every numerator and denominator on the way to an exact value."""

# [0-9], not \d, which takes every script's digits; the last alternative catches what is not allowed.
_TOKEN = re.compile(r"\s*+(?:([0-9]++(?:\.[0-9]++)?+)|([A-Za-z][A-Za-z0-9]*+)|(\*\*|[-+*/()])|(\S))", re.A)


class ExpressionError(ValueError):
    """The text is not an expression of the kind asked for."""


@dataclass(frozen=True)
class Number:
    value: Fraction
    whole: bool
    """Whether it was written without a point."""


@dataclass(frozen=True)
class Name:
    name: str


@dataclass(frozen=True)
class Sum:
    terms: tuple[tuple[bool, Node], ...]
    """Whether each is subtracted, and the term. One entry is a signed expression."""


@dataclass(frozen=True)
class Product:
    factors: tuple[tuple[bool, Node], ...]
    """Whether each divides, and the factor."""


@dataclass(frozen=True)
class Power:
    base: Node
    exponent: Node


@dataclass(frozen=True)
class Call:
    function: str
    argument: Node


Node = Number | Name | Sum | Product | Power | Call


def read(text: str) -> Node:
    """The tree of an expression; raises ExpressionError for any other text."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"it is longer than {MAX_CHARACTERS} characters")
    tokens = []
    for number, name, sign, other in _TOKEN.findall(text):
        if other or len(number) > MAX_DIGITS:
            raise ExpressionError("it holds a character or a number that is not allowed")
        tokens.append(number or name or sign)
    reader = _Reader(tokens)
    tree = reader.sum(0)
    if reader.next:
        raise ExpressionError("an operator or a parenthesis is missing or misplaced")
    return tree


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._at = 0

    @property
    def next(self) -> str:
        return self._tokens[self._at]

    def _take(self, *options: str) -> str:
        token = self.next
        if not token or token not in options:
            return ""
        self._at += 1
        return token

    def sum(self, depth: int) -> Node:
        # Every cycle of the grammar passes here or through an exponent, where the depth is counted.
        if depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested more than {MAX_DEPTH} deep")
        terms = [(False, self._product(depth))]
        while sign := self._take("+", "-"):
            terms.append((sign == "-", self._product(depth)))
        return terms[0][1] if len(terms) == 1 else Sum(tuple(terms))

    def _product(self, depth: int) -> Node:
        factors = [(False, self._signed(depth))]
        while sign := self._take("*", "/"):
            factors.append((sign == "/", self._signed(depth)))
        return factors[0][1] if len(factors) == 1 else Product(tuple(factors))

    def _signed(self, depth: int) -> Node:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        power = self._power(depth)
        return Sum(((True, power),)) if negative else power

    def _power(self, depth: int) -> Node:
        base = self._atom(depth)
        if not self._take("**"):
            return base
        if depth >= MAX_DEPTH:
            raise ExpressionError(f"it is nested more than {MAX_DEPTH} deep")
        return Power(base, self._signed(depth + 1))

    def _atom(self, depth: int) -> Node:
        token = self.next
        if token[:1].isdigit():
            self._at += 1
            return Number(Fraction(token), "." not in token)
        name = token if token[:1].isalpha() else ""
        self._at += bool(name)
        if self._take("("):
            inner = self.sum(depth + 1)
            if not self._take(")"):
                raise ExpressionError("a parenthesis is not closed")
            return Call(name, inner) if name else inner
        if not name:
            raise ExpressionError("a number or a name is missing where one is needed")
        return Name(name)


def numbers(tree: Node) -> list[int]:
    """The whole numbers of a tree of + - * / alone; raises ExpressionError where it holds anything else."""
    match tree:
        case Number(value, True):
            return [int(value)]
        case Sum(parts) | Product(parts):
            return [number for _, part in parts for number in numbers(part)]
    raise ExpressionError("only whole numbers, + - * / and parentheses are allowed")


def value(tree: Node) -> Fraction:
    """The exact value of a tree without names; raises ExpressionError for any other, or a division by zero."""
    match tree:
        case Number(number):
            return number
        case Sum(terms):
            total = Fraction(0)
            for minus, term in terms:
                total = _bounded(total - value(term) if minus else total + value(term))
            return total
        case Product(factors):
            product = Fraction(1)
            for divides, factor in factors:
                product = _bounded(product * (_inverse(value(factor)) if divides else value(factor)))
            return product
        case Power(base, exponent):
            power, number = value(exponent), value(base)
            if power.denominator != 1 or abs(power) > MAX_EXPONENT:
                raise ExpressionError("a power is not a whole number or too large")
            return _bounded(number ** int(power) if power >= 0 else _inverse(number) ** int(-power))
    raise ExpressionError("it is not a number")


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        raise ExpressionError("a number on the way is too large")
    return number


def _inverse(number: Fraction) -> Fraction:
    if not number:
        raise ExpressionError("it divides by zero")
    return 1 / number


Monomial = tuple[tuple[str, int], ...]
"""Names in order, each with its exponent, which is not zero."""


def monomials(tree: Node) -> dict[Monomial, Fraction]:
    """The non-zero coefficients of a polynomial that is written out as a sum of monomials.

    Raises ExpressionError for any other form, a product of sums above all: multiplying out is what was asked for.
    """
    terms = tree.terms if isinstance(tree, Sum) else ((False, tree),)
    found: dict[Monomial, Fraction] = {}
    for minus, term in terms:
        coefficient, exponents = _monomial(term)
        key = tuple(sorted((name, power) for name, power in exponents.items() if power))
        found[key] = _bounded(found.get(key, Fraction(0)) + (-coefficient if minus else coefficient))
    return {key: coefficient for key, coefficient in found.items() if coefficient}


def _monomial(term: Node) -> tuple[Fraction, Counter[str]]:
    match term:
        case Name(name):
            return Fraction(1), Counter({name: 1})
        case Power(Name(name), Number(exponent, True)):
            return Fraction(1), Counter({name: int(exponent)})
        case Sum(((True, inner),)):
            coefficient, exponents = _monomial(inner)
            return -coefficient, exponents
        case Product(factors):
            product, powers = Fraction(1), Counter[str]()
            for divides, factor in factors:
                if divides:
                    product = _bounded(product * _inverse(value(factor)))
                    continue
                coefficient, exponents = _monomial(factor)
                product = _bounded(product * coefficient)
                powers.update(exponents)
            return product, powers
    return value(term), Counter()


Dual = tuple[complex, complex]
"""A value and its derivative."""

_FUNCTIONS: dict[str, Callable[[complex], Dual]] = {
    "sin": lambda z: (cmath.sin(z), cmath.cos(z)),
    "cos": lambda z: (cmath.cos(z), -cmath.sin(z)),
    "tan": lambda z: (cmath.tan(z), 1 / cmath.cos(z) ** 2),
    "cot": lambda z: (1 / cmath.tan(z), -1 / cmath.sin(z) ** 2),
    "sec": lambda z: (1 / cmath.cos(z), cmath.tan(z) / cmath.cos(z)),
    "exp": lambda z: (cmath.exp(z), cmath.exp(z)),
    "log": lambda z: (cmath.log(z), 1 / z),
    "ln": lambda z: (cmath.log(z), 1 / z),
    "sqrt": lambda z: (cmath.sqrt(z), 0.5 / cmath.sqrt(z)),
    "asin": lambda z: (cmath.asin(z), 1 / cmath.sqrt(1 - z * z)),
    "acos": lambda z: (cmath.acos(z), -1 / cmath.sqrt(1 - z * z)),
    "atan": lambda z: (cmath.atan(z), 1 / (1 + z * z)),
}


def dual(tree: Node, names: Mapping[str, Dual]) -> Dual:
    """Value and derivative by forward differentiation; functions take their principal branches.

    Raises ExpressionError for an unknown name or function, ArithmeticError or ValueError at a point where it
    has no finite value.
    """
    match tree:
        case Number(number):
            return complex(number), 0j
        case Name(name):
            if name not in names:
                raise ExpressionError("it holds an unknown name")
            return names[name]
        case Sum(terms):
            total, slope = 0j, 0j
            for minus, term in terms:
                z, dz = dual(term, names)
                total, slope = (total - z, slope - dz) if minus else (total + z, slope + dz)
            return total, slope
        case Product(factors):
            total, slope = 1 + 0j, 0j
            for divides, factor in factors:
                z, dz = dual(factor, names)
                if divides:
                    total, slope = total / z, (slope * z - total * dz) / (z * z)
                else:
                    total, slope = total * z, slope * z + total * dz
            return total, slope
        case Power(base, exponent):
            (z, dz), (n, dn) = dual(base, names), dual(exponent, names)
            power = z**n
            if dn:
                return power, power * (dn * cmath.log(z) + n * dz / z)
            return power, n * z ** (n - 1) * dz if n else 0j
        case Call(function, argument):
            if function not in _FUNCTIONS:
                raise ExpressionError("it holds an unknown function")
            z, dz = dual(argument, names)
            inner, outer = _FUNCTIONS[function](z)
            return inner, outer * dz
