"""Navigation: follow a route by its instruction, in the setting of V-IRL with text alone (arXiv 2501.17161).

Under the rule `id` one turns to a compass direction, `turn_direction(northeast)`; under `ood` to a side,
`turn_direction(slightly left)`. Instruction and observations are of the same kind under both and name each turn both
ways, `Turn left to face east`; only the action space in the prompt says which is asked for.

By default (`mode: steps`) the model is asked as in the published environment: it sees the instruction, what was
observed and done so far and the current observation, and answers with one action,
`{"current observation": ..., "current instruction": ..., "action": "turn_direction(north)"}`. The right one is done and
the next observation told; a wrong one may be tried again, `max_attempts` times in all (2, as published), and the route
counts only as a whole. Rewards, feedback and what differs: navigation_steps.py. The published environment renders the
history anew for each step; here it is the conversation itself, since tokens are append-only. After the last try it is
over, where the published environment asks once more without reading the answer.

In `mode: route` the observations of the whole right route are in the prompt, and the answer is all actions, one for
each observation: `{"actions": ["turn_direction(north)", "forward()", "stop()"]}`. A try is a whole route there, and the
feedback names the first wrong action by its number. The rewards are added up along the route, to the first wrong
action: +1 for each right one, -1 for a wrong one, -1.5 for an action outside the action space and for an answer without
a list. One action too few or too many is a wrong one.

By default routes are drawn (navigation_routes.py): that they have 1 to 3 steps between intersections, turns of 45° or
90° and one-word landmarks is ours. The published ones, real streets, may be given as a file (navigation_files.py).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rlheals_ray.config import InputError
from rlheals_ray.tasks.answer import MAX_CHARACTERS
from rlheals_ray.tasks.navigation_answers import find_actions, find_turn, find_turns
from rlheals_ray.tasks.navigation_files import read_routes
from rlheals_ray.tasks.navigation_routes import NAMES, Route, actions, draw, shape
from rlheals_ray.tasks.navigation_steps import RIGHT, WORST, WRONG, judge_step, judge_steps
from rlheals_ray.tasks.navigation_wording import WORDINGS, directions_of
from rlheals_ray.tasks.splits import check_count, check_split, in_share, in_turn
from rlheals_ray.tasks.task import Problem, Rule, Split, Verdict

# Raise it whenever problems, prompts, demonstrations or verdicts change for the same options.
_CODE_VERSION = 3

FEWEST = 100
"""Options that leave a split with fewer distinct problems are refused; of a file, those that leave one with none."""
_OOD_SHARE = 0.25
"""Share of the groups that the OOD rule has for itself."""

_PARTS: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))

Turns = Annotated[int, Field(strict=True, ge=2, le=6)]


class NavigationOptions(BaseModel):
    """What a study may choose; `turns`, `landmarks` and `pool` are of drawn routes only."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    mode: Literal["steps", "route"] = "steps"
    """Whether one action is asked for at a time, as published, or all of a route at once."""
    turns: tuple[Turns, Turns] = (2, 6)
    """Fewest and most turns of a route, the one at its start included; all numbers are equally frequent."""
    landmarks: Annotated[int, Field(strict=True, ge=8, le=len(NAMES))] = 32
    """How many names of landmarks there are."""
    wording: Literal["compact", "paper"] = "paper"
    held_out: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.4
    """Share of the ID groups that evaluation keeps for itself."""
    pool: Annotated[int, Field(strict=True, ge=500, le=200_000)] = 5_000
    """How many routes are drawn for each rule; problems come from these alone."""
    routes: Annotated[str, Field(strict=True, min_length=1)] | None = None
    """A file of routes in the published layout, to use in place of drawn ones; the same on every machine."""

    @field_validator("turns")
    @classmethod
    def _ascending(cls, turns: tuple[int, int]) -> tuple[int, int]:
        if turns[0] > turns[1]:
            raise ValueError("the fewest come first; write for example [2, 6]")
        return turns


@dataclass(frozen=True)
class NavigationProblem(Problem):
    """A route; the actions follow from it and the rule."""

    route: Route


