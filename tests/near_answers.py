"""Answers near the right one of a problem, many of them wrong by one thing alone, made for each of our tasks."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

from tests.oracles import COMPASS, RELATIVE


def near_answers(name: str, rng: random.Random, problem: Any, right: str, count: int) -> list[str]:
    """`count` answers to a problem of the task of this name, demonstrated by `right`; none to a dataset's."""
    if name not in _NEAR:
        return []
    return [_around(rng, _NEAR[name](rng, problem, right), right) for _ in range(count)]


def _around(rng: random.Random, answer: str, right: str) -> str:
    """The answer alone, or with text, a draft, a second thought or itself beside it."""
    kind = rng.randrange(8)
    return {
        0: f"First I thought of {right}. Now:\n{answer}",
        1: f"{answer}\nNo, that is wrong:\n{right}",
        2: answer + answer,
        3: f"```json\n{answer}\n``` is {{my}} answer.",
        4: f'{{"thought": {answer}, "sure": true}}',
        5: answer.replace('"', "'"),
    }.get(kind, answer)


def _points(rng: random.Random, problem: Any, right: str) -> str:
    numbers, target = list(problem.values), problem.target
    shortest = _between(right, r'"formula":\s*"([^"]*)"').partition("=")[0].strip()
    kind = rng.randrange(9)
    formula = _formula(rng, rng.sample(numbers, len(numbers)))
    if kind == 0:  # the right value of cards that were not dealt
        formula = rng.choice(
            [str(target), f"{shortest}+1-1", f"({shortest})*1", f"{target - 1}+1", f"2*{target}/2"]
        )
    elif kind == 1:  # a card left out, or used twice, in the formula
        changed = [*numbers, rng.choice(numbers)] if rng.random() < 0.5 else numbers[1:]
        formula = _formula(rng, changed)
    elif kind == 2:  # a right formula under wrong numbers
        formula = shortest
        numbers[rng.randrange(len(numbers))] += rng.choice((-1, 1, 10))
    elif kind == 3:  # what it says that it equals
        formula = f"{shortest}{rng.choice(('=', ' = ', '=='))}{target + rng.choice((0, 0, 1))}"
    elif kind == 4:
        formula = f"{shortest}={rng.choice((f'{target}={target}', f'0{target}', f'{target}.0', f'{target - 1}+1', ''))}"
    elif kind == 5:  # one character of a right formula
        at = rng.randrange(len(shortest))
        formula = shortest[:at] + rng.choice("+-*/()0123456789 .^") + shortest[at + rng.randrange(2) :]
    elif kind == 6:
        formula = rng.choice(
            (f"({shortest})", f"-(-({shortest}))", f"+{shortest}", f"0+{shortest}", f"{shortest}/1")
        )
    elif kind == 7:
        formula = rng.choice(
            (shortest.replace("*", "**"), shortest.replace("/", "//"), shortest.replace("*", "×"))
        )
    listed: Any = numbers
    if rng.random() < 0.2:
        listed = rng.choice(
            (list(map(str, numbers)), list(map(float, numbers)), numbers[::-1], numbers * 2, None)
        )
    return json.dumps({"cards": problem.cards, "number": listed, "formula": formula}, ensure_ascii=False)


def _formula(rng: random.Random, numbers: list[int]) -> str:
    """A random formula of these numbers in this order."""
    if len(numbers) == 1:
        return str(numbers[0])
    at = rng.randrange(1, len(numbers))
    sides = (_formula(rng, numbers[:at]), _formula(rng, numbers[at:]))
    first, second = (f"({side})" if rng.random() < 0.6 and not side.isdigit() else side for side in sides)
    return first + rng.choice("+-*/") + second


def _matrix(rng: random.Random, problem: Any, right: str) -> str:
    value = problem.answer
    written = rng.choice(
        [
            *(value + offset for offset in (-1, 1, 10, -2 * value)),
            *(
                f"{value}.0",
                f"0{value}",
                f"+{value}",
                f"{value}e0",
                f"{value}0",
                f"- {abs(value)}",
                f"{value} {value}",
            ),
            *(
                f'"{value}"',
                f"[{value}]",
                f"{value},",
                f"{value}, 'answer': {value - 1}",
                f"-{value}",
                "-0",
                "0",
            ),
            *(
                f"{value - 1}, answer: {value}",
                "true",
                "null",
                "",
                "1" * 5000,
                f"{value}\u0661",
                f"{value}/1",
            ),
            *(value,) * 4,
        ]
    )
    name = rng.choice(('"answer"',) * 8 + ("answer", '"Answer"', '"the answer"', '"answer" "answer"'))
    head = "\n".join(right.splitlines()[:-1]) if rng.random() < 0.5 else f"It is {value}."
    return f"{head}\n{{{name}: {written}}}"


def _navigation(rng: random.Random, problem: Any, right: str) -> str:
    """The way of the demonstration, a list of actions or an object for each, with a few steps changed."""
    steps = right.splitlines()
    whole = "actions" in steps[0]
    said = json.loads(right)["actions"] if whole and '"]' in right else []
    actions = [_call(words) for words in said or _words(right)]
    words = [
        "forward()",
        "stop()",
        *(f"turn_direction({word})" for word in (*COMPASS, *RELATIVE, "back", "forward", "stop")),
    ]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.randrange(len(actions) + 1)
        other = rng.randrange(len(actions) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            actions[at : at + 1] = [rng.choice(words)]
        elif kind == 1:
            del actions[at : at + 1]
        elif kind == 2:
            actions.insert(at, rng.choice(words))
        elif kind == 3:
            del actions[at:]
        elif max(at, other) < len(actions):
            actions[at], actions[other] = actions[other], actions[at]
    if rng.random() < 0.3:  # compact
        bare = [re.sub(r"turn_direction\((.+)\)|(\w+)\(\)", r"\1\2", action) for action in actions]
        return (
            " ".join(['{"actions":[', *bare, "]}"])
            if whole
            else " ".join(f'{{"action": {b} }}' for b in bare)
        )
    if whole:
        return json.dumps({"actions": actions})
    seen = {"current observation": rng.choice(("No landmarks nearby;", "You observe an intersection"))}
    return "\n".join(
        json.dumps({**(seen if rng.random() < 0.5 else {}), "action": action}) for action in actions
    )


def _words(right: str) -> list[str]:
    """The actions of a demonstration in steps, or of one in the compact wording."""
    found = re.findall(r'"action": "?([^"{}]+?)"? ?\}', right)
    return found or re.findall(r"slightly \w+|\w+", _between(right, r"\[(.*)\]"))


def _call(action: str) -> str:
    return (
        action
        if "(" in action
        else f"{action}()"
        if action in ("forward", "stop")
        else f"turn_direction({action})"
    )


def _between(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.DOTALL)
    return found[1] if found else text


_NEAR: dict[str, Callable[[random.Random, Any, str], str]] = {
    "general_points": _points,
    "matrix_rank": _matrix,
    "determinant": _matrix,
    "navigation": _navigation,
}
