"""How routes, actions and feedback are put into words, and how a list of actions is read back.

`paper` has the layout and the sentences of the published V-IRL prompt (arXiv 2501.17161, appendix B); what differs
is said in navigation.py. `compact` says the same in few short words with spaces between. Both name each turn in
both ways, as published: `turn left to face east`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from rlheals_ray.tasks.answer import MAX_CHARACTERS
from rlheals_ray.tasks.navigation_routes import DIRECTIONS, FORWARD, STOP, TURNS, Route, observations
from rlheals_ray.tasks.task import Rule

# An object holds no braces, which makes the search linear; `actions:[]` has ten characters.
_OBJECT = re.compile(r"\{([^{}]{10,}+)\}")
_FIELD = re.compile(
    r"""\s*+ (?: "([^"]++)" | '([^']++)' | (\w++) ) \s*+ : \s*+
        (?: \[ (?P<list> [^\[\]]*+ ) \] | "[^"]*+" | '[^']*+' | [^\s,"'\[\]]++ ) \s*+ ,?+ \s*+""",
    re.VERBOSE,
)
_ITEM = re.compile(
    r"""\s*+ (?: "([^"]*+)" | '([^']*+)' | ((?:slightly\s++)?+[^\s,"']++) ) \s*+ ,?+ \s*+""", re.VERBOSE
)
_CALL = re.compile(r"turn_direction\(([a-z ]+)\)|(forward|stop)\(\)")


def directions_of(rule: Rule) -> tuple[str, ...]:
    """What one may turn to: compass directions under the rule `id`, left and right under any other."""
    return DIRECTIONS if rule == "id" else tuple(TURNS)


def find_actions(text: str) -> tuple[str, ...] | None:
    """The last object's list `actions` as plain words, such as `slightly left` and `forward`; None without one.

    Quotes of either kind, none and trailing commas are read alike, and so is an action with or without its
    parentheses; what is no action stays as it is written. Only the end of a long text is read; linear time.
    """
    for match in reversed(list(_OBJECT.finditer(text[-MAX_CHARACTERS:]))):
        body, at, listed = match[1], 0, None
        while at < len(body) and (field := _FIELD.match(body, at)):
            if "actions" in field.group(1, 2, 3):
                listed = field["list"]
            at = field.end()
        if at == len(body) and listed is not None:
            return _items(listed)
    return None


def _items(listed: str) -> tuple[str, ...] | None:
    items: list[str] = []
    at = 0
    while at < len(listed):
        item = _ITEM.match(listed, at)
        if not item:
            return None if listed[at:].strip() else tuple(items)
        written = next(group for group in item.groups() if group is not None)
        call = _CALL.fullmatch(written)
        items.append((call[1] or call[2]) if call else " ".join(written.split()))
        at = item.end()
    return tuple(items)


class Paper:
    """Natural language; actions are calls, in a JSON object."""

    def prompt(self, route: Route, rule: Rule) -> str:
        sentences = [sentence for number in range(len(route.legs)) for sentence in _sentences(route, number)]
        seen = [
            f"{seen.sight or 'No landmarks nearby'};{' You observe an intersection' * seen.intersection}"
            for seen in observations(route)
        ]
        count = f" {len(DIRECTIONS)} directions" if rule == "id" else ""
        return (
            "[Task Description]\n"
            "You are an expert in navigation. You will receive a sequence of instructions to follow, and everything "
            "that is observed on the way, in order.\n"
            "Your goal is to give the action to be taken at each observation.\n\n"
            "[Instruction]\n"
            f"{_numbered('{}. {}', sentences)}\n\n"
            "[Action space]\n"
            '"forward()": indicates moving forward one step\n'
            '"turn_direction(x)": indicates turning towards x. x could be any of the following'
            f"{count} {list(directions_of(rule))}\n"
            '"stop()": indicates the navigation is finished\n\n'
            "[Observations]\n"
            f"{_numbered('O_{}: {}', seen)}\n\n"
            "[Output]\n"
            "Reply with one JSON object:\n"
            f'{{"actions": [a, b, ...]}}, where there are {len(seen)} actions chosen from the action space, one for '
            "each observation"
        )

    def answer(self, actions: Sequence[str]) -> str:
        calls = [f"{one}()" if one in (FORWARD, STOP) else f"turn_direction({one})" for one in actions]
        return json.dumps({"actions": calls})

    def feedback(self, kind: str, place: int) -> str:
        reasons = {
            "illegal": "you gave no list of actions",
            "unknown": f"action {place} is not in the action space",
            "wrong": f"action {place} is incorrect",
            "short": "you gave fewer actions than there are observations",
            "long": "you gave more actions than there are observations",
        }
        return f"You failed this trial because {reasons[kind]}."


class Compact:
    """Few short words."""

    def prompt(self, route: Route, rule: Rule) -> str:
        words = ["absolute" if rule == "id" else "relative"]
        for leg in route.legs:
            words += ["turn", leg.turn, leg.direction, "until", _short(leg.sight) or "crossing"]
        for seen in observations(route):
            words += ["see", _short(seen.sight) or "nothing", *["crossing"] * seen.intersection]
        return " ".join([*words, "reply"])

    def answer(self, actions: Sequence[str]) -> str:
        return " ".join(['{"actions":[', *actions, "]}"])

    def feedback(self, kind: str, place: int) -> str:
        return f"failed {kind}" + (f" {place}" if kind in ("unknown", "wrong") else "")


WORDINGS: dict[str, Paper | Compact] = {"paper": Paper(), "compact": Compact()}


def _sentences(route: Route, number: int) -> tuple[str, str]:
    leg, last = route.legs[number], number == len(route.legs) - 1
    turn = f"{'First, turn' if number == 0 else 'Turn'} {leg.turn} to face {leg.direction}."
    where = f" where {leg.sight}" if leg.sight else ""
    return turn, f"Move forward until you reach {'destination' if last else 'next intersection'}{where}."


def _numbered(layout: str, lines: Sequence[str]) -> str:
    return "\n".join(layout.format(number, line) for number, line in enumerate(lines, 1))


def _short(sight: str) -> str:
    return sight.replace("The destination ", "destination ").replace(" is on your ", " ").lower()
