"""Navigation: problems, groups and splits; options."""

import pickle
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Rule, Split, Task, get_task
from rlheals_ray.tasks.navigation import FEWEST, NavigationProblem
from rlheals_ray.tasks.navigation_routes import DIRECTIONS, NAMES, TURNS, relative_turn

TASK = get_task("navigation", pool=1000)
SPLITS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))
OPTIONS: list[dict[str, Any]] = [
    {"pool": 1000},
    {"pool": 500, "turns": [2, 2], "landmarks": 8},
    {"pool": 600, "turns": [5, 6], "held_out": 0.5},
]


def drawn(
    task: Task, rule: Rule, split: Split, count: int | None = None, seed: int = 0
) -> list[NavigationProblem]:
    number = task.available(rule, split) if count is None else count
    return cast(list[NavigationProblem], task.problems(rule, split, number, seed))


# Problems


@pytest.mark.parametrize("options", OPTIONS)
def test_problems_are_distinct_and_fewer_are_a_prefix(options: dict[str, Any]) -> None:
    task = get_task("navigation", **options)
    for rule, split in SPLITS:
        problems = drawn(task, rule, split)
        assert len({p.id for p in problems}) == len({p.route for p in problems}) == len(problems) >= FEWEST
        for count in (0, 1, 17, 90):
            assert drawn(task, rule, split, count) == problems[:count]
        assert {p.id for p in drawn(task, rule, split, seed=1)} == {p.id for p in problems}
        assert drawn(task, rule, split, seed=1) != problems


@pytest.mark.parametrize("options", OPTIONS)
def test_train_eval_and_ood_share_no_group(options: dict[str, Any]) -> None:
    task = get_task("navigation", **options)
    train, held_out, ood = ({p.group for p in drawn(task, rule, split)} for rule, split in SPLITS)
    assert not train & held_out and not train & ood and not held_out & ood


def test_routes_that_differ_by_landmarks_and_compass_alone_are_of_one_group() -> None:
    shapes: dict[str, set[Any]] = {}
    for problem in drawn(TASK, "id", "train"):
        key = tuple((leg.turn, leg.blocks) for leg in problem.route.legs)
        shapes.setdefault(problem.group, set()).add(key)
    assert all(len(keys) == 1 for keys in shapes.values())
    assert len({key for keys in shapes.values() for key in keys}) == len(shapes)


def test_all_numbers_of_turns_are_equally_frequent_in_every_prefix() -> None:
    turns = [len(problem.route.legs) for problem in drawn(TASK, "id", "eval")]
    assert set(turns) == {2, 3, 4, 5, 6}
    for length in range(5, len(turns) + 1):
        counts = Counter(turns[:length])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_one_problem_of_every_group_comes_before_a_second_of_any() -> None:
    task = get_task("navigation", turns=[2, 2], pool=500)
    groups = [problem.group for problem in drawn(task, "id", "train")]
    assert len(set(groups[: len(set(groups))])) == len(set(groups)) < len(groups)


def test_headings_follow_from_the_start_and_the_turns() -> None:
    for problem in drawn(TASK, "ood", "eval", 200):
        degrees = 45 * DIRECTIONS.index(problem.route.heading)
        for leg in problem.route.legs:
            before, degrees = degrees, (degrees + TURNS[leg.turn]) % 360
            assert leg.direction == DIRECTIONS[degrees // 45]
            assert relative_turn(before, degrees) == leg.turn
            assert 1 <= leg.blocks <= 3


def test_no_landmark_is_named_twice_in_a_route() -> None:
    for problem in drawn(get_task("navigation", landmarks=8, pool=500), "id", "train", 200):
        names = [
            leg.sight.removeprefix("The destination ").split(" is on ")[0]
            for leg in problem.route.legs
            if leg.sight
        ]
        assert len(set(names)) == len(names) and set(names) <= set(NAMES[:8])
        assert problem.route.legs[-1].sight.startswith("The destination ")


def test_more_problems_than_there_are_or_fewer_than_none_are_refused() -> None:
    there = TASK.available("id", "eval")
    with pytest.raises(InputError, match=rf"count: {there + 1} id eval .*ask for {there} at most"):
        TASK.problems("id", "eval", there + 1)
    with pytest.raises(InputError, match=r"count: 1 ood train .*use split='eval'"):
        TASK.problems("ood", "train", 1)
    with pytest.raises(InputError, match="count: -1"):
        TASK.problems("id", "eval", -1)
    with pytest.raises(InputError, match="rule"):
        TASK.available("odd", "eval")
    with pytest.raises(InputError, match="split"):
        TASK.available("id", "test")  # type: ignore[arg-type]


def test_the_task_and_its_problems_travel() -> None:
    [problem] = drawn(TASK, "ood", "eval", 1)
    task = pickle.loads(pickle.dumps(TASK))
    assert task == TASK and hash(task) == hash(TASK) and pickle.loads(pickle.dumps(problem)) == problem
    assert task.judge(problem, task.demonstration(problem)).solved
    with pytest.raises(TypeError):
        TASK.judge(Problem("x", "id", "x"), "")


# Options


@pytest.mark.parametrize(
    ("options", "field", "remedy"),
    [
        ({"turn": 3}, "task.turn", "turns, landmarks, wording"),
        ({"turns": [1, 3]}, "task.turns.0", "greater than or equal to 2"),
        ({"turns": [2, 7]}, "task.turns.1", "less than or equal to 6"),
        ({"turns": [4, 3]}, "task.turns", r"write for example \[2, 6\]"),
        ({"turns": 3}, "task.turns", "tuple"),
        ({"landmarks": 7}, "task.landmarks", "greater than or equal to 8"),
        ({"landmarks": 1000}, "task.landmarks", f"less than or equal to {len(NAMES)}"),
        ({"wording": "terse"}, "task.wording", "'compact' or 'paper'"),
        ({"held_out": 0}, "task.held_out", "greater than 0"),
        ({"pool": 10}, "task.pool", "greater than or equal to 500"),
        ({"routes": 3}, "task.routes", "valid string"),
        ({"turns": [2, 2], "held_out": 0.001}, r"task.turns \(got \[2, 2\]\)", "change held_out"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(options: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(InputError, match=rf"{field}.*{remedy}"):
        get_task("navigation", **options)


@pytest.mark.parametrize(
    ("before", "after", "turn"),
    [
        (0, 45, "slightly right"),
        (0, 46, "right"),
        (350, 10, "slightly right"),
        (10, 350, "slightly left"),
        (0, 270, "left"),
        (90, 0, "left"),
        (0, 135, "right"),
        (30, 30, "slightly left"),
        (0, 180, "left"),
    ],
)
def test_a_turn_is_named_by_the_smaller_angle(before: float, after: float, turn: str) -> None:
    assert relative_turn(before, after) == turn


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_any_seed_gives_the_same_problems_again(seed: int) -> None:
    assert drawn(TASK, "ood", "eval", 7, seed) == drawn(
        get_task("navigation", pool=1000), "ood", "eval", 7, seed
    )
