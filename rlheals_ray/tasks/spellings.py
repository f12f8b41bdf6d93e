"""The same formula in other orders of its operands, as in `4 * ( 10 - 4 )` for `( 10 - 4 ) * 4`.

The solver keeps one order of each formula. Three cards seldom have two solutions (of the deals that
make 18 or 24, 6 %), so a demonstration that is to vary has to vary the order too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product


def spellings(formula: str) -> list[str]:
    """Every order of a space-separated formula's operands, the given one first, the others by text.

    What is added or multiplied stays before what is subtracted or divided by.
    """
    return [formula, *sorted(set(_orders(formula.split())) - {formula})]


def second_shortest(formulas: tuple[str, ...]) -> str:
    """What to show instead of the first of a hand's `solutions`; itself if there is nothing else.

    Another formula as short, else the first in another order, else a longer one.
    """
    first, *others = formulas
    if others and len(others[0].split()) == len(first.split()):
        return others[0]
    return [*spellings(first), *others, first][1]


def _orders(tokens: list[str]) -> Iterator[str]:
    if len(tokens) == 1:
        yield tokens[0]
        return
    for signs in ("+-", "*/"):
        operands = _parted(tokens, signs)
        if len(operands) > 1:
            yield from _chain_orders(operands, signs[0])
            return
    for inner in _orders(tokens[1:-1]):
        yield f"( {inner} )"


def _chain_orders(operands: list[tuple[str, list[str]]], direct_sign: str) -> Iterator[str]:
    for spelled in product(*(list(_orders(tokens)) for _, tokens in operands)):
        signed = [(sign, text) for (sign, _), text in zip(operands, spelled, strict=True)]
        direct = [text for sign, text in signed if sign == direct_sign]
        inverse = [f"{sign} {text}" for sign, text in signed if sign != direct_sign]
        for before, after in product(permutations(direct), permutations(inverse)):
            yield " ".join([f" {direct_sign} ".join(before), *after])


def _parted(tokens: list[str], signs: str) -> list[tuple[str, list[str]]]:
    """(sign, operand) of the outermost chain of `signs`; the first operand's sign is the direct one."""
    operands: list[tuple[str, list[str]]] = [(signs[0], [])]
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth == 0 and token in signs:
            operands.append((token, []))
        else:
            operands[-1][1].append(token)
    return operands
