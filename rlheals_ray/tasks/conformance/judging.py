"""Laws of a task's judge: what it says to right answers, to wrong ones, and to texts that no one means."""

from __future__ import annotations

import math
import random
import resource
import time
from collections.abc import Callable, Sequence
from itertools import count

from rlheals_ray.tasks.conformance.effects import Effects
from rlheals_ray.tasks.conformance.hostile import hostile_answers, in_place, spoilt
from rlheals_ray.tasks.conformance.laws import Findings, cause
from rlheals_ray.tasks.conformance.leaks import Leaks
from rlheals_ray.tasks.conformance.texts import Texts, check_pure, is_text, is_unicode
from rlheals_ray.tasks.task import Problem, Task, Verdict

Oracle = Callable[[Problem, str], bool]
"""Whether an answer is right, decided by other means than the task's judge."""

_TWICE = 10_000
"""Longer texts (characters) are judged once: that the same answer has the same verdict is seen on the others."""

_SURELY_FAST = 0.01
"""Seconds; what takes longer at first is tried again."""

_HOSTILE_PROBLEMS = 2
"""Problems that are given every hostile answer; the others get two of them."""


class Judging:
    """Has answers judged and holds each verdict against the laws."""

    def __init__(
        self,
        task: Task,
        twin: Task | None,
        findings: Findings,
        texts: Texts,
        oracle: Oracle | None = None,
    ) -> None:
        self._task, self._twin, self._findings, self._texts, self._oracle = (
            task,
            twin,
            findings,
            texts,
            oracle,
        )
        self._effects = Effects()
        self._leaks = Leaks(texts.prompts, texts.demonstrations)
        self._best: dict[str, float | None] = {}

    def check(self, problems: Sequence[Problem], seed: int = 0, calls: int | None = None) -> None:
        """Demonstrations of all problems, then hostile answers, then answers near the right ones, until as many `calls`
        as are asked for are counted in all."""
        calls = self._findings.effort.calls if calls is None else calls
        known = [problem for problem in problems if problem.id in self._texts.demonstrations]
        hostile = list(hostile_answers())
        for problem in known:
            self._check_demonstrations(problem)
            for name, answer in hostile[:2]:
                self.check_answer(problem, answer, name)
        for problem in known[:_HOSTILE_PROBLEMS]:
            for name, answer in hostile[2:]:
                if self._findings.late:
                    break
                self.check_answer(problem, answer, name)
        counted = self._findings.result.calls
        for problem in {problem.rule: problem for problem in reversed(known)}.values():
            for name, answer in in_place(self._texts.demonstrations[problem.id][0]):
                if self._findings.late:
                    break
                self.check_answer(problem, answer, name)
        calls += self._findings.result.calls - counted
        rng = random.Random(f"conformance/{seed}")
        answers = [text for texts in self._texts.demonstrations.values() for text in texts]
        for turn in count():
            if not known or self._findings.late or self._findings.result.calls >= calls:
                break
            problem = known[turn % len(known)]
            demonstration = rng.choice(self._texts.demonstrations[problem.id])
            name, answer = spoilt(rng, demonstration, answers)
            self.check_answer(problem, answer, f"a demonstration, {name}")
        self._leaks.decide(self._findings)

    def check_answer(self, problem: Problem, answer: str, name: str) -> None:
        """Judge any answer; `name` says in a breach what it was."""
        verdict = self._verdict(problem, answer, name)
        if verdict is None:
            return
        check, best = self._findings.check, self._reward_of_right(problem)
        if best is not None:
            below = verdict.reward <= best if verdict.solved else verdict.reward < best
            check(
                "rewards",
                below,
                f"{'a solved' if verdict.solved else 'an unsolved'} answer ({name}) is worth {verdict.reward}, a "
                f"demonstration {best}",
                "let demonstrations have the highest reward and unsolved answers a lower one",
                problem.id,
            )
        if verdict.solved:
            wrong = f"a solved answer ({name}) has the feedback {verdict.feedback[:200]!r}"
            check("verdicts", not verdict.feedback, wrong, "leave it empty", problem.id)
            if self._oracle is not None:
                check(
                    "oracle",
                    self._oracle(problem, answer),
                    f"an answer ({name}) is judged solved that the oracle calls wrong: {answer[:200]!r}",
                    "make the judge stricter",
                    problem.id,
                )
            return
        reply = self._reply(problem, verdict, answer, name)
        for said in dict.fromkeys((verdict.feedback, reply)):
            self._leaks.heard(problem.id, answer, said)

    def _check_demonstrations(self, problem: Problem) -> None:
        for demonstration in dict.fromkeys(self._texts.demonstrations[problem.id]):
            verdict = self._verdict(problem, demonstration, "a demonstration")
            if verdict is None:
                continue
            wrong = [
                *([] if verdict.solved else ["not solved"]),
                *([] if verdict.well_formed else ["not well formed"]),
                *([f"given the feedback {verdict.feedback!r}"] if verdict.feedback else []),
            ]
            self._findings.check(
                "demonstrations",
                not wrong,
                f"a demonstration ({demonstration[:200]!r}) is judged to be {' and '.join(wrong)}",
                "mend the demonstration or the judge",
                problem.id,
            )
            if not wrong and self._oracle is not None:
                self._findings.check(
                    "oracle",
                    self._oracle(problem, demonstration),
                    f"a demonstration is wrong by the oracle: {demonstration[:200]!r}",
                    "mend the demonstration",
                    problem.id,
                )
            if not wrong:
                self._best.setdefault(problem.id, verdict.reward)
                self._findings.check(
                    "rewards",
                    verdict.reward == self._best[problem.id],
                    f"two demonstrations are worth {self._best[problem.id]} and {verdict.reward}",
                    "let every demonstration have the highest reward",
                    problem.id,
                )

    def _reward_of_right(self, problem: Problem) -> float | None:
        """None where no demonstration is judged solved: that is another law's breach."""
        if problem.id not in self._best:
            self._best[problem.id] = None
            for demonstration in self._texts.demonstrations.get(problem.id, []):
                verdict = self._verdict(problem, demonstration, "a demonstration")
                if verdict is not None and verdict.solved:
                    self._best[problem.id] = verdict.reward
        return self._best[problem.id]

    def _verdict(self, problem: Problem, answer: str, name: str) -> Verdict | None:
        """The verdict, or None where there is none to go on with."""
        verdict = self._timed(problem, answer, name)
        if verdict is None or not self._has_right_types(verdict, problem, name):
            return None
        if len(answer) <= _TWICE:
            for which, task in (("a second time", self._task), ("by an equal task", self._twin)):
                if task is None or (again := self._judge(task, problem, answer, name)) is None:
                    continue
                self._findings.check(
                    "repeatable",
                    again == verdict,
                    f"an answer ({name}) judged {which} has another verdict",
                    "keep nothing between calls, and draw nothing",
                    problem.id,
                )
        return verdict

    def _timed(self, problem: Problem, answer: str, name: str) -> Verdict | None:
        """Judge once, or three times where the first was slow: another process may have been in the way."""
        seconds: list[float] = []
        verdict = None
        while len(seconds) < (1 if seconds and seconds[0] < _SURELY_FAST else 3):
            stopwatch = _Stopwatch()
            verdict = self._judge(self._task, problem, answer, name)
            seconds.append(stopwatch.seconds())
            if verdict is None:
                return None
        middle = self._findings.judged(seconds, name, problem.id)
        self._findings.check(
            "bounded",
            middle <= self._findings.effort.judge_seconds,
            f"an answer of {len(answer)} characters ({name}) takes {middle * 1000:.0f} ms",
            "read only the end of a long text; no backtracking, no big numbers",
            problem.id,
        )
        return verdict

    def _judge(self, task: Task, problem: Problem, answer: str, name: str) -> Verdict | None:
        patience = self._findings.effort.hung_seconds
        self._findings.doing("total", f"judge() of an answer ({name})", problem.id, patience)
        try:
            with self._effects:
                verdict = task.judge(problem, answer)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit is none of a judge's business either
            verdict, raised = None, cause(error)
        else:
            raised = ""
        self._findings.check(
            "total",
            not raised,
            f"judge() of an answer ({name}) raises {raised}",
            "give a verdict on any text",
            problem.id,
        )
        check_pure(self._findings, self._effects, f"judge() of an answer ({name})", problem.id)
        if raised:
            return None
        if not isinstance(verdict, Verdict):
            wrong = f"judge() of an answer ({name}) gives {verdict!r}"
            self._findings.check("verdicts", False, wrong, "give a tasks.Verdict", problem.id)
            return None
        return verdict

    def _has_right_types(self, verdict: Verdict, problem: Problem, name: str) -> bool:
        reward = verdict.reward
        wrong = [
            f"{field} {value!r}"
            for field, value, right in (
                (
                    "reward",
                    reward,
                    isinstance(reward, int | float)
                    and not isinstance(reward, bool)
                    and math.isfinite(reward),
                ),
                ("solved", verdict.solved, isinstance(verdict.solved, bool)),
                ("well_formed", verdict.well_formed, isinstance(verdict.well_formed, bool)),
                ("feedback", verdict.feedback, isinstance(verdict.feedback, str)),
            )
            if not right
        ]
        return self._findings.check(
            "verdicts",
            not wrong,
            f"the verdict on an answer ({name}) has {' and '.join(wrong)}",
            "give reward: a finite float, solved and well_formed: bool, feedback: str",
            problem.id,
        )

    def _reply(self, problem: Problem, verdict: Verdict, answer: str, name: str) -> str:
        """What is said to a wrong answer; empty where that is no text."""
        what = f"reply() to an answer ({name})"
        try:
            with self._effects:
                reply = self._task.reply(verdict)
                again = self._task.reply(verdict)
        except Exception as error:
            wrong = f"{what} raises {cause(error)}"
            self._findings.check("texts", False, wrong, "give a text for any verdict", problem.id)
            return ""
        check_pure(self._findings, self._effects, what, problem.id)
        wrong = f"{what} gives another text a second time"
        self._findings.check("texts", again == reply, wrong, "compute it from the verdict alone", problem.id)
        if not isinstance(reply, str) or is_unicode(answer):
            return reply if is_text(self._findings, reply, what, problem.id) else ""
        return reply  # whoever is given half a character may repeat it


class _Stopwatch:
    """Wall time from its making on; the thread's own CPU time if other processes took the CPU from it meanwhile."""

    def __init__(self) -> None:
        self._start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, int]:
        return time.perf_counter(), time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw

    def seconds(self) -> float:
        wall, own, taken = (after - before for after, before in zip(self._now(), self._start, strict=True))
        return own if taken else wall
