"""The solver finds every target that brute force finds, and only right formulas."""

import itertools
import operator
import random
from fractions import Fraction
from functools import lru_cache

import pytest

from rlheals_ray.tasks.formula import parse
from rlheals_ray.tasks.solver import solutions, solvable
from rlheals_ray.tasks.spellings import second_shortest, spellings
from tests.cpu_time import cpu_seconds


@lru_cache(None)
def brute_force(numbers: tuple[Fraction, ...]) -> frozenset[Fraction]:
    """Every value: put any two numbers together in any way, and go on with what is left."""
    if len(numbers) == 1:
        return frozenset(numbers)
    made: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
        for apply in (operator.add, operator.sub, operator.mul, operator.truediv):
            if apply is not operator.truediv or numbers[j]:
                made |= brute_force(tuple(sorted([*rest, apply(numbers[i], numbers[j])])))
    return frozenset(made)


def test_three_numbers_solvable_exactly_where_brute_force_is() -> None:
    for values in itertools.combinations_with_replacement(range(1, 14), 3):
        made = brute_force(tuple(map(Fraction, values)))
        for target in (1, 7, 18, 24):
            assert solvable(values, target) == (target in made) == bool(solutions(values, target)), values


def test_four_numbers_solvable_exactly_where_brute_force_is() -> None:
    draw = random.Random(0)
    for _ in range(60):
        values = tuple(sorted(draw.choices(range(1, 14), k=4)))
        made = brute_force(tuple(map(Fraction, values)))
        for target in (1, 18, 24):
            assert solvable(values, target) == (target in made) == bool(solutions(values, target)), values


def test_all_1362_solvable_hands_of_the_24_game_are_found() -> None:
    # The known number of solvable multisets of four numbers from 1 to 13.
    hands = itertools.combinations_with_replacement(range(1, 14), 4)
    assert sum(solvable(hand, 24) for hand in hands) == 1362


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_formula_is_right_distinct_and_ordered_by_length(count: int) -> None:
    draw = random.Random(count)
    for _ in range(120):
        values = tuple(draw.choices(range(1, 14), k=count))
        found = solutions(values, 24)
        assert len(set(found)) == len(found)
        assert list(found) == sorted(found, key=lambda text: (len(text.split()), text))
        for text in found:
            formula = parse(text)
            assert formula.value == 24
            assert sorted(formula.numbers) == sorted(values)
            assert " ".join(text.split()) == text


def test_only_the_multiset_matters() -> None:
    assert len({solutions(order, 24) for order in itertools.permutations((1, 4, 8, 8))}) == 1


def test_commuted_regrouped_and_sign_flipped_copies_are_one_formula() -> None:
    assert solutions((8, 8, 3, 3), 24) == ("8 / ( 3 - 8 / 3 )",)
    assert solutions((10, 4, 4), 24) == ("( 10 - 4 ) * 4",)
    assert solutions((3, 10, 5), 18) == ("10 + 5 + 3",)
    assert solutions((24, 1), 24) == ("24 * 1",)
    assert solutions((1, 2, 3, 4), 24) == (
        "4 * 3 * 2 * 1",
        "( 3 + 2 + 1 ) * 4",
        "( 4 + 2 ) * ( 3 + 1 )",
    )


def test_a_single_number_makes_itself() -> None:
    assert solutions((24,), 24) == ("24",)
    assert not solvable((23,), 24)


@pytest.mark.parametrize(("values", "target"), [((), 24), ((0, 24), 24), ((24, -1), 24), ((3, 8), 0)])
def test_numbers_must_be_positive(values: tuple[int, ...], target: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        solvable(values, target)


def test_four_numbers_take_milliseconds_and_five_well_under_a_second() -> None:
    assert cpu_seconds(lambda: solutions((5, 7, 11, 13), 24), 0.2, runs=1) < 0.2
    assert cpu_seconds(lambda: solutions((2, 3, 5, 7, 11), 24), 2, runs=1) < 2
    assert solutions((2, 3, 5, 7, 11), 24)


def test_spellings_are_all_orders_of_the_operands_of_every_chain() -> None:
    assert spellings("( 10 - 4 ) * 4") == ["( 10 - 4 ) * 4", "4 * ( 10 - 4 )"]
    assert spellings("8 / ( 3 - 8 / 3 )") == ["8 / ( 3 - 8 / 3 )"]
    assert len(spellings("4 * 3 * 2 * 1")) == 24
    assert sorted(spellings("5 * 4 + 3 - 2 - 1")) == sorted(
        f"{direct} - {inverse}"
        for direct in ("5 * 4 + 3", "4 * 5 + 3", "3 + 5 * 4", "3 + 4 * 5")
        for inverse in ("2 - 1", "1 - 2")
    )


@pytest.mark.parametrize("count", [3, 4])
def test_every_spelling_has_the_value_and_the_numbers_of_its_formula(count: int) -> None:
    draw = random.Random(count)
    for _ in range(100):
        for formula in solutions(tuple(draw.choices(range(1, 14), k=count)), 24)[:3]:
            for spelling in spellings(formula):
                assert parse(spelling).value == 24
                assert sorted(parse(spelling).numbers) == sorted(parse(formula).numbers)


def test_the_second_shortest_is_another_formula_or_order_before_a_longer_formula() -> None:
    assert second_shortest(("9 * 6 / 3", "9 + 6 + 3")) == "9 + 6 + 3"
    assert second_shortest(("5 * 4 - 2", "( 5 + 4 ) * 2")) == "4 * 5 - 2"
    assert second_shortest(("8 / 2", "( 8 + 2 ) * 1")) == "( 8 + 2 ) * 1"
    assert second_shortest(("8 / 2",)) == "8 / 2"
