"""Matrix rank: problems, demonstrations and verdicts, against sympy's rational arithmetic."""

import json
import pickle
import random
import re
import time
from collections import Counter
from typing import Any, cast

import pytest
import sympy
from hypothesis import given, settings
from scipy.stats import chisquare

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Rule, Split, Task, get_task
from rlheals_ray.tasks.integer_matrix import Matrix
from rlheals_ray.tasks.matrix_task import MatrixProblem
from rlheals_ray.tasks.splits import FEWEST
from tests.matrices import integer_matrices, near_copy

NAME = "rlheals_ray.tasks.matrix_rank:MatrixRank"
OTHER = "rlheals_ray.tasks.determinant:Determinant"
TASK = get_task(NAME)
COMPACT = get_task(NAME, wording="compact")
SPLITS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))
SMALL = {"id_shape": [2, 3], "ood_shape": [3, 3], "ood_entries": [-2, 2]}
OPTIONS: list[dict[str, Any]] = [
    {},
    SMALL,
    {"pool": 600, "held_out": 0.5},
    {"ood_shape": [4, 5]},
    {"id_shape": [2, 3], "ood_shape": [2, 3]},
]


def drawn(
    task: Task, rule: Rule, split: Split, count: int | None = None, seed: int = 0
) -> list[MatrixProblem]:
    number = task.available(rule, split) if count is None else count
    return cast(list[MatrixProblem], task.problems(rule, split, number, seed))


def posed(rows: Matrix) -> MatrixProblem:
    return TASK.problem_of(rows, "id", sympy.Matrix(rows).rank())  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("rule", "split"), SPLITS)
def test_every_problem_has_the_rank_that_it_says(rule: Rule, split: Split, seed: int) -> None:
    problems = drawn(TASK, rule, split, 60, seed)
    assert all(problem.answer == sympy.Matrix(problem.rows).rank() for problem in problems)


def test_the_two_rules_differ_in_shape_and_range() -> None:
    sizes = {}
    for rule, height, width, bound in (("id", 4, 5, 4), ("ood", 5, 4, 5)):
        problems = drawn(TASK, cast(Rule, rule), "eval")
        assert {(len(p.rows), len(p.rows[0])) for p in problems} == {(height, width)}
        sizes[rule] = {
            r: max(abs(x) for p in problems if p.answer == r for row in p.rows for x in row) for r in (1, 4)
        }
        # A product of factors within the bound cannot leave rank * bound².
        assert all(largest <= rank * bound**2 for rank, largest in sizes[rule].items())
    assert sizes["id"][1] == 16 and sizes["ood"][1] == 25


@pytest.mark.parametrize(("rule", "split"), SPLITS)
def test_ranks_1_to_4_are_uniform_and_never_0(rule: Rule, split: Split) -> None:
    """Pearson's test at the level 1 %, of 400 problems by a fixed seed; and exactly, in every prefix."""
    ranks = [sympy.Matrix(p.rows).rank() for p in drawn(TASK, rule, split, 400, seed=7)]
    counts = Counter(ranks)
    assert set(counts) == {1, 2, 3, 4}
    assert chisquare(list(counts.values())).pvalue > 0.01
    for length in range(4, 401):
        prefix = Counter(ranks[:length])
        assert max(prefix.values()) - min(prefix.values()) <= 1


def test_the_place_of_a_problem_does_not_tell_its_rank() -> None:
    first_of_four = Counter(p.answer for p in drawn(TASK, "id", "eval", 1600)[::4])
    assert chisquare(list(first_of_four.values())).pvalue > 0.01


def test_ood_matrices_of_the_same_shape_have_a_factor_that_id_matrices_cannot_have() -> None:
    """Of rank 1, u·vᵀ with some entry ±5 in u or v: a whole row or column is divisible by 5."""
    task = get_task(NAME, ood_shape=[4, 5])
    for problem in drawn(task, "ood", "eval"):
        if problem.answer == 1:
            lines = [*problem.rows, *zip(*problem.rows, strict=True)]
            assert any(all(entry % 5 == 0 for entry in line) for line in lines)


@pytest.mark.parametrize("options", OPTIONS)
def test_problems_are_distinct_and_fewer_are_a_prefix(options: dict[str, Any]) -> None:
    task = get_task(NAME, **options)
    for rule, split in SPLITS:
        problems = drawn(task, rule, split)
        assert len({p.id for p in problems}) == len({p.rows for p in problems}) == len(problems) >= FEWEST
        for count in (0, 1, 17, 90):
            assert drawn(task, rule, split, count) == problems[:count]
        assert {p.id for p in drawn(task, rule, split, seed=1)} == {p.id for p in problems}
        assert drawn(task, rule, split, seed=1) != problems


