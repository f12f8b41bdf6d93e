"""Every formula that makes a target from given numbers, each used once, and whether there is one.

A formula is a chain of terms (+, -) or of factors (*, /), flattened: `a - (b - c)` is `a + c - b`.
Operands stand in one order, larger value first. Every intermediate value is kept non-negative (turning
`b - a` into `a - b` changes a sign that the chain around it absorbs), no zero is subtracted and
nothing is divided by 1. So two formulas differ by more than commutativity, associativity or sign, and
nothing solvable is lost: the target is positive, hence so is the sign left over at the top.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd

Values = tuple[int, ...]
_Operand = tuple[Fraction, str]
"""A value and the text that makes it."""
_Chain = tuple[tuple[_Operand, ...], tuple[_Operand, ...]]
"""(added, subtracted) or (multiplied by, divided by), each in canonical order."""
_Chains = dict[Fraction, dict[_Chain, None]]
"""Chains by their value; the inner dict is a set that keeps its order."""

# Five and six cards have far more sub-multisets than should stay in memory.
_CACHED = 4096


@dataclass(frozen=True)
class _Kind:
    """Chains of one kind of operator and its inverse."""

    signs: tuple[str, str]
    apply: tuple[Callable[[Fraction, Fraction], Fraction], Callable[[Fraction, Fraction], Fraction]]
    never_inverted: tuple[int, ...]
    """Operands of these values are never subtracted or divided by: it would be undefined or idle."""

    @property
    def other(self) -> _Kind:
        return _PRODUCT if self is _SUM else _SUM

    def text(self, chain: _Chain) -> str:
        direct, inverse = chain
        text = f" {self.signs[0]} ".join(text for _, text in direct)
        return text + "".join(f" {self.signs[1]} {text}" for _, text in inverse)


_SUM = _Kind(("+", "-"), (operator.add, operator.sub), (0,))
_PRODUCT = _Kind(("*", "/"), (operator.mul, operator.truediv), (0, 1))


def solutions(values: Values, target: int) -> tuple[str, ...]:
    """All distinct formulas that make `target`, space-separated, fewest tokens first, then by text.

    Depends only on the multiset of `values`. Values and target are positive integers, else ValueError.
    """
    return _solutions(_checked(values, target), target)


def solvable(values: Values, target: int) -> bool:
    """Whether any formula makes `target`; much cheaper than `solutions`, with the same arguments."""
    return _solvable(_checked(values, target), (target, 1))


def _checked(values: Values, target: int) -> Values:
    if not values or min(values) < 1 or target < 1:
        raise ValueError(f"values {values} and target {target} must be positive integers")
    return tuple(sorted(values))


@lru_cache(_CACHED)
def _solutions(values: Values, target: int) -> tuple[str, ...]:
    if len(values) == 1:
        return (str(target),) if values == (target,) else ()
    found = {
        kind.text(chain)
        for kind in (_SUM, _PRODUCT)
        for first, rest in _splits(values)
        for chain in _chains_making(kind, first, rest, Fraction(target))
    }
    return tuple(sorted(found, key=lambda text: (len(text.split()), text)))


def _chains_making(kind: _Kind, first: Values, rest: Values, target: Fraction) -> Iterator[_Chain]:
    """Chains of `target` whose one operand is made of `first`: the others' value follows from it."""
    others = _chains(kind, rest)
    for operand in _operands(kind, first):
        if kind is _PRODUCT and not operand[0]:
            continue
        for inverse in _places(kind, operand):
            for chain in others.get(kind.apply[1 - inverse](target, operand[0]), ()):
                joined = _join(operand, inverse, chain)
                if joined[0]:
                    yield joined


@lru_cache(_CACHED)
def _chains(kind: _Kind, values: Values) -> _Chains:
    """Every chain that uses `values`, of one operand or more, by the value that it contributes."""
    chains: _Chains = defaultdict(dict)
    for operand in _operands(kind, values):
        for inverse in _places(kind, operand):
            neutral = Fraction(kind is _PRODUCT)
            chains[kind.apply[inverse](neutral, operand[0])][_join(operand, inverse, ((), ()))] = None
    for value, chain in _long_chains(kind, values):
        chains[value][chain] = None
    return dict(chains)


