"""The determinant: problems, demonstrations and verdicts, against sympy and against every small matrix there is."""

import json
import re
from itertools import product
from typing import Any, cast

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Rule, Split, Task, get_task
from rlheals_ray.tasks.integer_matrix import Matrix
from rlheals_ray.tasks.matrix_task import MatrixProblem

NAME = "rlheals_ray.tasks.determinant:Determinant"
TASK = get_task(NAME)
COMPACT = get_task(NAME, wording="compact")
SYMMETRIC = get_task(NAME, symmetric=True)
SPLITS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))


def drawn(
    task: Task, rule: Rule, split: Split, count: int | None = None, seed: int = 0
) -> list[MatrixProblem]:
    number = task.available(rule, split) if count is None else count
    return cast(list[MatrixProblem], task.problems(rule, split, number, seed))


def every(task: Task, rule: Rule) -> list[Matrix]:
    splits: tuple[Split, ...] = ("train", "eval")
    return [problem.rows for split in splits for problem in drawn(task, rule, split)]


def test_every_invertible_2x2_matrix_in_range_is_a_problem_once_and_nothing_else_is() -> None:
    entries = range(-4, 5)
    general = {((a, b), (c, d)) for a, b, c, d in product(entries, repeat=4) if a * d != b * c}
    assert len(every(TASK, "id")) == len(general)
    assert set(every(TASK, "id")) == general
    symmetric = {rows for rows in general if rows[0][1] == rows[1][0]}
    assert len(every(SYMMETRIC, "id")) == len(symmetric)
    assert set(every(SYMMETRIC, "id")) == symmetric


@pytest.mark.parametrize("task", [TASK, SYMMETRIC], ids=["general", "symmetric"])
@pytest.mark.parametrize(("rule", "split"), SPLITS)
def test_every_problem_has_the_determinant_that_it_says_and_it_is_not_0(
    task: Task, rule: Rule, split: Split
) -> None:
    for problem in drawn(task, rule, split, 100):
        assert problem.answer == sympy.Matrix(problem.rows).det() != 0
        assert task is TASK or sympy.Matrix(problem.rows).is_symmetric()


def test_the_two_rules_differ_in_shape_and_range() -> None:
    for rule, size, bound in (("id", 2, 4), ("ood", 3, 5)):
        matrices = every(TASK, cast(Rule, rule))
        assert {(len(rows), len(row)) for rows in matrices for row in rows} == {(size, size)}
        assert {x for rows in matrices for row in rows for x in row} == set(range(-bound, bound + 1))


def test_no_probed_matrix_is_a_trained_one_turned_reflected_or_with_other_signs() -> None:
    def near(rows: Matrix) -> set[tuple[int, ...]]:
        (a, b), (c, d) = [[abs(x) for x in row] for row in rows]
        turned = [(a, b, c, d), (c, a, d, b), (d, c, b, a), (b, d, a, c)]
        return {*turned, *((p, r, q, s) for p, q, r, s in turned)}

    train, probed = (
        {copy for problem in drawn(TASK, "id", split) for copy in near(problem.rows)}
        for split in cast(tuple[Split, ...], ("train", "eval"))
    )
    assert train and probed and not train & probed


@pytest.mark.parametrize("task", [TASK, SYMMETRIC], ids=["general", "symmetric"])
def test_problems_are_distinct_and_fewer_are_a_prefix_spread_over_groups(task: Task) -> None:
    for rule, split in SPLITS:
        problems = drawn(task, rule, split)
        assert len({p.id for p in problems}) == len({p.rows for p in problems}) == len(problems)
        assert drawn(task, rule, split, 50) == problems[:50]
        groups = {p.group for p in problems}
        assert len({p.group for p in problems[: len(groups)]}) == len(groups)
        assert drawn(task, rule, split, seed=1) != problems


def test_the_few_symmetric_matrices_do_not_run_out_unnoticed() -> None:
    there = SYMMETRIC.available("id", "train")
    assert there < 729
    with pytest.raises(InputError, match=rf"count: 1000 id train .*there are {there} distinct ones; ask for"):
        SYMMETRIC.problems("id", "train", 1000)


def test_ood_matrices_of_the_same_size_hold_an_entry_that_id_matrices_cannot_hold() -> None:
    task = get_task(NAME, id_size=3, ood_size=3, ood_entries=[-5, 4], pool=1000)
    assert all(min(map(min, rows)) == -5 for rows in every(task, "ood"))


def test_an_ood_matrix_is_no_near_copy_of_an_id_matrix() -> None:
    """With other signs alone it would be one: [-6, 4] holds the negatives of [0, 4]."""
    task = get_task(NAME, ood_size=2, id_entries=[0, 4], ood_entries=[-6, 4])
    train, held_out, ood = ({p.group for p in drawn(task, rule, split)} for rule, split in SPLITS)
    assert ood and not ood & (train | held_out)


