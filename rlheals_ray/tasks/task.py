"""What a task is: verifiable problems under one rule that is trained on and others that are only ever evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Rule = str
"""`id`, or one of a task's OOD rules."""
Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Problem:
    """One problem. Equal problems have equal ids; `id` is stable over processes and versions."""

    id: str
    rule: Rule
    group: str
    """The cluster of near-equal problems it belongs to: never split between train and eval, and the
    unit that intervals and tests resample."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one answer."""

    reward: float
    solved: bool
    well_formed: bool
    """Whether the answer has the form asked for, whatever its content."""
    feedback: str
    """One sentence for the model saying what is wrong, never how to mend it; empty when solved."""
    accepted: bool = False
    """Only of a task that is solved in several turns (`TurnwiseTask`): right, and not yet the end. The episode goes on
    and no attempt is used up; `feedback` is what is seen next. Never together with `solved`."""


class Task(Protocol):
    """A family of verifiable problems. Every method is a pure function of its arguments and the options."""

    name: str

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """`count` distinct problems, spread evenly over groups; a smaller count gives a prefix.

        Raises InputError when there are not that many distinct ones.
        """
        ...

    def available(self, rule: Rule, split: Split) -> int:
        """How many distinct problems there are."""
        ...

    def prompt(self, problem: Problem) -> str:
        """The first user turn."""
        ...

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        """A right answer to imitate; the same for the same problem and seed."""
        ...

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Total: any text, in bounded time, never an exception."""
        ...

    def reply(self, verdict: Verdict) -> str:
        """The next user turn after a failed attempt."""
        ...

    def fingerprint(self) -> str:
        """A hash of everything that problems, prompts and verdicts depend on; stable over processes."""
        ...


class TurnwiseTask(Task, Protocol):
    """What a task has besides, whose problems are solved in several right answers, one after the other.

    An episode of it goes on after a right answer that is not the last; `max_attempts` is then the number of tries at
    each turn. A task without these methods is solved by one right answer: see `rlheals_ray.tasks.turns`.
    """

    def turns(self, problem: Problem) -> int:
        """How many right answers the problem takes at most."""
        ...

    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        """As `judge`, of one answer; `earlier` are the accepted answers before it. `judge` is of a whole solution."""
        ...

    def demonstration_turns(self, problem: Problem, seed: int = 0) -> list[str]:
        """The right answers in order: all but the last are accepted, and the last one solves."""
        ...


def ood_rules(task: Task) -> tuple[Rule, ...]:
    """The rules that are only ever evaluated; the first is the one that peaks and losses are of.

    A task names several in an attribute `ood_rules`; one without it has the single rule `ood`.
    """
    rules: tuple[Rule, ...] = tuple(getattr(task, "ood_rules", ("ood",)))
    return rules


def rules_of(task: Task) -> tuple[Rule, ...]:
    """`id` and the OOD rules."""
    return ("id", *ood_rules(task))