def _long_chains(kind: _Kind, values: Values) -> Iterator[tuple[Fraction, _Chain]]:
    """Chains of two operands or more, with repeats."""
    for first, rest in _splits(values):
        for operand in _operands(kind, first):
            for inverse in _places(kind, operand):
                for value, others in _chains(kind, rest).items():
                    total = kind.apply[inverse](value, operand[0])
                    for chain in others:
                        yield total, _join(operand, inverse, chain)


@lru_cache(_CACHED)
def _operands(kind: _Kind, values: Values) -> tuple[_Operand, ...]:
    """What may stand as one operand: a number, or a non-negative chain of the other kind."""
    if len(values) == 1:
        return ((Fraction(values[0]), str(values[0])),)
    wrap = "( {} )" if kind is _PRODUCT else "{}"
    texts = {
        wrap.format(kind.other.text(chain)): value
        for value, chain in _long_chains(kind.other, values)
        if value >= 0 and chain[0]
    }
    return tuple((value, text) for text, value in texts.items())


def _places(kind: _Kind, operand: _Operand) -> tuple[int, ...]:
    return (0,) if operand[0] in kind.never_inverted else (0, 1)


def _join(operand: _Operand, inverse: int, chain: _Chain) -> _Chain:
    direct, inverted = chain
    if inverse:
        return direct, tuple(sorted((*inverted, operand), key=_canonical))
    return tuple(sorted((*direct, operand), key=_canonical)), inverted


def _canonical(operand: _Operand) -> tuple[Fraction, str]:
    return -operand[0], operand[1]


@lru_cache(_CACHED)
def _splits(values: Values) -> tuple[tuple[Values, Values], ...]:
    """Ways to part a sorted multiset in two, one part holding its first element; balanced parts first."""
    parts: dict[tuple[Values, Values], None] = {}
    for mask in range(2 ** (len(values) - 1) - 1):
        chosen = [bool(mask >> i & 1) for i in range(len(values) - 1)]
        first = (values[0], *(v for v, taken in zip(values[1:], chosen, strict=True) if taken))
        rest = tuple(v for v, taken in zip(values[1:], chosen, strict=True) if not taken)
        parts[first, rest] = None
    return tuple(sorted(parts, key=lambda pair: abs(len(pair[0]) - len(pair[1]))))


_Ratio = tuple[int, int]
"""A non-negative number as numerator and denominator in lowest terms: several times faster to make and to look up
than a Fraction."""


@lru_cache(1 << 16)
def _solvable(values: Values, target: _Ratio) -> bool:
    """Meet in the middle: for each value of the smaller part, is what is missing made by the larger?"""
    if len(values) == 1:
        return target == (values[0], 1)
    for pair in _splits(values):
        small, large = sorted(pair, key=len)
        for x in _reachable(small):
            if target[0] == 0 == x[0]:
                return True
            if not x[0]:  # 0 is of use as a term alone
                missing = {target}
            elif not target[0]:  # 0 is the difference of equals, or has a factor 0
                missing = {x, target}
            else:
                missing = set(_combined(target, x))
            if _any_reached(large, missing):
                return True
    return False


def _any_reached(values: Values, wanted: set[_Ratio]) -> bool:
    if len(values) <= 3:
        return not wanted.isdisjoint(_reachable(values))
    return any(_solvable(values, value) for value in wanted)


@lru_cache(_CACHED)
def _reachable(values: Values) -> frozenset[_Ratio]:
    """Absolute values of everything that can be made."""
    if len(values) == 1:
        return frozenset(((values[0], 1),))
    reached: set[_Ratio] = set()
    for first, rest in _splits(values):
        for x in _reachable(first):
            for y in _reachable(rest):
                reached.update(_combined(x, y))
    return frozenset(reached)


def _combined(x: _Ratio, y: _Ratio) -> list[_Ratio]:
    """x + y, |x - y|, x * y, and x / y and y / x where they are defined."""
    (a, b), (c, d) = x, y
    left, right, bottom = a * d, c * b, b * d
    found = [(left + right, bottom), (abs(left - right), bottom), (a * c, bottom)]
    if right:
        found.append((left, right))
    if left:
        found.append((right, left))
    return [(top // divisor, under // divisor) for top, under in found for divisor in (gcd(top, under),)]