class Navigation:
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "navigation"
    Options = NavigationOptions

    def __init__(self, options: NavigationOptions) -> None:
        self.options = options
        self._routes, self._content = read_routes(options.routes) if options.routes else ((), "")
        self._wording = WORDINGS[options.wording]
        fewest = 1 if options.routes else FEWEST
        for rule, split in _PARTS:
            if (there := self.available(rule, split)) < fewest:
                field, value, remedy = (
                    ("routes", options.routes, "give a file of more routes")
                    if options.routes
                    else ("turns", list(options.turns), "widen turns, raise pool")
                )
                raise InputError(
                    f"task.{field} (got {value!r}): with these options and held_out={options.held_out} there are "
                    f"{there} distinct {rule} {split} problems, fewer than {fewest}; {remedy} or change held_out."
                )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Navigation) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[NavigationOptions, str]:
        return self.options, self._content

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """Distinct routes, numbers of turns in turn and, within each, one of every group before a second of any.

        Raises InputError for a rule or split that does not exist, a negative count, or more than are `available`.
        """
        there, options = self.available(rule, split), self.options
        told = f"pool={options.pool}, routes={options.routes!r} and held_out={options.held_out}"
        remedy = f"ask for {there} at most, or {'give more routes' if options.routes else 'raise pool'}"
        check_count(count, there, rule, split, told, remedy)
        problems: list[Problem] = [
            *in_turn(_pool(self, rule, split), random.Random(f"{seed}/{rule}/{split}"))
        ]
        return problems[:count]

    def available(self, rule: Rule, split: Split) -> int:
        """How many problems the split has, of those drawn or of the file."""
        check_split(rule, split)
        return sum(map(len, _pool(self, rule, split)))

    def prompt(self, problem: Problem) -> str:
        own = self._own(problem)
        return (self._wording.opening if self._steps else self._wording.prompt)(own.route, own.rule)

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        """The same for every seed, there being one right way; in steps the answers of all, a line each."""
        return "\n".join(self.demonstration_turns(problem, seed))

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Reads the last object in `text` that has a list `actions`; the reward is that of the steps, added up.

        In steps: all objects with an `action`, each the answer to the next observation.
        """
        own = self._own(problem)
        if self._steps:
            # A route of a file may be so long that its own demonstration is.
            characters = len(self.demonstration(problem)) if len(text) > MAX_CHARACTERS else 0
            given = find_turns(text, max(MAX_CHARACTERS, characters))
            return judge_steps(self._wording, own.route, own.rule, given)
        return self._judge_route(own, find_actions(text))

    def turns(self, problem: Problem) -> int:
        """One for each observation, the destination's included."""
        return len(actions(self._own(problem).route, problem.rule)) if self._steps else 1

    def judge_turn(self, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
        """In steps: reads the last object with an `action`; as many answers before it, as many steps were made."""
        if not self._steps:
            return self.judge(problem, text)
        own = self._own(problem)
        return judge_step(self._wording, own.route, own.rule, len(earlier), find_turn(text))

    def demonstration_turns(self, problem: Problem, seed: int = 0) -> list[str]:
        """The right answer to each observation, or the one to all of them."""
        route, rule = self._own(problem).route, problem.rule
        if not self._steps:
            return [self._wording.answer(actions(route, rule))]
        return [self._wording.turn(route, rule, place) for place in range(self.turns(problem))]

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        """Of the options and, where routes come from a file, of its content."""
        declared = [self.name, _CODE_VERSION, self.options.model_dump(mode="json"), self._content]
        return hashlib.blake2b(json.dumps(declared, sort_keys=True).encode(), digest_size=16).hexdigest()

    def strata(self, rule: Rule) -> list[list[Route]]:
        """The rule's routes by their number of turns; those of a file all together."""
        if self.options.routes:
            return [[route for route in self._routes if _is_of(rule, shape(route))]]
        (least, most), names = self.options.turns, NAMES[: self.options.landmarks]
        share = self.options.pool // (most - least + 1)
        return [
            draw(
                random.Random(f"{self.name}/{rule}/{turns}/{len(names)}"),
                turns,
                names,
                share,
                lambda group: _is_of(rule, group),
            )
            for turns in range(least, most + 1)
        ]

    def problem_of(self, route: Route, rule: Rule) -> NavigationProblem:
        return NavigationProblem(f"{self.name}:{rule}:{route}", rule, shape(route), route)

    @property
    def _steps(self) -> bool:
        return self.options.mode == "steps"

    def _judge_route(self, problem: NavigationProblem, given: tuple[str, ...] | None) -> Verdict:
        right = actions(problem.route, problem.rule)
        if given is None:
            return Verdict(WORST, False, False, self._wording.feedback("illegal", 0))
        if given == right:
            return Verdict(RIGHT * len(right), True, True, "")
        known = {*directions_of(problem.rule), "forward", "stop"}
        agreed = 0
        while agreed < min(len(given), len(right)) and given[agreed] == right[agreed]:
            agreed += 1
        if agreed == len(given):
            kind = "short"
        elif agreed == len(right):
            kind = "long"
        else:
            kind = "wrong" if given[agreed] in known else "unknown"
        reward = RIGHT * agreed + (WORST if kind == "unknown" else WRONG)
        return Verdict(reward, False, known.issuperset(given), self._wording.feedback(kind, agreed + 1))

    def _own(self, problem: Problem) -> NavigationProblem:
        if not isinstance(problem, NavigationProblem):
            raise TypeError(f"{problem.id!r} is not a problem of {self.name}")
        return problem


@lru_cache(maxsize=32)
def _pool(task: Navigation, rule: Rule, split: Split) -> tuple[tuple[NavigationProblem, ...], ...]:
    """The split's problems by number of turns, as many of each as of the rarest."""
    if (rule, split) not in _PARTS:
        return ()
    kept = [
        [
            problem
            for problem in stratum
            if rule == "ood"
            or in_share(f"navigation/held out/{problem.group}", task.options.held_out) == (split == "eval")
        ]
        for stratum in _strata(task, rule)
    ]
    return tuple(zip(*zip(*kept, strict=False), strict=True))


@lru_cache(maxsize=8)
def _strata(task: Navigation, rule: Rule) -> list[list[NavigationProblem]]:
    return [[task.problem_of(route, rule) for route in stratum] for stratum in task.strata(rule)]


def _is_of(rule: Rule, group: str) -> bool:
    """Whether the rule has the group: ID and OOD routes are of one kind, so their groups are divided once for all."""
    return in_share(f"navigation/ood/{group}", _OOD_SHARE) == (rule == "ood")
