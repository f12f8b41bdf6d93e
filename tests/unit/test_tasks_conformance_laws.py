"""Every law of tasks is broken by a toy that differs from the documented task in that law alone, and told of it."""

import contextlib
import dataclasses
import itertools
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlheals_ray.tasks import Problem, Verdict
from rlheals_ray.tasks.conformance import LAWS, Effort, check_task
from rlheals_ray.tasks.conformance.hostile import MARK

DOCUMENT = (Path(__file__).parents[2] / "docs" / "own_task.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[0]
SMALL = Effort(problems=6, calls=250)

example = ModuleType("my_tasks")
exec(EXAMPLE, example.__dict__)
Sign: Any = example.__dict__["Sign"]
right: Callable[[Problem], int] = example.__dict__["right"]


def sign(kind: Any = Sign) -> Any:
    return kind(example.__dict__["SignOptions"](largest=20))


def oracle(problem: Problem, text: str) -> bool:
    """The last number of an answer that was judged solved, against repeated addition."""
    a, b = map(int, problem.id.split(":")[1:])
    value = a + b if problem.rule == "id" else sum(a for _ in range(b))
    return int(re.findall(r"[0-9]+", text)[-1]) == value


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark that a judge leaves which executes answers goes away again."""
    monkeypatch.setenv(MARK, "")


BROKEN: list[tuple[str, Any]] = []
"""Classes with the law that each of them breaks."""


def breaks(law: str) -> Callable[[Any], Any]:
    return lambda kind: BROKEN.append((law, kind)) or kind


def wrong(feedback: str = "Wrong.", reward: Any = 0.0) -> Verdict:
    return Verdict(reward, False, True, feedback)


def judging(law: str, judge: Callable[[Any, Problem, str], Any], name: str) -> None:
    """Break a law by a judge: what it gives for an answer, or None for the right verdict."""

    def whole(self: Any, problem: Problem, text: str) -> Any:
        told = judge(self, problem, text)
        return Sign.judge(self, problem, text) if told is None else told

    breaks(law)(type(name, (Sign,), {"judge": whole}))


def unsolved(self: Any, problem: Problem, text: str) -> bool:
    return not Sign.judge(self, problem, text).solved


def raises(error: BaseException) -> None:
    raise error


def pays_twice(self: Any, problem: Problem, text: str) -> Verdict | None:
    return None if unsolved(self, problem, text) or text.count("answer") < 2 else Verdict(2.0, True, True, "")


def praises(self: Any, problem: Problem, text: str) -> Verdict | None:
    return (
        None
        if unsolved(self, problem, text) or text.count("answer") < 2
        else Verdict(1.0, True, True, "Good.")
    )


def evaluates(text: str) -> None:
    if text.startswith("__import__"):
        with contextlib.suppress(Exception):
            eval(text)


calls = itertools.count()
judging("total", lambda s, p, t: raises(ValueError("NUL")) if "\0" in t else None, "Raises")
judging("total", lambda s, p, t: sys.exit() if t == "null" else None, "Exits")
judging("total", lambda s, p, t: int(t) and None if t.isdigit() else None, "TrustsIsdigit")
judging("bounded", lambda s, p, t: time.sleep(0.06) if t.startswith("<think>") else None, "Slow")
judging("verdicts", lambda s, p, t: wrong(reward=math.nan) if not t else None, "NoNumber")
judging("verdicts", lambda s, p, t: wrong(None) if not t else None, "NoFeedback")  # type: ignore[arg-type]
judging("verdicts", lambda s, p, t: (0.0, False) if not t else None, "Tuple")
judging("verdicts", praises, "Praises")
judging("repeatable", lambda s, p, t: wrong(f"Wrong {next(calls)}.") if unsolved(s, p, t) else None, "Counts")
judging("rewards", lambda s, p, t: wrong(reward=1.0) if not t else None, "PaysForNothing")
judging("rewards", pays_twice, "PaysTwice")
judging("leaks", lambda s, p, t: wrong(f"The answer: {right(p)}") if not t else None, "SaysAll")
judging("leaks", lambda s, p, t: wrong(f"Not {right(p)}?") if unsolved(s, p, t) else None, "Hints")
judging("pure", lambda s, p, t: random.seed(0), "Seeds")
judging("pure", lambda s, p, t: evaluates(t), "Evaluates")
judging("pure", lambda s, p, t: tempfile.TemporaryFile().close() if not t else None, "Writes")
judging("pure", lambda s, p, t: os.environ.update({MARK: t[:0]}), "Exports")
judging("pure", lambda s, p, t: bool(subprocess.run("true")) and None if not t else None, "Starts")
judging(
    "oracle",
    lambda s, p, t: (
        Verdict(1.0, True, True, "")
        if (found := re.search(r"answer: ([0-9]{1,9})\s*$", t[-99:])) and (int(found[1]) - right(p)) % 3 == 0
        else None
    ),
    "Lenient",
)


@breaks("protocol")
class WithoutReply(Sign):
    reply = None


@breaks("protocol")
class GivesATuple(Sign):
    def problems(self, *asked: Any, **more: Any) -> Any:
        return tuple(super().problems(*asked, **more))


@breaks("deterministic")
class DrawsAnew(Sign):
    drawn = itertools.count()

    def problems(self, rule: Any, split: Any, count: int, seed: int = 0) -> Any:
        return super().problems(rule, split, count, 1000 + next(self.drawn))


@breaks("prefix")
class OrdersByCount(Sign):
    def problems(self, rule: Any, split: Any, count: int, seed: int = 0) -> Any:
        return super().problems(rule, split, count, 1000 * count + seed)


@breaks("pure")
class SeedsEveryone(Sign):
    def problems(self, rule: Any, split: Any, count: int, seed: int = 0) -> Any:
        random.seed(seed)
        return super().problems(rule, split, count, seed)


@breaks("ids")
class GivesOneTwice(Sign):
    def problems(self, *asked: Any, **more: Any) -> Any:
        found = super().problems(*asked, **more)
        return [*found[:1], *found[:1], *found[2:]][: len(found)]


@breaks("ids")
class GroupsBySeed(Sign):
    def problems(self, rule: Any, split: Any, count: int, seed: int = 0) -> Any:
        found = super().problems(rule, split, count, seed)
        return [dataclasses.replace(problem, group=f"{problem.group}:{seed}") for problem in found]


@dataclasses.dataclass(frozen=True)
class Locked(Problem):
    lock: Any = dataclasses.field(default_factory=threading.Lock, compare=False)


def remade(law: str, name: str, remake: Callable[[Problem], Problem]) -> None:
    def everything(self: Any, rule: Any, split: Any) -> Any:
        return [remake(problem) for problem in Sign._all(self, rule, split)]

    breaks(law)(type(name, (Sign,), {"_all": everything}))


remade("travels", "HoldsALock", lambda p: Locked(p.id, p.rule, p.group))
remade("rule", "AllId", lambda p: dataclasses.replace(p, rule="id"))
remade("probes", "NoRuleInId", lambda p: dataclasses.replace(p, id=f"x{p.id[p.id.index(':') :]}"))
remade("split", "OneGroup", lambda p: dataclasses.replace(p, group=p.rule))


@breaks("split")
class TrainsOnEvaluation(Sign):
    def _all(self, rule: Any, split: Any) -> Any:
        return super()._all(rule, "eval" if rule == "id" else split)


@breaks("ood training")
class TrainsOnOod(Sign):
    def _all(self, rule: Any, split: Any) -> Any:
        return super()._all(rule, "eval" if rule == "ood" else split)


@breaks("available")
class Promises(Sign):
    def available(self, rule: Any, split: Any) -> int:
        found: int = super().available(rule, split)
        return found and found + 1


@breaks("available")
class GivesFewer(Sign):
    def problems(self, rule: Any, split: Any, count: int, seed: int = 0) -> Any:
        return super().problems(rule, split, min(count, self.available(rule, split)), seed)


@breaks("texts")
class Silent(Sign):
    def prompt(self, problem: Problem) -> str:
        return " "


@breaks("texts")
class Improvises(Sign):
    said = itertools.count()

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        return f"{' ' * (next(self.said) % 2)}{super().demonstration(problem)}"


@breaks("texts")
class NoAnswer(Sign):
    def reply(self, verdict: Verdict) -> Any:
        return ""


@breaks("demonstrations")
class Mistaken(Sign):
    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        return f"answer: {right(problem) + seed}"


@breaks("hidden")
class Tells(Sign):
    def prompt(self, problem: Problem) -> str:
        return f"{super().prompt(problem)} ({self.demonstration(problem)})"


@breaks("fingerprint")
class Anonymous(Sign):
    def fingerprint(self) -> str:
        return "sign"


@pytest.mark.parametrize(("law", "kind"), BROKEN, ids=[f"{law}-{kind.__name__}" for law, kind in BROKEN])
def test_a_task_that_breaks_one_law_is_told_of_that_law_alone(law: str, kind: Any) -> None:
    task = sign(kind)
    found = check_task(task, oracle=oracle, effort=SMALL)
    assert set(found.broken) == {law}, "\n".join(map(str, found.breaches))
    known = {problem.id for rule in ("id", "ood") for problem in sign()._all(rule, "eval")} | {
        problem.id for problem in sign()._all("id", "train")
    }
    for breach in found.breaches:
        assert re.fullmatch(rf"{law}: .+; .+\.", str(breach), re.DOTALL)
        assert breach.problem is None or breach.problem in known or law == "probes"


def test_every_law_is_broken_by_some_task() -> None:
    in_processes = {"processes"}
    assert {law for law, _ in BROKEN} | in_processes == set(LAWS)
