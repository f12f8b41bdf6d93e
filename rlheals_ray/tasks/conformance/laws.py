"""The laws of a task, and the record of which of them were checked and broken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

LAWS = {
    "protocol": "it has the methods of Task, and they give what Task says",
    "deterministic": "the same arguments give the same problems",
    "prefix": "a smaller count gives a prefix",
    "ids": "an id is of one problem only, and stays that problem's",
    "travels": "a problem survives pickling: it is sent between processes",
    "rule": "problems are of the rule asked for",
    "available": "there are as many distinct problems as available() says",
    "split": "training and evaluation share no problem and no group",
    "probes": "no problem of the OOD rule has the id of one of the ID rule",
    "ood training": "the OOD rule has no training problems",
    "texts": "prompts, demonstrations and replies are text, and the same every time",
    "demonstrations": "demonstrations are solved, well formed and without feedback",
    "hidden": "a prompt does not hold its demonstration",
    "total": "the judge never raises and always returns",
    "bounded": "the judge takes 50 ms at most",
    "verdicts": "verdicts have fields of the right types and a finite reward",
    "repeatable": "the same answer has the same verdict",
    "rewards": "no answer is worth more than a demonstration; an unsolved one is worth less",
    "leaks": "feedback to a wrong answer does not hold the right one",
    "pure": "global random state, environment, files, processes and network are left alone",
    "fingerprint": "the fingerprint is that of the options",
    "processes": "nothing depends on the process or its hash seed",
    "oracle": "what is judged solved is right by an independent oracle",
}
"""Every law by its name, in the order in which they are reported."""

JUDGE_SECONDS = 0.05
"""The longest that a judge may take over any text."""

SETUP_SECONDS = 300.0
"""What everything but a judge's call may take, in a check in a process of its own: making problems may take a while."""

_SHOWN = 3
"""Breaches of one law that are kept; the others are counted."""

Doing = Callable[[str, str, str | None, float], None]
"""Told before each step: the law at stake, what is done, the problem's id, and the seconds it may take."""


@dataclass(frozen=True)
class Breach:
    """One law broken once."""

    law: str
    what: str
    """A clause that says what is wrong."""
    remedy: str
    problem: str | None = None
    """The id of the problem it was seen at."""

    def __str__(self) -> str:
        where = f"problem {_short(self.problem)}: " if self.problem is not None else ""
        return f"{self.law}: {where}{self.what}; {self.remedy}."


@dataclass
class Conformance:
    """What a check found."""

    checked: dict[str, int] = field(default_factory=dict)
    """How often each law was put to the test; a law that is absent was not."""
    broken: dict[str, int] = field(default_factory=dict)
    breaches: list[Breach] = field(default_factory=list)
    """The first few of each broken law."""
    calls: int = 0
    """Answers judged."""
    slowest: float = 0.0
    """Seconds of the slowest judge call."""
    slowest_answer: str = ""

    @property
    def kept(self) -> bool:
        return not self.broken

    def add(self, breach: Breach) -> None:
        self.checked[breach.law] = self.checked.get(breach.law, 0) + 1
        self.broken[breach.law] = self.broken.get(breach.law, 0) + 1
        if self.broken[breach.law] <= _SHOWN:
            self.breaches.append(breach)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Conformance:
        return cls(**{**values, "breaches": [Breach(**breach) for breach in values["breaches"]]})


@dataclass(frozen=True)
class Effort:
    """How much is checked."""

    problems: int = 20
    """Per rule, split and seed."""
    calls: int = 400
    """Answers judged, at least; those that hold one thing over and over, some fifty for each rule, come on top."""
    most: int = 2000
    """A list of problems is drawn whole where it is no longer."""
    seconds: float = float("inf")
    """After this long of drawing no further problem is begun, and after as long again of judging no further answer."""
    judge_seconds: float = JUDGE_SECONDS
    """The longest that a judge may take over any text."""
    hung_seconds: float = 20.0
    """After this long a call of the judge is ended, in a check in a process of its own."""

    @classmethod
    def quick(cls) -> Effort:
        """What a study checks before it starts: only a judge that would stall it is too slow then."""
        return cls(problems=4, calls=80, most=200, seconds=1.0, judge_seconds=1.0)

    @classmethod
    def of_configurations(cls) -> Effort:
        """What a study checks of a dataset with its own configurations, some seconds with the import of the package."""
        return cls(problems=2, calls=250, most=0, seconds=10.0)


class Findings:
    """Collects what is checked, and stops the check when its time is over."""

    def __init__(self, effort: Effort, doing: Doing | None = None) -> None:
        self.result = Conformance()
        self.effort = effort
        self._doing = doing
        self._start = time.monotonic()

    def begin_anew(self) -> None:
        """Count the seconds from now on."""
        self._start = time.monotonic()

    @property
    def late(self) -> bool:
        return time.monotonic() - self._start > self.effort.seconds

    def doing(self, law: str, what: str, problem: str | None = None, seconds: float = SETUP_SECONDS) -> None:
        if self._doing:
            self._doing(law, what, problem, seconds)

    def check(self, law: str, kept: bool, what: str, remedy: str, problem: str | None = None) -> bool:
        """Count one check of a law; where it is broken, keep the breach. Returns `kept`."""
        if kept:
            self.result.checked[law] = self.result.checked.get(law, 0) + 1
        else:
            self.result.add(Breach(law, what, remedy, problem))
        return kept

    def judged(self, seconds: list[float], answer: str, problem: str) -> float:
        """Count one answer by the times of its tries; returns their median in seconds."""
        middle = statistics.median(seconds)
        self.result.calls += 1
        if middle > self.result.slowest:
            self.result.slowest, self.result.slowest_answer = middle, f"{answer}, problem {_short(problem)}"
        return middle


def cause(error: BaseException) -> str:
    """An exception in one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 160 else f"{text[:159]}…"


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