@pytest.mark.parametrize("options", OPTIONS)
def test_train_eval_and_ood_share_no_group(options: dict[str, Any]) -> None:
    task = get_task(NAME, **options)
    train, held_out, ood = ({p.group for p in drawn(task, rule, split)} for rule, split in SPLITS)
    assert not train & held_out and not train & ood and not held_out & ood


def test_no_probed_matrix_is_a_trained_one_with_lines_reordered_negated_or_transposed() -> None:
    task, rng = get_task(NAME, **SMALL), random.Random(0)
    probed = {p.rows for split in ("id", "ood") for p in drawn(task, cast(Rule, split), "eval")}
    for problem in drawn(task, "id", "train"):
        for _ in range(5):
            near = near_copy(problem.rows, rng)
            assert near not in probed and tuple(zip(*near, strict=True)) not in probed


def test_a_round_of_every_group_comes_before_a_second_of_any() -> None:
    task = get_task(NAME, **SMALL)
    problems = [p for p in drawn(task, "id", "train") if p.answer == 1]
    groups = {p.group for p in problems}
    assert len(groups) < len(problems)
    assert len({p.group for p in problems[: len(groups)]}) == len(groups)


def test_one_more_than_there_are_is_refused_with_their_number() -> None:
    task = get_task(NAME, **SMALL)
    there = task.available("id", "eval")
    with pytest.raises(
        InputError, match=rf"count: {there + 1} id eval .*there are {there} distinct ones; ask for"
    ):
        task.problems("id", "eval", there + 1)
    with pytest.raises(InputError, match="negative"):
        task.problems("id", "eval", -1)


