"""Whether an answer to a problem of one of our tasks is right, found without the code that judges it.

`oracle_of(name, task)` reads the answer by a scanner of its own, works the problem out by other means (Python's own
grammar and fractions; sympy on the matrix that the prompt shows; a walk by the compass) and applies the limits that
the judges state. So it says of any text whatever what `Verdict.solved` must be.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, cast

import sympy

from rlheals_ray.tasks import Problem, Task

Oracle = Callable[[Problem, str], bool]

READ = 16_384
"""Characters at the end of a text that any of our judges reads."""


# Reading


def objects(text: str, characters: int = READ) -> Iterator[str]:
    """The insides of the innermost pairs of braces, the last first."""
    read, insides, start = text[-characters:], [], None
    for at, character in enumerate(read):
        if character == "{":
            start = at + 1
        elif character == "}" and start is not None:
            insides.append(read[start:at])
            start = None
    return reversed(insides)


Field = tuple[str, str, str]
"""Name, kind (`list`, `string` or `bare`) and what is written."""


class Unreadable(ValueError):
    """The inside of an object is no sequence of fields."""


class Scanner:
    """Reads `name: value` with or without quotes and commas, one character at a time."""

    NAMES = r"\w+"
    """What a name in quotes may be."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fields(self) -> list[Field]:
        found = []
        while self.at < len(self.text):
            self.blanks()
            name = self.name()
            self.blanks()
            self.expect(":")
            self.blanks()
            found.append((name, *self.value()))
            self.blanks()
            if self.text[self.at : self.at + 1] == ",":
                self.at += 1
            self.blanks()
        return found

    def name(self) -> str:
        if self.text[self.at : self.at + 1] not in ("'", '"'):
            return self.run(lambda c: c.isalnum() or c == "_")
        name = Scanner.quoted(self)
        if not re.fullmatch(self.NAMES, name):
            raise Unreadable
        return name

    def value(self) -> tuple[str, str]:
        first = self.text[self.at : self.at + 1]
        if first in ("'", '"'):
            return "string", self.quoted()
        if first != "[":
            return "bare", self.run(lambda c: not c.isspace() and c not in ",\"'[]")
        end = self.text.find("]", self.at)
        inside = self.text[self.at + 1 : max(end, 0)]
        if end < 0 or "[" in inside:
            raise Unreadable
        self.at = end + 1
        return "list", inside

    def quoted(self) -> str:
        end = self.text.find(self.text[self.at], self.at + 1)
        inside = self.text[self.at + 1 : max(end, 0)]
        if end < 0:
            raise Unreadable
        self.at = end + 1
        return inside

    def run(self, fits: Callable[[str], bool]) -> str:
        start = self.at
        while self.at < len(self.text) and fits(self.text[self.at]):
            self.at += 1
        if start == self.at:
            raise Unreadable
        return self.text[start : self.at]

    def blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def expect(self, character: str) -> None:
        if self.text[self.at : self.at + 1] != character:
            raise Unreadable
        self.at += 1


def last_object(
    text: str, wanted: dict[str, set[str]], scanner: type[Scanner] = Scanner
) -> dict[str, tuple[str, str]] | None:
    """Kind and text of the fields wanted, of the last object that has them in a kind named; a later field counts."""
    for inside in objects(text):
        try:
            fields = scanner(inside).fields()
        except Unreadable:
            continue
        said = {name: (kind, written) for name, kind, written in fields if kind in wanted.get(name, ())}
        if set(said) == set(wanted):
            return said
    return None


# general_points

_PIPS = {"A": 1, **{str(number): number for number in range(2, 11)}}
_FACES = {"faces": (11, 12, 13)}


def points(task: Any) -> Oracle:
    """The cards' worth from the options, the formula's value by Python's grammar in fractions."""
    options = task.options
    named = {"ood": options.ood} if isinstance(options.ood, str) else {name: name for name in options.ood}
    faces = {
        rule: options.ood_faces if name == "other_faces" else _FACES.get(name) for rule, name in named.items()
    }

    def right(problem: Any, text: str) -> bool:
        worth = {**_PIPS, **dict(zip("JQK", faces.get(problem.rule) or (10, 10, 10), strict=True))}
        dealt = sorted(worth[card] for card in problem.cards)
        said = last_object(text, {"cards": {"list"}, "number": {"list"}, "formula": {"string"}})
        if said is None:
            return False
        numbers = re.sub("[,\"']", " ", said["number"][1]).split()
        return sorted(numbers) == sorted(map(str, dealt)) and makes(said["formula"][1], dealt, problem.target)

    return right


