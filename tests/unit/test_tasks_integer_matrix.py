"""Rank and determinant against sympy, near-copies, and how answers are read and judged, of both tasks on matrices."""

import json
import os
import random
import re
import subprocess
import sys

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.integer_matrix import Matrix, find_answer, group_of, rank_and_determinant
from tests.cpu_time import cpu_seconds
from tests.matrices import integer_matrices, near_copy

RANK = "rlheals_ray.tasks.matrix_rank:MatrixRank"
DETERMINANT = "rlheals_ray.tasks.determinant:Determinant"
TASK = get_task(RANK)
COMPACT = get_task(RANK, wording="compact")


@given(integer_matrices())
@settings(max_examples=200, deadline=None)
def test_rank_is_that_of_rational_arithmetic(rows: Matrix) -> None:
    assert rank_and_determinant(rows)[0] == sympy.Matrix(rows).rank()


squares = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(squares)
@settings(max_examples=200, deadline=None)
def test_the_determinant_is_that_of_rational_arithmetic(rows: list[list[int]]) -> None:
    assert rank_and_determinant([tuple(row) for row in rows])[1] == sympy.Matrix(rows).det()


@given(integer_matrices(), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_near_copies_share_a_group_and_a_rank(rows: Matrix, rng: random.Random) -> None:
    near = near_copy(rows, rng)
    assert group_of(near) == group_of(rows) == group_of(tuple(zip(*near, strict=True)))
    assert rank_and_determinant(near)[0] == rank_and_determinant(rows)[0]


RANK_2 = TASK.problem_of(((1, 2, 3), (2, 4, 6), (0, 1, 1)), "id", 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"answer": 2}', 5),
        ("I take R2 := R2 - 2 * R1 = [0, 0, 0].\n{'answer': 2,}", 5),
        ("{answer:2}", 5),
        ('{"working": "two rows are left", "pivots": [1, 2], "answer": 2}', 5),
        ('{"answer": 1} no, {"answer": 2} is right', 5),
        ('{"answer": 2} no, {"answer": 3}', -1),
        ('{"answer": 0}', -1),
        ('{"answer": -2}', -1),
        ('{"answer": 22222222222222222222222222}', -1),
        ('{"answer": 2} or {"answer": "two"}', -3),
        ('{"answer": 2.0}', -3),
        ('{"answer": "2"}', -3),
        ('{"answer": 02}', -3),
        ('{"answer": ٢}', -3),
        ('{"answer": 1+1}', -3),
        ('{"answer": [2]}', -3),
        ('{"answer": true}', -3),
        ('{"rank": 2}', -3),
        ('{"note": "answer: 2"}', -3),
        ("2", -3),
        ("", -3),
    ],
)
def test_the_last_answer_object_counts_and_only_integers_do(text: str, reward: float) -> None:
    verdict = TASK.judge(RANK_2, text)
    assert (verdict.reward, verdict.solved, verdict.well_formed) == (reward, reward == 5, reward != -3)


@given(st.text(), st.integers(-(10**30), 10**30), st.text())
@settings(max_examples=300, deadline=None)
def test_a_json_object_amid_any_text_without_braces_is_read(before: str, answer: int, after: str) -> None:
    before, after = (re.sub(r"[{}]", "", text) for text in (before, after))
    assert find_answer(before + json.dumps({"answer": answer}) + after) == str(answer)


@given(
    st.text()
    | st.text(alphabet='{}":answer0123456789-, \n')
    | st.integers().map(lambda n: f'{{"answer": {n}}}')
    | st.text().map(lambda text: json.dumps({"answer": text}))
)
@settings(max_examples=400, deadline=None)
def test_the_judge_is_total_and_its_feedback_names_no_number(text: str) -> None:
    for task in (TASK, COMPACT):
        verdict = task.judge(RANK_2, text)
        assert verdict.reward in (5, -1, -3)
        assert verdict.solved == (verdict.reward == 5) == (verdict.feedback == "")
        assert verdict.well_formed == (verdict.reward != -3)
        assert not re.search(r"\d", task.reply(verdict))


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10**6,
        "{}" * 10**6,
        '{"answer":' * 10**5,
        '{"answer": ' + "9" * 10**6 + "}",
        '{"answer": ' + "9" * 16_000 + "}",
        '{"answers": 2}' * 10**5,
        '{"answer": 2 2}' * 10**5,
        "{a:1," + "a:1," * 3000 + "}",
        "{" + " " * 16_000 + "answer" + "}",
        '{"' + "a" * 16_000 + "}",
        "{" + "a" * 16_000 + "}",
        '{"answer": "' * 10**5 + "}",
        "{answer:[" * 10**5 + "]}",
    ],
)
def test_hostile_answers_take_no_time(text: str) -> None:
    assert not TASK.judge(RANK_2, text).solved
    assert cpu_seconds(lambda: TASK.judge(RANK_2, text), 0.05) < 0.05


_EVERYTHING = """
import json, sys
from rlheals_ray.tasks import get_task
seen = []
for name in sys.argv[1:]:
    task = get_task(name, pool=600)
    seen.append(task.fingerprint())
    for rule, split in (("id", "train"), ("id", "eval"), ("ood", "eval")):
        for problem in task.problems(rule, split, 100, seed=3):
            seen.append([problem.id, problem.group, task.prompt(problem), task.demonstration(problem, seed=5)])
print(json.dumps(seen))
"""


def test_nothing_depends_on_the_process_or_its_hash_seed() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _EVERYTHING, RANK, DETERMINANT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0])) == 602
