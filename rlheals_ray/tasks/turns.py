"""A task's turns, whether it has several or not: who plays, judges or demonstrates episodes asks here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from rlheals_ray.tasks.task import Problem, Task, TurnwiseTask, Verdict

TURNWISE = ("turns", "judge_turn", "demonstration_turns")
"""The methods that a task has all of or none."""


def is_turnwise(task: Task) -> TypeGuard[TurnwiseTask]:
    """Whether an episode may go on after a right answer."""
    return hasattr(task, "judge_turn")


def turns_of(task: Task, problem: Problem) -> int:
    """How many right answers the problem takes at most."""
    return task.turns(problem) if is_turnwise(task) else 1


def judge_turn(task: Task, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
    """The verdict on an answer that follows these accepted ones."""
    return task.judge_turn(problem, earlier, text) if is_turnwise(task) else task.judge(problem, text)


def demonstration_turns(task: Task, problem: Problem, seed: int = 0) -> list[str]:
    """The right answers in order."""
    return (
        task.demonstration_turns(problem, seed=seed)
        if is_turnwise(task)
        else [task.demonstration(problem, seed=seed)]
    )


def replies_of(task: Task, problem: Problem, answers: Sequence[str]) -> list[str]:
    """What is said after each of the right answers but the last.

    Raises ValueError where one of them is not accepted: then the task breaks what it promises.
    """
    replies = []
    for place, answer in enumerate(answers[:-1]):
        verdict = judge_turn(task, problem, answers[:place], answer)
        if not verdict.accepted:
            raise ValueError(f"{problem.id}: turn {place + 1} of its demonstration is not accepted")
        replies.append(task.reply(verdict))
    return replies