def test_the_ood_rule_cannot_be_trained_on() -> None:
    assert TASK.available("ood", "train") == 0
    with pytest.raises(InputError, match="only ever evaluated"):
        TASK.problems("ood", "train", 1)


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"size": 2}, "task.size", "id_size"),
        ({"id_size": 5}, "task.id_size", "less than or equal to 4"),
        ({"id_size": 1}, "task.id_size", "greater than or equal to 2"),
        ({"ood_size": 2.0}, "task.ood_size", "valid integer"),
        ({"symmetric": "yes"}, "task.symmetric", "valid boolean"),
        ({"id_entries": [4, 4]}, "task.id_entries", "the least entry comes first"),
        ({"ood_size": 2, "ood_entries": [-4, 4]}, "task.ood_size", "another shape or entries beyond"),
        ({"id_size": 3, "id_entries": [-5, 5]}, "task.ood_size", "another shape or entries beyond"),
        ({"id_entries": [-1, 1]}, "task.id_entries", "fewer than 100; widen id_entries"),
        ({"ood_entries": [0, 1], "symmetric": True}, "task.ood_entries", "fewer than 100; widen ood_entries"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(field)}\b.*{remedy}") as caught:
        get_task(NAME, **options)
    assert "\n" not in str(caught.value)


squares = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(squares)
@settings(max_examples=150, deadline=None)
def test_every_line_of_a_demonstration_is_a_true_equation_about_a_determinant(rows: list[list[int]]) -> None:
    matrix = tuple(map(tuple, rows))
    determinant = int(sympy.Matrix(rows).det())
    problem = TASK.problem_of(matrix, "id", determinant)  # type: ignore[attr-defined]
    *steps, answer = TASK.demonstration(problem).splitlines()
    for line in steps:
        left, *values = line.split(" = ")
        shown = sympy.Matrix(json.loads(left.removeprefix("det ")))
        assert [sympy.sympify(value) for value in values] == [shown.det()] * len(values)
    assert json.loads(steps[-1].split(" = ")[0].removeprefix("det ")) == rows
    assert json.loads(answer) == {"answer": determinant}
    assert TASK.judge(problem, TASK.demonstration(problem)).solved


@given(squares)
@settings(max_examples=100, deadline=None)
def test_a_minor_is_shown_before_it_is_used(rows: list[list[int]]) -> None:
    task = TASK.problem_of(tuple(map(tuple, rows)), "id", 0)  # type: ignore[attr-defined]
    seen: set[int] = set()
    for line in TASK.demonstration(task).splitlines()[:-1]:
        left, terms, *rest = line.split(" = ")
        if len(json.loads(left.removeprefix("det "))) > 2 and rest:
            assert {int(term.split(" * ")[1]) for term in terms.split(" + ")} <= seen
        seen.add(int(line.rpartition(" = ")[2]))


@pytest.mark.parametrize("wording", ["compact", "paper"])
@pytest.mark.parametrize("working", [True, False])
def test_every_demonstration_is_solved_and_shows_its_steps_only_if_asked(wording: str, working: bool) -> None:
    task = get_task(NAME, wording=wording, working=working)
    for rule, split in SPLITS:
        for problem in drawn(task, rule, split, 200):
            shown = task.demonstration(problem, seed=3)
            assert task.judge(problem, shown).solved
            assert working == ("det" in shown)
            assert working or json.loads(shown) == {"answer": problem.answer}


def test_only_the_determinant_itself_solves() -> None:
    for problem in drawn(TASK, "ood", "eval", 20):
        for wrong in (-problem.answer, problem.answer + 1, 0):
            verdict = TASK.judge(problem, f'{{"answer": {wrong}}}')
            assert (verdict.reward, verdict.well_formed) == (-1, True)
            assert (
                verdict.feedback
                == "You failed this trial because your answer is not the determinant of the matrix."
            )


def test_the_compact_wording_is_words_in_one_line_and_says_what_the_other_says() -> None:
    for problem in drawn(COMPACT, "ood", "eval", 50):
        prompt, shown = COMPACT.prompt(problem), COMPACT.demonstration(problem)
        assert prompt == f"determinant {' ; '.join(' '.join(map(str, row)) for row in problem.rows)} reply"
        plain = TASK.demonstration(problem).replace("\n", " . ").replace("], [", " ; ")
        assert shown == re.sub(r"[\[\],]", "", plain).replace("}", " }")
        assert COMPACT.reply(COMPACT.judge(problem, "")) == "failed illegal"
        assert COMPACT.reply(COMPACT.judge(problem, '{"answer": 0}')) == "failed nomatch"


def test_the_fingerprint_is_that_of_the_options() -> None:
    changes: dict[str, Any] = {
        "id_entries": [-3, 3],
        "ood_entries": [-6, 6],
        "wording": "compact",
        "working": False,
        "held_out": 0.3,
        "pool": 5000,
        "symmetric": True,
        "id_size": 4,
        "ood_size": 4,
    }
    assert set(changes) == set(TASK.Options.model_fields)  # type: ignore[attr-defined]
    tasks = [TASK, *(get_task(NAME, **{name: value}) for name, value in changes.items())]
    assert len({task.fingerprint() for task in tasks}) == len(changes) + 1
    assert get_task(NAME, id_size=2).fingerprint() == TASK.fingerprint()
