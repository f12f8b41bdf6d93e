"""Whether episodes and demonstrations of several turns fit: checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.preflight_base import chat_format, positions
from rlheals_ray.tasks import Problem, TurnwiseTask, ood_rules
from rlheals_ray.tasks.turns import demonstration_turns, replies_of

if TYPE_CHECKING:
    from rlheals_ray.models.chat import ChatFormat

SPARE = 8
"""Tokens by which a feedback may be longer than the one that is measured."""

_MEASURED = 64
"""Problems of the most turns whose conversations are measured, in training and under each rule."""


def check_turns(study: Study, task: TurnwiseTask) -> None:
    """Raises InputError where the longest problem cannot be played to its end, or its demonstration not be learnt.

    Room is asked for right answers of full length at every turn and for the failed tries at one; an episode of more
    failures than that may end for want of room.
    """
    chat, evaluation = chat_format(study), study.evaluation
    training = task.problems("id", "train", task.available("id", "train"), seed=0)
    probed = [
        problem
        for rule in ("id", *ood_rules(task))
        for problem in _longest(task, task.problems(rule, "eval", evaluation.problems, seed=evaluation.seed))
    ]
    room = study.rollout.max_model_len
    for stage, settings, problems in (
        ("rl", study.rl, _longest(task, training)),
        ("evaluation", evaluation, probed),
    ):
        new, attempts = settings.max_new_tokens, settings.max_attempts
        needed, turns = max(
            (_tokens(task, chat, problem, new, attempts), task.turns(problem)) for problem in problems
        )
        if needed > room:
            raise InputError(
                f"{stage}.max_new_tokens (got {new}): episodes of {_counted(turns)} of so many tokens, and of "
                f"{stage}.max_attempts={attempts} at one of them, need about {needed} tokens, but "
                f"rollout.max_model_len is {room}; use a longer context, fewer tokens or problems of fewer turns."
            )
    if study.sft.data is None:
        examples = task.problems(
            "id", "train", min(study.sft.examples or len(training), len(training)), seed=0
        )
        _check_demonstrations(study, task, chat, _longest(task, examples))


def _tokens(task: TurnwiseTask, chat: ChatFormat, problem: Problem, new: int, attempts: int) -> int:
    """Of an episode of answers of `new` tokens each that fails at one turn as often as it may."""
    replies = replies_of(task, problem, demonstration_turns(task, problem))
    said = [len(chat.next_turn(reply, ended=False)) for reply in replies]
    failed = len(chat.next_turn(task.reply(task.judge_turn(problem, [], "")), ended=False)) + SPARE
    right = len(chat.first_turn(task.prompt(problem))) + sum(said) + task.turns(problem) * new
    return right + (attempts - 1) * (new + failed)


def _check_demonstrations(
    study: Study, task: TurnwiseTask, chat: ChatFormat, problems: Iterable[Problem]
) -> None:
    from rlheals_ray.sft.data import demonstrate  # imports more than most preflights need

    bounds = (study.sft.max_length, positions(study.base.model))
    limit = min((bound for bound in bounds if bound is not None), default=None)
    needed, turns = max(
        (len(demonstrate(task, chat, problem, seed=0).input_ids), task.turns(problem)) for problem in problems
    )
    if limit is not None and needed > limit:
        raise InputError(
            f"sft.max_length (got {study.sft.max_length}): the demonstration of a problem of {_counted(turns)} has "
            f"{needed} tokens, {limit} are allowed; raise sft.max_length up to what the model can read, or use "
            "problems of fewer turns."
        )


def _counted(turns: int) -> str:
    return f"{turns} turn{'s' * (turns > 1)}"


def _longest(task: TurnwiseTask, problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=task.turns, reverse=True)[:_MEASURED]
