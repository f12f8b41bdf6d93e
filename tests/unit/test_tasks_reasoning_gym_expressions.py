"""Expressions are read by a grammar of their own: Python's arithmetic, sympy's calculus, and nothing that runs."""

import ast
import contextlib
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks import expressions
from rlheals_ray.tasks.expressions import ExpressionError
from tests.cpu_time import cpu_seconds

WHOLE = st.integers(0, 99).map(str)
ARITHMETIC = st.recursive(
    WHOLE,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " - ", " * "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-({})".format),
    ),
    max_leaves=12,
)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def python_value(node: ast.AST) -> Fraction:
    """What Python's own grammar makes of the text, with fractions for numbers."""
    match node:
        case ast.Constant(int() as number):
            return Fraction(number)
        case ast.UnaryOp(ast.USub(), operand):
            return -python_value(operand)
        case ast.BinOp(left, sign, right):
            return OPERATORS[type(sign)](python_value(left), python_value(right))
    raise AssertionError(ast.dump(node))


@settings(max_examples=300, deadline=None)
@given(ARITHMETIC)
def test_arithmetic_has_the_value_that_pythons_grammar_gives_it(text: str) -> None:
    tree = ast.parse(text, mode="eval").body
    numbers = sorted(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    ours = expressions.read(text)
    assert sorted(expressions.numbers(ours)) == numbers
    try:
        value = python_value(tree)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError):
            expressions.value(ours)
    else:
        assert expressions.value(ours) == value


POLYNOMIAL = st.lists(
    st.tuples(
        st.integers(-99, 99), st.sampled_from(["x", "y", "x*y", "x**2", "x**3*y", "y**5"])
    ), min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(POLYNOMIAL)
def test_the_monomials_of_an_expanded_polynomial_are_sympys(terms: list[tuple[int, str]]) -> None:
    text = " + ".join(f"{number}*{name}" for number, name in terms)
    x, y = sympy.symbols("x y")
    wanted = {
        tuple((name, power) for name, power in zip("xy", powers, strict=True) if power): Fraction(int(number))
        for powers, number in sympy.Poly(sympy.sympify(text), x, y).terms()
        if number
    }
    assert expressions.monomials(expressions.read(text)) == wanted


@pytest.mark.parametrize(
    "text", ["(x + 1)*(x - 1)", "x*(x + 1)", "(x + 1)**2", "x**y", "x/y", "x**-1", "x**1.5"]
)
def test_what_is_not_multiplied_out_is_not_a_polynomial(text: str) -> None:
    with pytest.raises(ExpressionError):
        expressions.monomials(expressions.read(text))


CALCULUS = st.recursive(
    st.one_of(st.just("x"), st.integers(1, 5).map(str)),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(st.sampled_from(["sin", "cos", "tan", "exp", "atan"]), inner).map(
            lambda t: f"{t[0]}({t[1]})"
        ),
        st.tuples(inner, st.sampled_from(["2", "3", "(-1)"])).map(lambda t: f"{t[0]}**{t[1]}"),
    ),
    max_leaves=5,
)


POINT = 0.4 + 0.3j


def by_sympy(text: str) -> list[complex]:
    """Value and derivative at the point."""
    x = sympy.Symbol("x")
    tree = sympy.sympify(text)
    return [complex(one.subs(x, POINT).evalf(40)) for one in (tree, sympy.diff(tree, x))]


@settings(max_examples=300, deadline=None)
@given(CALCULUS)
def test_a_derivative_is_sympys(text: str) -> None:
    try:
        value, slope = expressions.dual(expressions.read(text), {"x": (POINT, 1 + 0j)})
    except (ArithmeticError, ValueError):
        assume(False)
    assume(1e-6 < max(abs(value), abs(slope)) < 1e6)
    assert (value, slope) == pytest.approx(by_sympy(text), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    ["log(x)", "sqrt(2*x - 5)", "asin(3*x)", "acos(x)/x", "atan(x**2)", "cot(x)", "sec(x)", "(1 - 9*x)**(3/2)",
     "x**x", "E**(3*x)", "2**x", "pi*x", "(2 - x)**0.5", "x**-3", "exp(-6*x - 10)*sin(8*x)**4"],
)  # fmt: skip
def test_so_it_is_off_the_branch_cuts(text: str) -> None:
    names = {"x": (POINT, 1 + 0j), "E": (complex(math.e), 0j), "pi": (complex(math.pi), 0j)}
    assert expressions.dual(expressions.read(text), names) == pytest.approx(by_sympy(text), rel=1e-9)


@pytest.mark.parametrize(
    "text",
    ["", "x x", "2x", "(1", "1)", "1 +", "* 1", "x.y", "x_", "f(", "1..2", "٣", "x^2", "1 if 1", "'a'", "[1]",
     "lambda: 0", "__import__('os')", "1e5", "9" * 41, "(" * 30 + "1" + ")" * 30, "2**" * 30 + "2", "1+" * 2000 + "1"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        expressions.read(text)


HOSTILE = [
    "9" * 40 + "**64", "(9**64)**64", "*".join(["999999**16/7"] * 200), "+".join(f"1/{n}" for n in range(1, 600)),
    "-" * 2999 + "1", "2**(2**(2**(2**(2**2))))", "*".join(["x**999"] * 400), "sin(" * 24 + "x" + ")" * 24,
    "x**x**x**x**x**x", "+".join(["sin(x)"] * 400),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HOSTILE) | st.text("0123456789+-*/()x. sincoexp", max_size=3_000))
def test_no_text_takes_long_or_raises_anything_unexpected(text: str) -> None:
    def dual(tree: expressions.Node) -> object:
        return expressions.dual(tree, {"x": (1.3 + 0.4j, 1 + 0j)})

    def read(reading: Callable[[expressions.Node], object]) -> None:
        with contextlib.suppress(ExpressionError, ArithmeticError, ValueError):
            reading(expressions.read(text))

    for reading in (expressions.value, expressions.monomials, expressions.numbers, dual):
        assert cpu_seconds(partial(read, reading), 0.05) < 0.05
