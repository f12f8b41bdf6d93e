"""The answer object in a model's text: `cards`, `number` and `formula`.

Every wording is read alike: JSON, the paper's near-JSON (single quotes, trailing commas) and the
compact wording's word lists. Text around the object is allowed. Of several complete objects the last
one counts, so a model may draft before it answers, but only one answer is ever judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARACTERS = 16_384
"""Only the end of a longer text is read."""

# An object holds no braces, which makes the search linear. Anything shorter than the three empty fields,
# `cards:[]number:[]formula:""`, is passed over at once, so that a flood of `{}` costs nothing.
_OBJECT = re.compile(r"\{([^{}]{27,}+)\}")
_FIELD = re.compile(
    r"""\s*+ (?: "(\w++)" | '(\w++)' | (\w++) ) \s*+ : \s*+
        (?: \[ (?P<list> [^\[\]]*+ ) \] | "(?P<double> [^"]*+ )" | '(?P<single> [^']*+ )' | [^\s,"'\[\]]++ )
        \s*+ ,?+ \s*+""",
    re.VERBOSE,
)
_ITEM = re.compile(r"""[^\s,"']++""")


@dataclass(frozen=True)
class Answer:
    """An answer's fields as they were written; nothing in them has been checked."""

    cards: tuple[str, ...]
    number: tuple[str, ...]
    formula: str


def find_answer(text: str) -> Answer | None:
    """The last complete answer object in `text`, or None; linear time, never raises."""
    answers = (_read(match[1]) for match in reversed(list(_OBJECT.finditer(text[-MAX_CHARACTERS:]))))
    return next((answer for answer in answers if answer), None)


def _read(body: str) -> Answer | None:
    """The three fields of an object's inside, in any order and beside any others; None if malformed."""
    lists: dict[str, tuple[str, ...]] = {}
    strings: dict[str, str] = {}
    at = 0
    while at < len(body):
        field = _FIELD.match(body, at)
        if not field:
            return None
        name = field[1] or field[2] or field[3]
        if field["list"] is not None:
            lists[name] = tuple(_ITEM.findall(field["list"]))
        elif field["double"] is not None or field["single"] is not None:
            strings[name] = field["double"] if field["double"] is not None else field["single"]
        at = field.end()
    if "cards" not in lists or "number" not in lists or "formula" not in strings:
        return None
    return Answer(lists["cards"], lists["number"], strings["formula"])
