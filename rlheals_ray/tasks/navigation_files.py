"""Routes from a file in the layout of the published ones (`route_infos.json` of the data of arXiv 2501.17161).

The file is a list of two: the list of records, and their number. Known from the published environment, which reads
them, are the fields that are used here:

- `start_place.relocated_geocode`: latitude and longitude in degrees;
- `init_heading`: degrees clockwise from north, 0 if absent (the published environment draws one where it is 0);
- `route_results.geocode_list`: latitude and longitude of each intersection, and of the destination;
- `milestone_info`: text, one pair of braces for each of these with a `key: value` on each line:
  `to_next_intersection_heading`, the heading walked on the way to it, as in `177 (south)`, and `landmarks`, what is
  seen there, as in `Hotel is on your right behind`, absent where there is nothing.

Other fields are passed over. That the two lists are of one length, that the name of a heading is at most 45° off its
degrees, and that no landmark has a brace, is our own demand. A leg of more than 5 m has two steps, any other none, as
published; unless its milestone says `steps`, a field of our own, without which a drawn route of one or three blocks
could not be written.

`write_routes` writes routes in that layout: made after what the environment reads and the templates of its platform,
and read back by `read_routes`, but tried with neither a published file nor the published environment, which would pass
over `steps` and walk two.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from rlheals_ray.config import InputError
from rlheals_ray.tasks.navigation_routes import DIRECTIONS, Leg, Route, relative_turn
from rlheals_ray.tasks.navigation_routes import path as points_of

_HEADING = re.compile(r"(\d{1,3}) *\(([a-z]+)\)")
_NOTHING = "No landmark"
_EARTH_METRES, _NEAR_METRES, _STEPS = 6_371_000, 5.0, 2
_MOST_STEPS = 99

_BLOCK_METRES, _START = 80.0, (40.7250, -73.9950)
"""A block of a written route, and where all of them start: near New York, as the published ones."""

Geocode = tuple[
    Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)],
    Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)],
]


class _Start(BaseModel):
    relocated_geocode: Geocode


class _Results(BaseModel):
    geocode_list: Annotated[list[Geocode], Field(min_length=1)]


class _Record(BaseModel):
    start_place: _Start
    init_heading: Annotated[float, Field(ge=0, le=360, allow_inf_nan=False)] = 0
    route_results: _Results
    milestone_info: str


def read_routes(path: str) -> tuple[tuple[Route, ...], str]:
    """The routes of the file in order, each once, and a hash of its bytes.

    Raises InputError naming the record (from 1), the field and what is wrong.
    """
    got = f"task.routes (got {path!r})"
    try:
        content = Path(path).expanduser().read_bytes()
        loaded: Any = json.loads(content)
    except OSError as error:
        raise InputError(
            f"{got}: it cannot be read ({error.strerror or error}); give the path of a JSON file of routes."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{got}: it is no JSON ({error}); give a file like route_infos.json.") from None
    if not (isinstance(loaded, list) and len(loaded) == 2 and isinstance(loaded[0], list)):
        raise InputError(
            f"{got}: it is not a list of a list of routes and their number; write [[...], number]."
        )
    if loaded[1] != len(loaded[0]):
        raise InputError(
            f"{got}: it says {loaded[1]!r} routes but has {len(loaded[0])}; mend the number at its end."
        )
    routes: dict[str, Route] = {}
    for number, record in enumerate(loaded[0], 1):
        try:
            route = _route(_Record.model_validate(record))
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(map(str, detail["loc"])) or "the record itself"
            raise InputError(
                f"{got}: record {number}, {field}: {detail['msg'][:1].lower()}{detail['msg'][1:]}; mend or remove it."
            ) from None
        except _Wrong as error:
            raise InputError(f"{got}: record {number}, milestone_info: {error}; mend or remove it.") from None
        routes.setdefault(str(route), route)
    return tuple(routes.values()), hashlib.blake2b(content, digest_size=16).hexdigest()


def write_routes(routes: Sequence[Route], path: str | Path) -> None:
    """Write routes over the grid, as drawn ones are, so that `read_routes` gives the same ones again.

    Raises ValueError for a route whose turns are not those between its directions (of 45° each), or that takes more
    steps to an intersection than can be written.
    """
    Path(path).write_text(json.dumps([[_record(route) for route in routes], len(routes)], indent=1))


def _record(route: Route) -> dict[str, Any]:
    points, walked, before = points_of(route), 0, 45 * DIRECTIONS.index(route.heading)
    places: list[list[float]] = [_geocode(*points[0])]
    landmarks, milestones = [], []
    for number, leg in enumerate(route.legs):
        degrees = 45 * DIRECTIONS.index(leg.direction)
        if relative_turn(before, degrees) != leg.turn or leg.blocks > _MOST_STEPS:
            raise ValueError(f"leg {number + 1} of {route} cannot be written")
        walked, before = walked + leg.blocks, degrees
        places.append(_geocode(*points[walked]))
        metres = _metres((places[-2][0], places[-2][1]), (places[-1][0], places[-1][1]))
        fields = {
            "intersection_idx": str(number),
            **({"landmarks": leg.sight} if leg.sight else {}),
            "distance": f"{metres:.0f} meters",
            "to_next_intersection_heading": f"{degrees} ({leg.direction})",
            "steps": str(leg.blocks),
        }
        milestones.append("\n".join(["{", *(f'"{key}": "{value}",' for key, value in fields.items()), "}"]))
        name = leg.sight.removeprefix("The destination ").partition(" is on your ")[0]
        landmarks.append({"name": name, "geocode": places[-1]} if name else None)
    return {
        "start_place": {"geocode": places[0], "relocated_geocode": places[0]},
        "dest_place": landmarks[-1] or {"name": "", "geocode": places[-1]},
        # 0 would make the published environment draw one.
        "init_heading": 45 * DIRECTIONS.index(route.heading) or 360,
        "route_results": {"geocode_list": places[1:], "landmark_list": landmarks[:-1]},
        "milestone_info": ",\n".join(milestones),
    }


def _geocode(east: int, north: int) -> list[float]:
    """Latitude and longitude of a point of the grid."""
    latitude, longitude = _START
    degree = math.radians(1) * _EARTH_METRES
    return [
        latitude + north * _BLOCK_METRES / degree,
        longitude + east * _BLOCK_METRES / (degree * math.cos(math.radians(latitude))),
    ]


class _Wrong(Exception):
    """What is wrong with `milestone_info`, as a clause."""


def _route(record: _Record) -> Route:
    milestones, ends = _milestones(record.milestone_info), record.route_results.geocode_list
    if len(milestones) != len(ends):
        raise _Wrong(f"it has {len(milestones)} milestones, route_results.geocode_list {len(ends)}")
    legs, before, here = [], record.init_heading, record.start_place.relocated_geocode
    for number, (milestone, there) in enumerate(zip(milestones, ends, strict=True), 1):
        degrees, direction = _heading(milestone, number)
        sight = milestone.get("landmarks", "")
        if "{" in sight:  # answers repeat it, in an object of their own
            raise _Wrong(f"landmarks of milestone {number} is {sight!r}, with a brace")
        blocks = _steps(milestone, number)
        if blocks is None:
            blocks = _STEPS if _metres(here, there) > _NEAR_METRES else 0
        turn = relative_turn(before, degrees)
        legs.append(Leg(turn, direction, blocks, "" if sight.startswith(_NOTHING) else sight))
        before, here = degrees, there
    return Route(_nearest(record.init_heading), tuple(legs))


def _milestones(text: str) -> list[dict[str, str]]:
    """The dictionaries of the text, in order; lines without a colon are passed over, as published."""
    blocks = [block[block.find("{") + 1 :] for block in text.split("}")[:-1]]
    return [
        {
            key.strip().strip("\"'"): value.strip().strip("\"'")
            for line in block.splitlines()
            for key, colon, value in [line.strip().rstrip(",").partition(":")]
            if colon
        }
        for block in blocks
    ]


def _heading(milestone: dict[str, str], number: int) -> tuple[int, str]:
    written = milestone.get("to_next_intersection_heading", "")
    match = _HEADING.fullmatch(written)
    if not match or int(match[1]) > 360 or match[2] not in DIRECTIONS:
        raise _Wrong(
            f"to_next_intersection_heading of milestone {number} is {written!r}, not like '177 (south)'"
        )
    degrees, named = int(match[1]), 45 * DIRECTIONS.index(match[2])
    if abs((degrees - named + 180) % 360 - 180) > 45:
        raise _Wrong(f"to_next_intersection_heading of milestone {number} is {written!r}, another direction")
    return degrees, match[2]


def _steps(milestone: dict[str, str], number: int) -> int | None:
    """The steps that the milestone itself says, a field of our own; None where it says none."""
    written = milestone.get("steps")
    if written is None:
        return None
    if not re.fullmatch(r"[0-9]{1,2}", written):
        raise _Wrong(f"steps of milestone {number} is {written!r}, not a number from 0 to {_MOST_STEPS}")
    return int(written)


def _nearest(degrees: float) -> str:
    return DIRECTIONS[round(degrees / 45) % len(DIRECTIONS)]


def _metres(a: Geocode, b: Geocode) -> float:
    """The distance on a sphere, by the haversine formula."""
    (p, r), (q, s) = (map(math.radians, point) for point in (a, b))
    chord = math.sin((q - p) / 2) ** 2 + math.cos(p) * math.cos(q) * math.sin((s - r) / 2) ** 2
    return 2 * _EARTH_METRES * math.asin(min(1.0, math.sqrt(chord)))