def makes(formula: str, dealt: list[int], target: int) -> bool:
    """Whether a formula uses exactly the numbers dealt and makes the target, whatever follows a sign `=`."""
    written, equals, claimed = formula.partition("=")
    if equals and claimed.strip(" \t\r\n") != str(target):
        return False
    value = evaluated(written) if len(formula) <= 512 else None
    return value is not None and value[0] == target and sorted(value[1]) == sorted(dealt)


def evaluated(formula: str) -> tuple[Fraction, list[int]] | None:
    """Value and numbers, exactly; None for what is no formula of whole numbers, + - * / and parentheses."""
    deepest = max(
        (formula[: at + 1].count("(") - formula[:at].count(")") for at in range(len(formula))), default=0
    )
    if not re.fullmatch(r"[-+*/() \t\r\n0-9]+", formula) or deepest > 64:
        return None
    if not all(re.fullmatch("0|[1-9][0-9]{0,3}", digits) for digits in re.findall("[0-9]+", formula)):
        return None
    try:
        tree = ast.parse(re.sub(r"\s", " ", formula).strip(), mode="eval")
        return _value(tree.body), [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # type: ignore[misc]
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        raise TypeError("no formula")
    left, right = _value(node.left), _value(node.right)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    raise TypeError("a power or another division")


# matrix_rank, determinant


def matrix(task: Task) -> Oracle:
    """sympy on the matrix that the prompt shows; the answer as JSON reads it."""

    def right(problem: Problem, text: str) -> bool:
        said = last_object(text, {"answer": {"bare", "string", "list"}})
        if said is None or said["answer"][0] != "bare":
            return False
        try:
            value = json.loads(said["answer"][1])
        except ValueError:
            return False
        return type(value) is int and value == _by_sympy(task.name, task.prompt(problem))

    return right


@lru_cache(4096)
def _by_sympy(asked: str, prompt: str) -> int:
    shown = re.search(r"\[\[.*\]\]", prompt)
    if shown:
        rows = json.loads(shown[0])
    else:
        words = prompt.split(" ", 1)[1].rpartition(" ")[0]
        rows = [[int(word) for word in row.split()] for row in words.split(";")]
    found = sympy.Matrix(rows)
    return int(found.rank() if asked == "matrix_rank" else found.det())


# navigation

COMPASS = dict(
    north=0, northeast=45, east=90, southeast=135, south=180, southwest=225, west=270, northwest=315
)
RELATIVE = {"left": -90, "slightly left": -45, "slightly right": 45, "right": 90}
Point = tuple[int, int]


def navigation(task: Any) -> Oracle:
    """A walk by the compass, in the actions of one list or of all objects in turn, as the option `mode` has it."""

    def right(problem: Any, text: str) -> bool:
        if task.options.mode == "route":
            said = last_object(text, {"actions": {"list"}}, Calls)
            actions = None if said is None else _listed(said["actions"][1])
        else:
            read = text[-max(READ, len(task.demonstration(problem))) :]
            actions = [_plain(written) for inside in objects(read, len(read)) for written in _action(inside)][
                ::-1
            ]
        return actions is not None and walk(problem.route, problem.rule, actions) == "arrived"

    return right


def navigation_turn(task: Any) -> Callable[[Problem, Sequence[str], str], bool]:
    """Whether a single answer, after those before it, leads on along the route."""
    whole = navigation(task)

    def right(problem: Any, earlier: Sequence[str], text: str) -> bool:
        if task.options.mode == "route":
            return whole(problem, text)
        done = [_last_action(answer) for answer in (*earlier, text)]
        return None not in done and walk(problem.route, problem.rule, cast(list[str], done)) != "astray"

    return right


def _last_action(text: str) -> str | None:
    return next((_plain(written) for inside in objects(text) for written in _action(inside)), None)


def walk(route: Any, rule: str, actions: list[str]) -> Literal["arrived", "on the way", "astray"]:
    """Where these actions, in plain words, lead: along the route step by step, or off it."""
    trail, corners = [(0, 0)], set()
    for leg in route.legs:
        corners.add(len(trail) - 1)
        for _ in range(leg.blocks):
            trail.append(_ahead(trail[-1], COMPASS[leg.direction]))
    facing, walked, turned = COMPASS[route.heading], 0, False
    for number, action in enumerate(actions, 1):
        if action == "stop":
            return "arrived" if walked == len(trail) - 1 and number == len(actions) else "astray"
        turns = COMPASS if rule == "id" else RELATIVE
        if walked == len(trail) - 1 or (action != "forward" and action not in turns):
            return "astray"
        if action != "forward":
            facing = turns[action] if rule == "id" else (facing + turns[action]) % 360
        if (action == "forward") != (turned or walked not in corners) or _ahead(
            trail[walked], facing
        ) != trail[walked + 1]:
            return "astray"
        turned = action != "forward"
        walked += not turned
    return "on the way"


def _ahead(position: Point, degrees: int) -> Point:
    east, north = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return position[0] + round(east), position[1] + round(north)


class Calls(Scanner):
    """Strings may hold escapes, a call may hold a space or a string, lists hold lists, and names are of any kind."""

    NAMES = "(?s:.+)"

    def value(self) -> tuple[str, str]:
        call = re.compile(r"""turn_direction\([^()\[\],]*\)|slightly\s+[^\s,"'\[\]]+""").match(
            self.text, self.at
        )
        if call:
            self.at = call.end()
            return "bare", call[0]
        start, depth = self.at, 0
        if self.text[self.at : self.at + 1] != "[":
            return super().value()
        while self.at < len(self.text):
            character = self.text[self.at]
            if character in ("'", '"'):
                self.quoted()
                continue
            self.at += 1
            depth += (character == "[") - (character == "]")
            if not depth:
                return "list", self.text[start + 1 : self.at - 1]
        raise Unreadable

    def quoted(self) -> str:
        mark, start, at = self.text[self.at], self.at + 1, self.at + 1
        while self.text[at : at + 1] not in ("", mark):
            at += 2 if self.text[at] == "\\" else 1
        if at >= len(self.text):
            raise Unreadable
        self.at = at + 1
        return self.text[start:at]


def _action(inside: str) -> list[str]:
    """The action of an object, in a list, which is empty where there is none."""
    try:
        said = [(kind, written) for name, kind, written in Calls(inside).fields() if name == "action"]
    except Unreadable:
        return []
    return [written for kind, written in said[-1:] if kind != "list"]


def _listed(inside: str) -> list[str] | None:
    """The items of a list, whether they stand in quotes or not."""
    scanner, actions = Calls(inside), []
    scanner.blanks()
    while scanner.at < len(inside):
        if inside[scanner.at] == "[":
            return None
        try:
            actions.append(_plain(scanner.value()[1]))
        except Unreadable:
            return None
        scanner.blanks()
        if inside[scanner.at : scanner.at + 1] == ",":
            scanner.at += 1
        scanner.blanks()
    return actions


def _plain(action: str) -> str:
    """`turn_direction(left)` and `left` are alike, and `forward()` and `forward`; a call of anything else is none."""
    called = re.fullmatch(r"""\s*(\w+)\(\s*(["']?)([a-z ]*?)\2\s*\)\s*""", action)
    if called is None:
        return " ".join(action.split())
    name, _, to = called.groups()
    if name == "turn_direction":
        return " ".join(to.split()) if to.strip() in {*COMPASS, *RELATIVE} else "no such turn"
    return "no such action" if to or name not in ("forward", "stop") else name


# reasoning_gym


def chain_sum(task: Task) -> Oracle:
    """The sum that the question shows, by Python's grammar; theirs compares texts."""

    def right(problem: Any, text: str) -> bool:
        said = re.findall(r"<answer>(.*?)</answer>", text[-65_536:], re.DOTALL)
        asked = evaluated(problem.question.rpartition(":")[2].rpartition("=")[0])
        assert asked is not None
        return bool(said) and said[-1].strip() == str(asked[0])

    return right


_ORACLES: dict[str, Callable[[Any], Oracle]] = {
    "general_points": points,
    "matrix_rank": matrix,
    "determinant": matrix,
    "navigation": navigation,
}


def oracle_of(name: str, task: Task) -> Oracle | None:
    """The oracle of a task, or None: datasets of reasoning-gym are judged by the package, but for one here."""
    if getattr(cast(Any, task).options, "dataset", "") == "chain_sum":
        return chain_sum(task)
    return _ORACLES[name](task) if name in _ORACLES else None
