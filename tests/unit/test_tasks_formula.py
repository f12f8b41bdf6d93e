"""The formula judge accepts whole-number arithmetic, exactly, and nothing else."""

import ast
import contextlib
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks.formula import MAX_CHARACTERS, FormulaError, parse
from tests.cpu_time import cpu_seconds

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def python_value(text: str) -> Fraction:
    """The value by Python's own grammar."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        assert isinstance(node, ast.BinOp)
        return _OPERATORS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


formulas = st.recursive(
    st.integers(0, 9999).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", " - ", "*", " /"]), inner).map("".join),
        inner.map(lambda text: f"( {text})"),
    ),
    max_leaves=12,
)


@given(formulas)
@settings(max_examples=300, deadline=None)
def test_values_and_precedence_are_those_of_pythons_grammar_in_exact_fractions(text: str) -> None:
    try:
        expected = python_value(text)
    except ZeroDivisionError:
        with pytest.raises(FormulaError, match="divides by zero"):
            parse(text)
        return
    assert parse(text).value == expected


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("8/(3-8/3)", 24, (8, 3, 8, 3)),
        (" ( 10 - 4 ) * 4 ", 24, (10, 4, 4)),
        ("2-3-4", -5, (2, 3, 4)),
        ("24/2/3", 4, (24, 2, 3)),
        ("1+2*3", 7, (1, 2, 3)),
        ("((7))", 7, (7,)),
    ],
)
def test_a_formula_has_an_exact_value_and_its_numbers_in_order(
    text: str, value: int, numbers: tuple[int, ...]
) -> None:
    formula = parse(text)
    assert (formula.value, formula.numbers, formula.claimed) == (value, numbers, None)


def test_a_trailing_equals_sign_is_read_but_is_no_number_used() -> None:
    formula = parse("6 * 4 = 25")
    assert (formula.value, formula.numbers, formula.claimed) == (24, (6, 4), 25)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "()", "(3", "3)", "3+", "*3", "2 4", "3(8)", "(3)(8)", "-3+27", "+3", "3*-8", "(-3)",
        "2**3", "2 * * 3", "7//2", "1.5*16", "24.5", "24.", ".5", "1e3", "0x18", "1_000", "12345", "007",
        "=24", "24=", "3=24=24", "24=6*4", "24==24", "24=-24", "24=24.0",
        "٢٤", "２４", "²", "3×8", "3−8", "8÷2", "3x8", "3\x00", "3\N{NO-BREAK SPACE}8",
        "3+\N{ZERO WIDTH SPACE}8",
        "[3+8]", "{3}", "3,8", "24%25", "3|8", "3^8", "not 3", "abs(3)", "__import__('os')", "lambda:0",
        "3/0", "3/(2-2)", "3/(0*7)", "3" + "+3" * MAX_CHARACTERS, "(" * 65 + "3" + ")" * 65,
    ],
)  # fmt: skip
def test_everything_else_is_illegal(text: str) -> None:
    with pytest.raises(FormulaError):
        parse(text)


@given(st.text(max_size=600) | st.text(alphabet="0123456789+-*/()= \n", max_size=600))
@settings(max_examples=400, deadline=None)
def test_any_text_is_either_a_formula_or_a_formula_error(text: str) -> None:
    with contextlib.suppress(FormulaError):
        assert isinstance(parse(text).value, Fraction)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1_000_000,
        "9999*" * 101 + "9999",
        "1/" * 255 + "9",
        "/".join(str(9999 - i) for i in range(100)),
        " " * 1_000_000,
        "-" * 512,
    ],
)
def test_hostile_formulas_take_no_time(text: str) -> None:
    def read() -> None:
        with contextlib.suppress(FormulaError):
            parse(text)

    assert cpu_seconds(read, 0.05) < 0.05