def test_the_ood_rule_cannot_be_trained_on() -> None:
    assert TASK.available("ood", "train") == 0
    assert TASK.problems("ood", "train", 0) == []
    with pytest.raises(InputError, match="only ever evaluated"):
        TASK.problems("ood", "train", 1)


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"shape": [4, 5]}, "task.shape", "id_shape"),
        ({"id_shape": [4, 7]}, "task.id_shape.1", "less than or equal to 6"),
        ({"id_shape": [1, 5]}, "task.id_shape.0", "greater than or equal to 2"),
        ({"id_shape": [4]}, "task.id_shape", ""),
        ({"id_entries": [4, -4]}, "task.id_entries", "the least entry comes first"),
        ({"id_entries": [0, 0]}, "task.id_entries", "the least entry comes first"),
        ({"ood_entries": [-5, 21]}, "task.ood_entries.1", "less than or equal to 20"),
        ({"id_entries": ["-4", 4]}, "task.id_entries.0", "valid integer"),
        ({"ood_shape": [4, 5], "ood_entries": [-4, 4]}, "task.ood_shape", "another shape or entries beyond"),
        ({"id_shape": [5, 4], "id_entries": [-5, 5]}, "task.ood_shape", "another shape or entries beyond"),
        ({"ood_shape": [4, 5], "ood_entries": [-2, 3]}, "task.ood_shape", "another shape or entries beyond"),
        ({"id_shape": [2, 2], "id_entries": [0, 1]}, "task.id_entries", "fewer than 100; widen id_entries"),
        ({"wording": "terse"}, "task.wording", "'compact' or 'paper'"),
        ({"working": 1}, "task.working", "valid boolean"),
        ({"held_out": 0.0}, "task.held_out", "greater than 0"),
        ({"pool": 10}, "task.pool", "greater than or equal to 500"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"{re.escape(field)}\b.*{remedy}") as caught:
        get_task(NAME, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_rule_or_split_is_refused() -> None:
    for rule, split, field in (("odd", "eval", "rule"), ("id", "test", "split")):
        with pytest.raises(InputError, match=f"^{field}: there is no"):
            TASK.problems(cast(Rule, rule), cast(Split, split), 1)


def test_another_tasks_problem_is_a_programming_error() -> None:
    for problem in (Problem("x", "id", "x"), drawn(get_task(OTHER), "id", "eval", 1)[0]):
        with pytest.raises(TypeError):
            TASK.judge(problem, "")


_OPERATION = re.compile(
    r"R(\d) := (?:\( )?(?:(\d+) \* )?R(\d) ([+-]) (?:(\d+) \* )?R(\d)(?: \) / (\d+))? = (.*)"
)


@given(integer_matrices())
@settings(max_examples=200, deadline=None)
def test_every_step_of_a_demonstration_is_true_and_ends_in_row_echelon_form(rows: Matrix) -> None:
    work = sympy.Matrix(rows)
    problem = posed(rows)
    *operations, counted, answer = TASK.demonstration(problem).splitlines()
    for line in operations:
        if swap := re.fullmatch(r"swap R(\d) and R(\d)", line):
            work.row_swap(*(int(row) - 1 for row in swap.groups()))
            continue
        match = _OPERATION.fullmatch(line)
        assert match, line
        target, keep, same, sign, factor, pivot, divisor, result = match.groups()
        assert target == same != pivot
        scaled = int(keep or 1) * work.row(int(target) - 1)
        other = int(factor or 1) * work.row(int(pivot) - 1)
        row = (scaled + other if sign == "+" else scaled - other) / int(divisor or 1)
        assert list(row) == json.loads(result)
        work[int(target) - 1, :] = row
    assert work.is_echelon
    nonzero = sum(any(work.row(i)) for i in range(work.rows))
    assert counted == f"nonzero rows = {nonzero}"
    assert json.loads(answer) == {"answer": nonzero}
    assert TASK.judge(problem, TASK.demonstration(problem)).solved


@pytest.mark.parametrize("wording", ["compact", "paper"])
@pytest.mark.parametrize("working", [True, False])
def test_every_demonstration_is_solved_and_shows_its_steps_only_if_asked(wording: str, working: bool) -> None:
    task = get_task(NAME, wording=wording, working=working)
    for rule, split in SPLITS:
        for problem in drawn(task, rule, split, 200):
            shown = task.demonstration(problem, seed=3)
            assert task.judge(problem, shown).solved
            assert working == ("nonzero rows" in shown)
            assert working or json.loads(shown) == {"answer": problem.answer}


def test_the_compact_wording_is_words_in_one_line_and_says_what_the_other_says() -> None:
    for problem in drawn(COMPACT, "ood", "eval", 50):
        prompt, shown = COMPACT.prompt(problem), COMPACT.demonstration(problem)
        assert prompt == f"rank {' ; '.join(' '.join(map(str, row)) for row in problem.rows)} reply"
        assert "\n" not in shown
        plain = re.sub(r"[\[\],]", "", TASK.demonstration(problem)).replace("\n", " . ")
        assert shown == plain.replace("}", " }")


def test_the_prompt_shows_the_matrix_and_not_the_rank() -> None:
    for problem in drawn(TASK, "id", "eval", 20):
        prompt = TASK.prompt(problem)
        assert json.loads(prompt.partition("Matrix: ")[2].partition("\n")[0]) == [
            list(row) for row in problem.rows
        ]
        assert TASK.prompt(posed(problem.rows)) == prompt
        unlike = TASK.problem_of(problem.rows, "id", problem.answer + 1)  # type: ignore[attr-defined]
        assert TASK.prompt(unlike) == prompt


def test_the_fingerprint_is_that_of_the_options() -> None:
    changes: dict[str, Any] = {
        "id_entries": [-3, 3],
        "ood_entries": [-6, 6],
        "wording": "compact",
        "working": False,
        "held_out": 0.3,
        "pool": 5000,
        "id_shape": [3, 5],
        "ood_shape": [5, 3],
    }
    assert set(changes) == set(TASK.Options.model_fields)  # type: ignore[attr-defined]
    tasks = [TASK, get_task(OTHER), *(get_task(NAME, **{name: value}) for name, value in changes.items())]
    assert len({task.fingerprint() for task in tasks}) == len(changes) + 2
    assert get_task(NAME, id_shape=[4, 5]).fingerprint() == TASK.fingerprint()


def test_the_task_and_its_problems_travel() -> None:
    problem = drawn(TASK, "id", "eval", 1)[0]
    assert pickle.loads(pickle.dumps(problem)) == problem
    task = pickle.loads(pickle.dumps(TASK))
    assert task.judge(problem, task.demonstration(problem)).solved
    assert task.problems("id", "eval", 1) == [problem]


def test_the_default_problems_are_drawn_in_seconds() -> None:
    task = get_task(NAME, pool=9_999)  # not yet in any cache
    started = time.process_time()
    task.problems("ood", "eval", 450)
    assert task.available("id", "train") >= 5000
    assert time.process_time() - started < 5
