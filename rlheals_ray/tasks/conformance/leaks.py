"""Whether a text gives a right answer away.

A text that is the same for problems with different answers says nothing of either: a list of choices, an example,
field names. So what looks like a leak counts only if no problem with another answer has the very same text (or, of
prompts, the same part in its prompt).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlheals_ray.tasks.conformance.laws import Findings

_SHORTEST = 3
"""Characters, white space apart: shorter answers stand in other words by chance."""


@dataclass(frozen=True)
class _Suspicion:
    problem: str
    part: str
    said: str
    answer: str
    """What it was said to."""


class Leaks:
    """Collects what was said about which problem, and decides at the end."""

    def __init__(self, prompts: Mapping[str, str], demonstrations: Mapping[str, Sequence[str]]) -> None:
        """Both by problem id."""
        self._prompts, self._demonstrations = prompts, demonstrations
        self._said: dict[str, set[str]] = defaultdict(set)
        self._clean = 0
        self._suspicions: list[_Suspicion] = []
        self._parts = {name: self._telling(name) for name in demonstrations}

    def _telling(self, name: str) -> dict[str, re.Pattern[str]]:
        """Parts of the problem's answers that its prompt does not hold and that not every answer has."""
        parts: dict[str, re.Pattern[str]] = {}
        for demonstration in self._demonstrations[name]:
            for part in _parts(demonstration):
                pattern = _pattern(part)
                if not pattern.search(self._prompts.get(name, "")) and self._is_not_common(pattern):
                    parts[part] = pattern
        return parts

    def _is_not_common(self, pattern: re.Pattern[str]) -> bool:
        others = list(self._demonstrations.values())
        return len(others) == 1 or not all(_in_any(pattern, texts) for texts in others)

    def heard(self, problem: str, answer: str, said: str) -> None:
        """`said`, feedback or reply, followed the wrong `answer` to the problem."""
        self._said[said].add(problem)
        found = [
            part
            for part, pattern in self._parts.get(problem, {}).items()
            if pattern.search(said) and not pattern.search(answer)
        ]
        self._clean += not found
        self._suspicions += [_Suspicion(problem, part, said, answer[:1000]) for part in found]

    def decide(self, findings: Findings) -> None:
        for _ in range(self._clean):
            findings.check("leaks", True, "", "")
        for suspicion in self._suspicions:
            findings.check(
                "leaks",
                not self._tells(suspicion),
                f"what is said to the wrong answer {_cut(suspicion.answer)} holds {_cut(suspicion.part)} of a "
                f"demonstration: {_cut(suspicion.said)}",
                "say what is wrong, never what would be right",
                suspicion.problem,
            )

    def _tells(self, suspicion: _Suspicion) -> bool:
        pattern = _pattern(suspicion.part)
        hearers = self._said[suspicion.said] - {suspicion.problem}
        return all(_in_any(pattern, self._demonstrations.get(name, ())) for name in hearers)


def check_prompts(
    findings: Findings, prompts: Mapping[str, str], demonstrations: Mapping[str, Sequence[str]]
) -> None:
    """That no prompt holds its own demonstration, word for word."""
    for name, texts in demonstrations.items():
        for text in texts:
            pattern = _pattern(text)
            holds = _length(text) >= _SHORTEST and bool(pattern.search(prompts[name]))
            choices = holds and any(
                pattern.search(prompts[other]) and not _in_any(pattern, theirs)
                for other, theirs in demonstrations.items()
            )
            findings.check(
                "hidden",
                not holds or choices,
                f"the prompt holds the demonstration {_cut(text)}",
                "leave it out; where the answer is a word of the prompt, have it given in a form, as `answer: WORD`",
                name,
            )


def _parts(demonstration: str) -> set[str]:
    """The whole, quoted strings, what follows a colon, sides of an equation, the last word."""
    parts = {demonstration, *(found[2] for found in re.finditer(r"([\"'`])(.*?)\1", demonstration))}
    for line in demonstration.splitlines():
        parts |= {line, line.rpartition(":")[2]}
    parts |= {side for part in parts for side in part.split("=")}
    parts |= set(demonstration.split()[-1:])
    stripped = {part.strip().strip(".,;") for part in parts}
    return {part for part in stripped if _length(part) >= _SHORTEST}


def _length(text: str) -> int:
    return len("".join(text.split()))


def _pattern(part: str) -> re.Pattern[str]:
    """Finds the part whatever its white space and capitals, but not inside of other words."""
    tokens = re.findall(r"\w+|[^\w\s]", part)
    start = r"(?<!\w)" if part[:1].isalnum() else ""
    end = r"(?!\w)" if part[-1:].isalnum() else ""
    return re.compile(start + r"\s*".join(map(re.escape, tokens)) + end, re.IGNORECASE)


def _in_any(pattern: re.Pattern[str], texts: Sequence[str]) -> bool:
    return any(pattern.search(text) for text in texts)


def _cut(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"
