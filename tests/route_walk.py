"""An oracle of navigation step by step: a walk through a route's streets, without our wording, reading or judging."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import cast

from rlheals_ray.tasks import Rule
from rlheals_ray.tasks.navigation_routes import Route, streets

COMPASS = dict(
    north=0, northeast=45, east=90, southeast=135, south=180, southwest=225, west=270, northwest=315
)
RELATIVE = {"left": -90, "slightly left": -45, "slightly right": 45, "right": 90}


class Walk:
    """Someone who walks a route through its streets, and knows what is right and what is seen by these alone."""

    def __init__(self, route: Route, rule: Rule) -> None:
        self.rule, self.facing, self.at, self.turned, self.arrived = (
            rule,
            COMPASS[route.heading],
            0,
            False,
            False,
        )
        self.trail = [(0, 0)]
        for leg in route.legs:
            for _ in range(leg.blocks):
                self.trail.append(self.ahead(self.trail[-1], COMPASS[leg.direction]))
        self.ways = {frozenset(street) for street in streets(route)}
        assert all(frozenset(step) in self.ways for step in pairwise(self.trail))
        self.meeting = Counter(point for way in self.ways for point in way)
        self.sights = dict(
            zip((self.trail[i] for i in [*self.corners[1:], len(self.trail) - 1]),
                (leg.sight for leg in route.legs), strict=True)
        )  # fmt: skip

    @property
    def corners(self) -> list[int]:
        """Where the walk turns: at its start, and wherever other streets meet it."""
        return [0] + [i for i in range(1, len(self.trail) - 1) if self.meeting[self.trail[i]] > 2]

    @staticmethod
    def ahead(point: tuple[int, int], degrees: int) -> tuple[int, int]:
        east, north = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        return point[0] + round(east), point[1] + round(north)

    def facing_by(self, action: str) -> int | None:
        word = re.fullmatch(r"turn_direction\((.+)\)", action)
        if word and self.rule == "id":
            return COMPASS.get(word[1])
        return (self.facing + RELATIVE[word[1]]) % 360 if word and word[1] in RELATIVE else None

    def is_right(self, action: str) -> bool:
        here = self.trail[self.at]
        if self.at == len(self.trail) - 1:
            return action == "stop()"
        following = self.trail[self.at + 1]
        if self.at in self.corners and not self.turned:
            facing = self.facing_by(action)
            return facing is not None and self.ahead(here, facing) == following
        return action == "forward()" and self.ahead(here, self.facing) == following

    @property
    def right(self) -> str:
        words = COMPASS if self.rule == "id" else RELATIVE
        space = ["forward()", "stop()", *(f"turn_direction({word})" for word in words)]
        [action] = [action for action in space if self.is_right(action)]
        return action

    def do(self, action: str) -> None:
        self.arrived = action == "stop()"
        if action == "forward()":
            self.at, self.turned = self.at + 1, False
        elif not self.arrived:
            self.facing, self.turned = cast(int, self.facing_by(action)), True

    @property
    def at_intersection(self) -> bool:
        return not self.turned and 0 < self.at < len(self.trail) - 1 and self.at in self.corners

    @property
    def sight(self) -> str:
        return "" if self.turned else self.sights.get(self.trail[self.at], "")
