"""Routes over streets: the words for directions, what is seen on the way, what is to be done, and seeded routes.

Streets join neighbouring points of a square grid, so they run at multiples of 45°. A drawn route starts facing one of
the eight compass directions, turns by 45° or 90° (what the published relative actions mean, arXiv 2501.17161, section
4.2) and walks 1 to 3 blocks to the next intersection, and so on to its destination. It never meets or crosses itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from rlheals_ray.tasks.task import Rule

DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
"""Clockwise, 45° apart."""
TURNS = {"left": -90, "right": 90, "slightly left": -45, "slightly right": 45}
"""Degrees clockwise, in the order of the published action space."""
FORWARD, STOP = "forward", "stop"

SIDES = ("front", "right front", "right", "right behind", "behind", "left behind", "left", "left front")
"""Where a landmark may be seen, clockwise from ahead, in the published words."""

NAMES = (
    *("Bakery", "Library", "Museum", "Theatre", "Florist", "Pharmacy", "Bookshop", "Cinema"),
    *("Brewery", "Cathedral", "Bank", "Hotel", "Diner", "Gallery", "Grocery", "Hospital"),
    *("Aquarium", "Arcade", "Barber", "Butcher", "Chapel", "Courthouse", "Dentist", "Embassy"),
    *("Fountain", "Garage", "Gym", "Laundry", "Market", "Monument", "Nursery", "Observatory"),
    *("Optician", "Park", "Playground", "Pub", "School", "Stadium", "Station", "Tailor"),
    *("Temple", "Tower", "University", "Warehouse", "Winery", "Workshop", "Zoo", "Cafe"),
)
"""Landmarks of drawn routes, each one word."""

BLOCKS = (1, 2, 3)
_NAMED = 0.75
"""Share of the intersections that have a landmark; a destination always has one."""
_TRIES = 100
"""Draws for each route wanted, on average, before the routes count as exhausted."""

Point = tuple[int, int]
"""East and north of the start, in blocks."""
Street = tuple[Point, Point]


@dataclass(frozen=True)
class Leg:
    """A turn and the walk to the next intersection or the destination."""

    turn: str
    """The turn, relative to the heading before it: one of `TURNS`."""
    direction: str
    """The heading after it: one of `DIRECTIONS`."""
    blocks: int
    """Steps to the end."""
    sight: str
    """What is seen at the end, as in `Bakery is on your right behind`; empty where there is no landmark."""


@dataclass(frozen=True)
class Route:
    """A way from a start, faced in direction `heading`."""

    heading: str
    legs: tuple[Leg, ...]

    def __str__(self) -> str:
        return "; ".join(
            [self.heading, *(f"{x.turn}, {x.direction}, {x.blocks}, {x.sight}" for x in self.legs)]
        )


@dataclass(frozen=True)
class Observation:
    """What is seen before one action."""

    sight: str
    intersection: bool


def actions(route: Route, rule: Rule) -> tuple[str, ...]:
    """The right action at each observation: a direction (a relative one but for the rule `id`), `forward`, `stop`."""
    done: list[str] = []
    for leg in route.legs:
        done += [leg.direction if rule == "id" else leg.turn, *[FORWARD] * leg.blocks]
    return (*done, STOP)


def observations(route: Route) -> list[Observation]:
    """At the start, after each turn, after each step; a landmark is reported on arrival alone, as published."""
    nothing, last = Observation("", False), route.legs[-1]
    seen = [nothing]
    for leg in route.legs:
        seen += [*[nothing] * leg.blocks, Observation(leg.sight, leg is not last)]
    return seen


def shape(route: Route) -> str:
    """Turns and lengths alone: routes of one shape differ by a rotation and by what is seen, and are near-copies."""
    return ", ".join(f"{leg.turn} {leg.blocks}" for leg in route.legs)


def relative_turn(before: float, after: float) -> str:
    """The published word for a change of heading, both in degrees clockwise from north.

    More than 45° is left or right, anything less slightly so, and none slightly left. The published code takes the
    plain difference, so that 350° to 10° is left there; here it is the smaller angle (an about-turn is left).
    """
    difference = (after - before + 180) % 360 - 180
    if abs(difference) > 45:
        return "left" if difference < 0 else "right"
    return "slightly right" if difference > 0 else "slightly left"


def step(point: Point, direction: str) -> Point:
    """The next point in this direction."""
    east, north = _STEPS[DIRECTIONS.index(direction)]
    return point[0] + east, point[1] + north


_STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))


def path(route: Route) -> list[Point]:
    """The points of the route in order, from (0, 0); for drawn routes, where a block is a step on the grid."""
    points = [(0, 0)]
    for leg in route.legs:
        for _ in range(leg.blocks):
            points.append(step(points[-1], leg.direction))
    return points


def streets(route: Route) -> frozenset[Street]:
    """The streets of the route and, at its intersections, one or two others; always the same for the same route.

    Each is between neighbouring points, the lesser first. The others are one block long and touch no other street.
    """
    points = path(route)
    taken = set(_footprint(points))
    found = {_street(a, b) for a, b in pairwise(points)}
    rng = random.Random(f"streets/{route}")
    walked = 0
    for leg in route.legs[:-1]:
        walked += leg.blocks
        here, wanted = points[walked], rng.choice((1, 2))
        for direction in rng.sample(DIRECTIONS, len(DIRECTIONS)):
            there = step(here, direction)
            new = set(_footprint([here, there])[1:])
            if wanted and not new & taken:
                taken |= new
                found.add(_street(here, there))
                wanted -= 1
    return frozenset(found)


def draw(
    rng: random.Random, turns: int, names: Sequence[str], count: int, kept: Callable[[str], bool]
) -> list[Route]:
    """`count` distinct routes with so many turns and of a shape that is `kept`, or as many as turn up."""
    drawn: dict[Route, None] = {}
    for _ in range(_TRIES * count):
        if len(drawn) == count:
            break
        plan = [(rng.choice(tuple(TURNS)), rng.choice(BLOCKS)) for _ in range(turns)]
        route = _laid(rng.choice(DIRECTIONS), plan, [""] * turns)
        footprint = _footprint(path(route))
        if kept(shape(route)) and len(set(footprint)) == len(footprint):
            seen = _laid(route.heading, plan, _sights(rng, plan, names))
            if _branches_where_it_turns(seen):
                drawn[seen] = None
    return list(drawn)


def _branches_where_it_turns(route: Route) -> bool:
    """Whether another street leaves every intersection: a winding route may leave none of them room."""
    meeting = Counter(point for street in streets(route) for point in street)
    turned = accumulate(leg.blocks for leg in route.legs[:-1])
    points = path(route)
    return all(meeting[points[walked]] > 2 for walked in turned)


def _laid(heading: str, plan: Sequence[tuple[str, int]], sights: Sequence[str]) -> Route:
    legs, facing = [], DIRECTIONS.index(heading)
    for (turn, blocks), sight in zip(plan, sights, strict=True):
        facing = (facing + TURNS[turn] // 45) % len(DIRECTIONS)
        legs.append(Leg(turn, DIRECTIONS[facing], blocks, sight))
    return Route(heading, tuple(legs))


def _sights(rng: random.Random, plan: Sequence[tuple[str, int]], names: Sequence[str]) -> list[str]:
    """What is seen at the end of each leg; no landmark stands in the street that one came or goes on by."""
    sights = []
    *crossed, destination = rng.sample(names, len(plan))
    for name, (turn, _) in zip(crossed, plan[1:], strict=True):
        ways = ("behind", SIDES[TURNS[turn] // 45 % len(SIDES)])
        side = rng.choice([s for s in SIDES if s not in ways])
        sights.append(f"{name} is on your {side}" if rng.random() < _NAMED else "")
    side = rng.choice([s for s in SIDES if s != "behind"])
    return [*sights, f"The destination {destination} is on your {side}"]


def _footprint(points: Sequence[Point]) -> list[Point]:
    """The points and the middles between them, in half blocks: two diagonals may cross where no grid point is."""
    halves = [(2 * x, 2 * y) for x, y in points[:1]]
    for (x, y), (u, v) in pairwise(points):
        halves += [(x + u, y + v), (2 * u, 2 * v)]
    return halves


def _street(a: Point, b: Point) -> Street:
    return min(a, b), max(a, b)
