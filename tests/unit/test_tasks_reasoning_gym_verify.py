"""Answers to items of reasoning-gym are judged by what is right, where the package's own verifier is not."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks.reasoning_gym_config import make
from rlheals_ray.tasks.reasoning_gym_verify import MAX_EXTRA, Verifier, verifier
from tests.cpu_time import cpu_seconds

Entry = dict[str, Any]


def entry(answer: str, **metadata: Any) -> Entry:
    return {"question": "?", "answer": answer, "metadata": metadata}


def judge(dataset: str) -> Verifier:
    return verifier(dataset, make(dataset, {}, 0))


BOARD = "[[0,1],[1,0]]"
DEALT = entry("(8 - 5)*10 - 6", numbers=[8, 5, 10, 6])
MADE = entry("2*3 + 4", numbers=[2, 3, 4], target=10)
CUBE = entry("x**3 + C", integrand="3*x**2", variable="x")
ROOT = entry("2*(4*x + 2)**(3/2)/3 + C", integrand="4*sqrt(4*x + 2)", variable="x")
ARC = entry("x*asin(3*x) + sqrt(1 - 9*x**2)/3 + C", integrand="asin(3*x)", variable="x")
WAVE = entry("sin(x)**2/2 + C", integrand="sin(x)*cos(x)", variable="x")
LETTERS = entry("ABCDEFGHIJKL")
SORTED = entry("['-1.5', '2', '3']", sorted_numbers=["-1.5", "2", "3"])
RARE = entry("0.00003", rational={"numerator": 1, "denominator": 32768})


@pytest.mark.parametrize(
    ("dataset", "item", "right", "wrong"),
    [
        (
            "puzzle24", DEALT, ["10*(8-5)-6", "-6 + 10*(8 - 5)"],
            ["6*4*1*1", "49/2", "10*(8-5)-6*1", "24", "10*(8-5)-6=24", "(8 - 5)*10 - 6 # or", ""],
        ),
        ("countdown", MADE, ["4 + 3*2", "(2*3) + 4"], ["2*3 + 2 + 2", "10", "2**3 + 4 - 2", "2.3 + 4", "4 + 6"]),
        ("countdown", entry("", numbers=[1, 5, 16], target=24), [], ["1.5*16", "(1 + 5)*(16 - 12)"]),
        ("countdown", entry("", numbers=[2, 3, 4], target=12), [], ["2**3 + 4"]),
        ("simple_integration", CUBE, ["x**3", "x*x*x + 7", "x**3 - C"],
         ["x**3 + x", "Integral(3*x**2, x)", "C*x**3", "x**3 + x**1000", "x**3 + x**-1000", "y**3", "3*x**2", "x^3"]),
        ("intermediate_integration", ROOT, ["sqrt(4*x + 2)**3*2/3"],
         ["Integral(4*sqrt(4*x + 2), x)", "2*(4*x + 2)**(3/2)", "sqrt(4*x + 2)"]),
        ("intermediate_integration", ARC, ["asin(3*x)*x + (1 - 9*x*x)**0.5/3"], ["x*asin(3*x)", "x*acos(3*x)"]),
        ("intermediate_integration", WAVE, ["-cos(x)**2/2", "-cos(2*x)/4 + C"], ["cos(x)**2/2", "exp(exp(exp(x*99)))"]),
        ("polynomial_multiplication", entry("x**2 - 1"), ["-1 + x*x", "2*x**2 - x**2 - 1"], ["(x+1)*(x-1)", "x**2"]),
        ("coin_flip", entry("0.234375", rational={"numerator": 15, "denominator": 64}),
         ["15/64", "0.2344", ".234375"], ["0.23", "1e999999999", "15/0", "nan", "0.234375 or 0.5"]),
        ("coin_flip", RARE, ["1/32768", "3.05e-5"], ["0", "0.0001"]),
        ("complex_arithmetic", entry("8.0 + 3.0i", result=(8, 3)), ["8+3i", "8.0 + 3.0j"],
         ["nan", "nan+nanj", "8", ""]),
        ("game_of_life_halting", entry("False"), ["False"], ["True", "x", "0"]),
        ("game_of_life", entry(BOARD), ["[[0, 1], [1, 0]]"],
         ["[[0,1,1],[1,0]]", "[[0,1],[1,0],[1,1]]", "[[0,true],[1,0]]"]),
        ("figlet_font", LETTERS, ["abcdefghijkl", "A B C D E F G H I J K L"], ["ABCDEFGHIJxx", "ABCDEFGHIJKLM"]),
        ("letter_jumble", entry("two words"), ["Two  words"], ["two words and more", "two"]),
        ("gsm_symbolic", entry("1200"), ["1,200", "$1200", "1200.0"], ["-1200", "1200 or 1300", "x 1200", ""]),
        ("gsm_symbolic", entry("-1"), ["-1"], ["1"]),
        ("number_sorting", SORTED, ["['-1.50', '2.0', '3']", "[-1.5, 2, 3]"],
         ["['-1', '2', '3']", "[3, 2, -1.5]", "[2, 3]"]),
        ("polynomial_equations", entry("-1.5, 2.0"), ["2, -1.5"],
         ["2", "-1.5, 2, 3", "-1.5, 2.0, x", "nan", "-1.5001, 2"]),
        ("polynomial_equations", entry(""), ["", '""'], ["none", "0"]),
        ("pool_matrix", entry("9 7\n2.5 3"), ["9 7\n2.5 3.0"], ["9 7", "9 7 2.5 3", "9 7\n2.5 nan", "", "9 8\n2.5 3"]),
        ("bitwise_arithmetic", entry("-0x1f"), ["-0x1F", "-31"], ["0x1f", "1f", "-0x1f + 0", "0x"]),
        ("n_queens", entry("Q _", valid_answers=["Q _", "_ Q"]), ["_ Q"], ["Q Q", "[['Q', '_']]"]),
        *((name, entry("1 2"), ["1 2"], ["[1, 2]", "['1', ' ', '2']", "1  2"])
          for name in ("binary_matrix", "spiral_matrix", "string_insertion")),
        ("calendar_arithmetic", entry("-2", task="count_days"), ["-2"], ["3", "-1", "9" * 400]),
        ("prime_factorization", entry("2 × 3"), ["3 × 2"], ["6", "two", "1 × 6"]),
    ],
)  # fmt: skip
def test_right_answers_pass_and_tempting_ones_do_not(
    dataset: str, item: Entry, right: list[str], wrong: list[str]
) -> None:
    solved = judge(dataset)
    assert [answer for answer in right if not solved(answer, item)] == []
    assert [answer for answer in wrong if solved(answer, item)] == []


@pytest.mark.parametrize(
    "dataset",
    ["binary_matrix", "countdown", "puzzle24", "n_queens", "spiral_matrix", "string_insertion", "number_sorting",
     "bitwise_arithmetic", "polynomial_multiplication", "simple_integration", "intermediate_integration"],
)  # fmt: skip
def test_no_answer_is_run(dataset: str, tmp_path: Path) -> None:
    item = entry(
        "1", numbers=[1], target=1, integrand="1", variable="x", valid_answers=["1"], sorted_numbers=["1"]
    )
    trap = f"__import__('os').mkdir({str(tmp_path / 'sprung')!r})"
    solved = judge(dataset)
    assert not any(solved(answer, item) for answer in (trap, f"[{trap}]", f"({trap} or 1)"))
    assert not list(tmp_path.iterdir())


@given(st.lists(st.integers(1, 30), min_size=3, max_size=5), st.data())
@settings(max_examples=300, deadline=None)
def test_a_formula_of_all_the_numbers_passes_if_and_only_if_it_has_the_value(
    numbers: list[int], data: st.DataObject
) -> None:
    text, value = str(numbers[0]), Fraction(numbers[0])
    for number in data.draw(st.permutations(numbers[1:])):
        sign = data.draw(st.sampled_from("+-*/"))
        text = f"({text}){sign}{number}"
        value = {
            "+": value + number, "-": value - number, "*": value * number, "/": value / number,
        }[sign]  # fmt: skip
    target = data.draw(st.sampled_from([int(value), int(value) + 1]))
    item = entry("", numbers=numbers, target=target)
    assert judge("countdown")(text, item) == (value == target)


@pytest.mark.parametrize(
    "dataset", ["jugs", "knight_swap", "sokoban", "word_ladder", "group_anagrams", "chain_sum"]
)
def test_an_answer_far_longer_than_the_items_own_is_not_read(dataset: str) -> None:
    item = entry("1", solution=[], letters=[])
    solved, answer = judge(dataset), "1" + " " * (MAX_EXTRA + 5) * 100
    assert not solved(answer, item)
    assert cpu_seconds(lambda: solved(answer, item), 0.05) < 0.05


@given(st.recursive(st.integers(0, 1), lambda inner: st.lists(inner, max_size=3), max_leaves=9))
@settings(max_examples=300, deadline=None)
def test_a_board_is_right_if_and_only_if_it_is_the_board(told: object) -> None:
    assert judge("game_of_life")(json.dumps(told), entry(BOARD)) == (told == json.loads(BOARD))
