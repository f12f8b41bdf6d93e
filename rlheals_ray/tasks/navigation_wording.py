"""How routes, observations, actions and feedback are put into words.

`paper` has the layout and the sentences of the published V-IRL prompt (arXiv 2501.17161, appendix B); what differs
is said in navigation.py. `compact` says the same in few short words with spaces between. Both name each turn in
both ways, as published: `turn left to face east`. Answers are read back by navigation_answers.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rlheals_ray.tasks.navigation_routes import (
    DIRECTIONS,
    FORWARD,
    STOP,
    TURNS,
    Observation,
    Route,
    actions,
    observations,
)
from rlheals_ray.tasks.task import Rule


def directions_of(rule: Rule) -> tuple[str, ...]:
    """What one may turn to: compass directions under the rule `id`, left and right under any other."""
    return DIRECTIONS if rule == "id" else tuple(TURNS)


class Paper:
    """Natural language; actions are calls, in JSON objects."""

    intersection = "intersection"
    """By this word in its observation an answer says that it is at one."""

    def opening(self, route: Route, rule: Rule) -> str:
        """The prompt of a route that is answered step by step: what is seen at its start, and nothing later."""
        return (
            "[Task Description]\n"
            "You are an expert in navigation. You will receive a sequence of instructions to follow. You are also "
            "provided with your observation and action history in text.\n"
            "Your goal is to take the action based on the current observation and instruction.\n\n"
            f"{_instruction(route)}"
            f"{_action_space(rule)}"
            "[Observations and actions sequence]\n"
            f"O_1: {_seen(observations(route)[0])}\n"
            "A_1:\n\n"
            "[Output]\n"
            "Your response should be a valid json file in the following format:\n"
            "{\n"
            '"current observation": latest observation from the sequence,\n'
            '"current instruction": analyze the full instruction and identify the sentence to be executed,\n'
            '"action": the action to be taken chosen from the action space\n'
            "}"
        )

    def turn(self, route: Route, rule: Rule, place: int) -> str:
        """The right answer to the observation at `place`, counted from 0."""
        fields = {
            "current observation": _seen(observations(route)[place]),
            "current instruction": _sentence_at(route, place),
            "action": _call(actions(route, rule)[place]),
        }
        return json.dumps(fields, ensure_ascii=False)

    def onward(self, route: Route, rule: Rule, place: int) -> str:
        """What is said after the right answer at `place`: the sequence goes on by its action and what is seen then."""
        return (
            f"Correct action.\nA_{place + 1}: {_call(actions(route, rule)[place])}\n"
            f"O_{place + 2}: {_seen(observations(route)[place + 1])}\nA_{place + 2}:"
        )

    def seen(self, observation: Observation) -> str:
        """An observation as it is told."""
        return _seen(observation)

    def step_feedback(self, kind: str) -> str:
        """What is said after a wrong answer to an observation."""
        reasons = {
            "illegal": "you gave no action",
            "unknown": "your action is not in the action space",
            "wrong": "your action is incorrect",
            "nowhere": "you are not at any intersection",
            "unseen": "you are at an intersection",
            "over": "the navigation is finished",
        }
        return f"You failed this trial because {reasons[kind]}."

    def prompt(self, route: Route, rule: Rule) -> str:
        """The prompt of a route that is answered as a whole: all that is observed on the right way."""
        seen = [_seen(one) for one in observations(route)]
        return (
            "[Task Description]\n"
            "You are an expert in navigation. You will receive a sequence of instructions to follow, and everything "
            "that is observed on the way, in order.\n"
            "Your goal is to give the action to be taken at each observation.\n\n"
            f"{_instruction(route)}"
            f"{_action_space(rule)}"
            "[Observations]\n"
            f"{_numbered('O_{}: {}', seen)}\n\n"
            "[Output]\n"
            "Reply with one JSON object:\n"
            f'{{"actions": [a, b, ...]}}, where there are {len(seen)} actions chosen from the action space, one for '
            "each observation"
        )

    def answer(self, actions: Sequence[str]) -> str:
        """The right answer to a whole route."""
        return json.dumps({"actions": [_call(one) for one in actions]})

    def feedback(self, kind: str, place: int) -> str:
        """What is said of a wrong list of actions; `place` of the first wrong one, from 1."""
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

    intersection = "crossing"

    def opening(self, route: Route, rule: Rule) -> str:
        return " ".join([*_told(route, rule), *_short_sight(observations(route)[0]), "reply"])

    def turn(self, route: Route, rule: Rule, place: int) -> str:
        return f'{{"action": {actions(route, rule)[place]} }}'

    def onward(self, route: Route, rule: Rule, place: int) -> str:
        return " ".join(
            ["did", actions(route, rule)[place], *_short_sight(observations(route)[place + 1]), "reply"]
        )

    def seen(self, observation: Observation) -> str:
        return " ".join(_short_sight(observation))

    def step_feedback(self, kind: str) -> str:
        return f"failed {kind}"

    def prompt(self, route: Route, rule: Rule) -> str:
        seen = [word for one in observations(route) for word in _short_sight(one)]
        return " ".join([*_told(route, rule), *seen, "reply"])

    def answer(self, actions: Sequence[str]) -> str:
        return " ".join(['{"actions":[', *actions, "]}"])

    def feedback(self, kind: str, place: int) -> str:
        return f"failed {kind}" + (f" {place}" if kind in ("unknown", "wrong") else "")


Wording = Paper | Compact
WORDINGS: dict[str, Wording] = {"paper": Paper(), "compact": Compact()}


def _instruction(route: Route) -> str:
    sentences = [sentence for number in range(len(route.legs)) for sentence in _sentences(route, number)]
    return f"[Instruction]\n{_numbered('{}. {}', sentences)}\n\n"


def _action_space(rule: Rule) -> str:
    count = f" {len(DIRECTIONS)} directions" if rule == "id" else ""
    return (
        "[Action space]\n"
        '"forward()": indicates moving forward one step\n'
        '"turn_direction(x)": indicates turning towards x. x could be any of the following'
        f"{count} {list(directions_of(rule))}\n"
        '"stop()": indicates the navigation is finished\n\n'
    )


def _sentences(route: Route, number: int) -> tuple[str, str]:
    leg, last = route.legs[number], number == len(route.legs) - 1
    turn = f"{'First, turn' if number == 0 else 'Turn'} {leg.turn} to face {leg.direction}."
    where = f" where {leg.sight}" if leg.sight else ""
    return turn, f"Move forward until you reach {'destination' if last else 'next intersection'}{where}."


def _sentence_at(route: Route, place: int) -> str:
    """The sentence that the action at `place` carries out; stopping belongs to the last one, as published."""
    for number, leg in enumerate(route.legs):
        turn, walk = _sentences(route, number)
        if place <= leg.blocks:
            return turn if place == 0 else walk
        place -= 1 + leg.blocks
    return walk


def _seen(seen: Observation) -> str:
    return f"{seen.sight or 'No landmarks nearby'};{' You observe an intersection' * seen.intersection}"


def _call(action: str) -> str:
    return f"{action}()" if action in (FORWARD, STOP) else f"turn_direction({action})"


def _told(route: Route, rule: Rule) -> list[str]:
    words = ["absolute" if rule == "id" else "relative"]
    for leg in route.legs:
        words += ["turn", leg.turn, leg.direction, "until", _short(leg.sight) or "crossing"]
    return words


def _short_sight(seen: Observation) -> list[str]:
    return ["see", _short(seen.sight) or "nothing", *["crossing"] * seen.intersection]


def _numbered(layout: str, lines: Sequence[str]) -> str:
    return "\n".join(layout.format(number, line) for number, line in enumerate(lines, 1))


def _short(sight: str) -> str:
    return sight.replace("The destination ", "destination ").replace(" is on your ", " ").lower()
