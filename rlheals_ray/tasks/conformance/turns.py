"""A task that is solved in several turns: each turn of a demonstration is held against the laws of a judge.

A turn is shown to them as a problem of its own: its prompt is the conversation before it, and an accepted answer counts
as a solved one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlheals_ray.tasks.conformance.judging import Judging
from rlheals_ray.tasks.conformance.laws import Findings, cause
from rlheals_ray.tasks.conformance.texts import Texts
from rlheals_ray.tasks.task import Problem, Split, Task, TurnwiseTask, Verdict
from rlheals_ray.tasks.turns import TURNWISE, is_turnwise, replies_of

_PROBLEMS = 8
"""Problems whose turns are checked."""
_PICKED = 4
"""Turns of each: the first ones and the last."""


@dataclass(frozen=True)
class _TurnOf(Problem):
    problem: Problem
    earlier: tuple[str, ...]


class _EachTurn:
    """A task whose problems are single turns of another's."""

    def __init__(self, task: TurnwiseTask) -> None:
        self._task, self.name = task, task.name

    def judge(self, problem: Problem, text: str) -> Verdict:
        assert isinstance(problem, _TurnOf)
        verdict = self._task.judge_turn(problem.problem, problem.earlier, text)
        if isinstance(verdict, Verdict) and verdict.accepted:
            return replace(verdict, solved=True, feedback="")
        return verdict

    def reply(self, verdict: Verdict) -> str:
        return self._task.reply(verdict)

    # What the laws of a judge do not ask for.

    def problems(self, rule: str, split: Split, count: int, seed: int = 0) -> list[Problem]:
        raise NotImplementedError

    def available(self, rule: str, split: Split) -> int:
        raise NotImplementedError

    def prompt(self, problem: Problem) -> str:
        raise NotImplementedError

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        raise NotImplementedError

    def fingerprint(self) -> str:
        raise NotImplementedError


def absent_of_turns(task: Task) -> list[str]:
    """Which of the methods a task with one of them lacks."""
    there = [callable(getattr(task, method, None)) for method in TURNWISE]
    return [method for method, it in zip(TURNWISE, there, strict=True) if any(there) and not it]


def check_turns(
    task: TurnwiseTask, twin: Task | None, problems: Sequence[Problem], texts: Texts, findings: Findings
) -> None:
    """Play demonstrations turn by turn, and hold single turns against the laws of a judge, with half as many answers as
    whole solutions."""
    posed, written = _turns(task, problems, texts, findings)
    same = _EachTurn(twin) if twin is not None and is_turnwise(twin) else None
    more = findings.result.calls + findings.effort.calls // 2
    Judging(_EachTurn(task), same, findings, written).check(posed, calls=more)


def _turns(
    task: TurnwiseTask, problems: Sequence[Problem], texts: Texts, findings: Findings
) -> tuple[list[Problem], Texts]:
    posed: list[Problem] = []
    written = Texts()
    for problem in problems[:_PROBLEMS]:
        if problem.id not in texts.demonstrations or findings.late:
            continue
        answers, conversation = _played(task, problem, texts.prompts[problem.id], findings)
        for place in sorted({*range(min(len(answers), _PICKED - 1)), len(answers) - 1}) if answers else ():
            turn = _TurnOf(
                f"{problem.id}, turn {place + 1}",
                problem.rule,
                problem.group,
                problem,
                tuple(answers[:place]),
            )
            posed.append(turn)
            written.prompts[turn.id] = conversation[place]
            written.demonstrations[turn.id] = [answers[place]]
    return posed, written


def _played(
    task: TurnwiseTask, problem: Problem, prompt: str, findings: Findings
) -> tuple[list[str], list[str]]:
    """The answers of a demonstration and the conversation before each; none where it does not come to its end."""
    findings.doing("demonstrations", "playing demonstration_turns()", problem.id)
    try:
        answers, most = task.demonstration_turns(problem, seed=0), task.turns(problem)
        again = task.demonstration_turns(problem, seed=0)
        replies = replies_of(task, problem, answers)
        last = task.judge_turn(problem, answers[:-1], answers[-1])
        wrong = [
            *([] if again == answers else ["is another a second time"]),
            *([] if 1 <= len(answers) <= most else [f"has {len(answers)} turns of at most {most}"]),
            *([] if last.solved and not last.accepted else ["is not solved by its last turn alone"]),
        ]
    except Exception as error:
        answers, replies, wrong = [], [], [f"does not come to its end: {cause(error)}"]
    findings.check(
        "demonstrations",
        not wrong,
        f"demonstration_turns() {' and '.join(wrong)}",
        "let judge_turn() accept every turn of it but the last, and solve the problem by that",
        problem.id,
    )
    if wrong:
        return [], []
    conversation = [prompt]
    for answer, reply in zip(answers, replies, strict=False):
        conversation.append(f"{conversation[-1]}\n{answer}\n{reply}")
    return answers, conversation
