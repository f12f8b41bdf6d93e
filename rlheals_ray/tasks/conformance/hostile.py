"""Answers that no one means: what a judge must survive, made without a model."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

MARK = "TASK_JUDGE_RAN_THIS"
"""An environment variable that is set by a judge that executes what it reads."""

_CODE = f"__import__('os').environ.__setitem__('{MARK}', '1')"
_DEEP, _LONG, _HUGE = 10**5, 10**5, 10**6

_PAYLOADS = {
    "nothing": "",
    "code": _CODE,
    "deep parentheses": "(" * _DEEP + "1" + ")" * _DEEP,
    "a number of 100,000 digits": "9" * _LONG,
    "a tower of powers": "9**9**9**9",
    "a division by zero": "1/0",
    "superscript and foreign digits": "²³¼٣४Ⅷ",
    "full-width digits": "１２３",
    "not a number": "nan",
    "infinity": "-1e99999",
    "a lone surrogate": "\ud800",
    "NUL": "\x00",
}
"""What may stand where an answer should."""


def hostile_answers() -> Iterator[tuple[str, str]]:
    """Name and text of answers that need no problem; the empty answer and plain words come first."""
    yield "the empty answer", ""
    yield "plain words", "I do not know."
    yield from (item for item in _PAYLOADS.items() if item[1])
    yield from {
        "white space": " \t\r\n\v\f\u2003",
        "a byte order mark": "\ufeff\ufeff",
        "all Latin-1": "".join(map(chr, range(256))),
        "combining marks": "e" + "\u0301" * 10_000,
        "right to left": "\u202e\u05d0\u0627\u202c",
        "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 100,
        "backslashes": "\\" * _LONG,
        "quotes": "\"'" * _LONG,
        "braces in formats": "{0.__class__.__mro__} %s%n {} {{",
        "JSON null": "null",
        "JSON of other shapes": '[1, [], {}, {"answer": {"answer": [null, true, 1e999]}}]',
        "a field twice": '{"answer": 1, "answer": 2}',
        "a fenced block without end": "```json\n{",
        "tags": "<think>" * 20_000,
        "a million letters": "a" * _HUGE,
        "a million digits": "1" * _HUGE,
        "a million spaces": " " * _HUGE,
        "a million lines": "\n" * _HUGE,
        "a million words": "ab " * (_HUGE // 3),
        "many sums": "1+" * _LONG + "1",
        "many signs": "-" * _LONG + "1",
        "many equations": "1=1;" * _LONG,
        "many objects": '{"answer": 1}\n' * 20_000,
        "many empty objects": "{}" * _LONG,
        "nested objects": '{"a":' * _DEEP,
        "nested lists": "[" * _DEEP + "]" * _DEEP,
        "closing brackets": ")]}" * _DEEP,
        "open brackets of all kinds": "([{<" * (_DEEP // 2),
        "almost repeated": "a" * 30_000 + "!" + "a" * 30_000,
        "letters and spaces by turns": "a " * 30_000 + "!",
    }.items()


def in_place(demonstration: str) -> Iterator[tuple[str, str]]:
    """Name and text of answers in the form of this one that hold one thing over and over where it says what is right:
    somewhat longer than right answers are, where a judge may still read all of it, and far longer."""
    start, end = _said(demonstration)
    part = demonstration[start:end]
    units = {**_UNITS, "the right answer": f"{part} ", "the right answer, without spaces": part or "0"}
    for length in (1_000 + 4 * len(part), 10_000):
        for name, unit in units.items():
            text = (unit * (length // len(unit) + 1))[:length]
            yield f"{name} over and over", demonstration[:start] + text + demonstration[end:]


_UNITS = {
    unit.strip() or repr(unit): unit
    for unit in (
        *(
            "9",
            "(",
            "[",
            "-",
            "9**",
            "1/",
            "9*",
            "1 ",
            "1,",
            "\n",
            "0 1\n",
            "A=1,",
            "ABC",
            "x**",
            "sin(",
            "1e9,",
        ),
        *("é", "\\", "\x00", "right ", "a->b ", '\\"a\\":', "Move 1 to 2\n", "x is a knight and "),
    )
}


def _said(demonstration: str) -> tuple[int, int]:
    """Where a demonstration says what is right: in tags, else the last text, list or number."""
    for pattern in (r">([^<>]+)</", r':\s*"([^"]*)"', r"\[([^\[\]]*)\]", r"(-?\d+)"):
        if found := list(re.finditer(pattern, demonstration)):
            return found[-1].span(1)
    return 0, len(demonstration)


def spoilt(rng: random.Random, demonstration: str, others: Sequence[str]) -> tuple[str, str]:
    """One answer near a right one: name and text. Some are right still."""
    kind = rng.choice(_KINDS)
    at = rng.randrange(len(demonstration) + 1)
    if kind == "truncated":
        return kind, demonstration[:at]
    if kind == "twice":
        return kind, demonstration + rng.choice(("", " ", "\n")) + demonstration
    if kind == "its end alone":
        return kind, demonstration[at:]
    if kind == "a digit changed":
        return kind, _change(rng, demonstration, r"\d", "0123456789")
    if kind == "a sign changed":
        return kind, _change(rng, demonstration, r"[^\w\s]", "+-*/()[]{}\"',:;=.")
    if kind == "a character inserted":
        return kind, demonstration[:at] + rng.choice("0 \"'{}()[]+-*/=\\\x00²é\n") + demonstration[at:]
    if kind == "a character left out":
        return kind, demonstration[:at] + demonstration[at + 1 :]
    if kind == "words in another order":
        words = demonstration.split()
        return kind, " ".join(rng.sample(words, len(words)))
    if kind == "another problem's answer":
        return kind, rng.choice(others) if others else ""
    if kind == "another problem's answer behind it":
        return kind, f"{demonstration}\n{rng.choice(others) if others else ''}"
    if kind == "other capitals":
        return kind, demonstration.swapcase()
    if kind == "in a fenced block":
        return kind, f"Let me think.\n```json\n{demonstration}\n```\nDone."
    if kind == "a thousand times":
        return kind, demonstration * 1000
    name = rng.choice(list(_PAYLOADS))
    return f"{name} in place of a part", _replace_part(rng, demonstration, _PAYLOADS[name])


_KINDS = (
    "truncated",
    "twice",
    "its end alone",
    "a digit changed",
    "a sign changed",
    "a character inserted",
    "a character left out",
    "words in another order",
    "another problem's answer",
    "another problem's answer behind it",
    "other capitals",
    "in a fenced block",
    "a thousand times",
    *("a part replaced",) * 4,
)


def _change(rng: random.Random, text: str, pattern: str, characters: str) -> str:
    places = [match.start() for match in re.finditer(pattern, text)]
    if not places:
        return text[::-1]
    at = rng.choice(places)
    return text[:at] + rng.choice(characters) + text[at + 1 :]


def _replace_part(rng: random.Random, text: str, payload: str) -> str:
    """With a quoted string, a list, or a word replaced: where a judge is likely to look."""
    spans = [match.span(1) for match in re.finditer(r'"([^"]*)"', text)]
    spans += [match.span() for match in re.finditer(r"(?<=\[)[^\[\]]*(?=\])|[^\s\[\]{}\",:]+", text)]
    start, end = rng.choice(spans or [(0, len(text))])
    return text[:start] + payload + text[end:]
