r"""How actions are read from a model's text: a list of them from one object, or one from each of several.

Objects are JSON or nearly so: quotes of either kind or none, trailing commas, an action with or without its
parentheses. What is no action stays as it is written. Everything is linear in the text and total.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlheals_ray.tasks.answer import MAX_CHARACTERS

# An object holds no braces, which makes the search linear; `action:x` has eight characters.
_OBJECT = re.compile(r"\{([^{}]{8,}+)\}")
_NAME = re.compile(r"""\s*+ (?: "([^"]++)" | '([^']++)' | (\w++) ) \s*+ : \s*+""", re.VERBOSE)
_STRING = r""" "(?P<double> (?:[^"\\]|\\.)*+ )" | '(?P<single> (?:[^'\\]|\\.)*+ )' """
# Without quotes a call may hold a space, `turn_direction(slightly left)`, and so may a bare word of the same kind.
_INSIDE = r"""(?: \s*+ "[^"()]*+" \s*+ | \s*+ '[^'()]*+' \s*+ | [^()\[\]"',]*+ )"""
_BARE = rf"""(?P<bare> turn_direction\({_INSIDE}\) | (?:slightly\s++)?+ [^\s,"'\[\]]++ )"""
_VALUE = re.compile(f"(?: {_STRING} | {_BARE} )", re.VERBOSE | re.DOTALL)
_ITEM = re.compile(f"\\s*+ (?: {_STRING} | {_BARE} ) \\s*+ ,?+ \\s*+", re.VERBOSE | re.DOTALL)
_PIECE = re.compile(rf"""[^\[\]"']++ | {_STRING} | [\[\]]""", re.VERBOSE | re.DOTALL)
_END = re.compile(r"\s*+,?+\s*+")
_CALL = re.compile(
    r"""turn_direction\(\s*+(["']?+)(?!(?:forward|stop)\b)([a-z][a-z ]*?)\1\s*+\)|(forward|stop)\(\s*+\)"""
)


@dataclass(frozen=True)
class Turn:
    """One answer: its fields `action`, in plain words, and `current observation`, None where that is not given."""

    action: str
    observation: str | None


@dataclass(frozen=True)
class _Value:
    text: str
    is_list: bool


def find_actions(text: str) -> tuple[str, ...] | None:
    """The last object's list `actions` as plain words, such as `slightly left` and `forward`; None without one.

    Only the end of a long text is read.
    """
    for match in reversed(list(_OBJECT.finditer(text[-MAX_CHARACTERS:]))):
        fields = _fields(match[1])
        if fields and (listed := fields.get("actions")) and listed.is_list:
            return _items(listed.text)
    return None


def find_turn(text: str) -> Turn | None:
    """The last object with a field `action`; a model may draft before it answers. Of a long text the end is read."""
    for match in reversed(list(_OBJECT.finditer(text[-MAX_CHARACTERS:]))):
        if turn := _turn(match[1]):
            return turn
    return None


def find_turns(text: str, characters: int) -> list[Turn]:
    """All objects with a field `action` in the last `characters` of a text."""
    turns = (_turn(match[1]) for match in _OBJECT.finditer(text[-characters:]))
    return [turn for turn in turns if turn]


def _turn(body: str) -> Turn | None:
    fields = _fields(body)
    if not fields or not (action := fields.get("action")) or action.is_list:
        return None
    seen = fields.get("current observation")
    return Turn(_plain(action.text), seen.text if seen and not seen.is_list else None)


def _fields(body: str) -> dict[str, _Value] | None:
    """The fields of an object's inside by name, the last of each; None where it is no sequence of fields."""
    fields: dict[str, _Value] = {}
    at = 0
    while at < len(body):
        name = _NAME.match(body, at)
        if not name:
            return None
        at = name.end()
        if body.startswith("[", at):
            end = _end_of_list(body, at)
            if end is None:
                return None
            value = _Value(body[at + 1 : end - 1], True)
        else:
            match = _VALUE.match(body, at)
            if not match:
                return None
            value, end = _Value(_written(match), False), match.end()
        fields[name[1] or name[2] or name[3]] = value
        if tail := _END.match(body, end):
            at = tail.end()
    return fields


def _end_of_list(body: str, at: int) -> int | None:
    """Where the list that begins at `at` is over, lists in it included; None where it is not closed."""
    depth = 0
    while piece := _PIECE.match(body, at):  # a quote that is not closed is no piece
        at = piece.end()
        depth += {"[": 1, "]": -1}.get(piece[0], 0)
        if depth == 0:
            return at
    return None


def _items(listed: str) -> tuple[str, ...] | None:
    items: list[str] = []
    at = 0
    while at < len(listed):
        item = _ITEM.match(listed, at)
        if not item:
            return None if listed[at:].strip() else tuple(items)
        items.append(_plain(_written(item)))
        at = item.end()
    return tuple(items)


def _written(match: re.Match[str]) -> str:
    return next(group for group in match.group("double", "single", "bare") if group is not None)


def _plain(written: str) -> str:
    call = _CALL.fullmatch(written.strip())
    return " ".join(((call[2] or call[3]) if call else written).split())
