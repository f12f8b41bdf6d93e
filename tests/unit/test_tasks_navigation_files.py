"""Navigation with routes from a file in the published layout: what is read, what is refused."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.conformance import Effort, check_task
from rlheals_ray.tasks.navigation import NavigationProblem
from rlheals_ray.tasks.navigation_files import read_routes, write_routes
from rlheals_ray.tasks.navigation_routes import Leg, Route

NAMES = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")


def record(start: int, headings: list[int], metres: float = 100.0) -> dict[str, Any]:
    """A route as the published files have it, near New York."""
    place, places, milestones = (40.72, -74.0), [], []
    for number, heading in enumerate(headings):
        north, east = (metres * f(math.radians(heading)) for f in (math.cos, math.sin))
        place = (place[0] + north / 111_195, place[1] + east / (111_195 * math.cos(math.radians(place[0]))))
        places.append(list(place))
        seen = "The destination Shuka is on your left" if number == len(headings) - 1 else None
        seen = "Lola's: Taverna is on your right front" if number == 0 and not seen else seen
        lines = [f"    'to_next_intersection_heading': '{heading % 360} ({NAMES[round(heading / 45) % 8]})',"]
        milestones.append("\n".join(["{", *([f'    "landmarks": "{seen}",'] if seen else []), *lines, "}"]))
    return {
        "start_place": {"name": "start", "relocated_geocode": [40.72, -74.0]},
        "init_heading": start,
        "dest_place": {"name": "Shuka"},
        "route_results": {"geocode_list": places, "landmark_list": []},
        "milestone_info": ",\n".join(milestones),
    }


def written(folder: Path, records: list[Any], number: Any = None) -> str:
    path = folder / "route_infos.json"
    path.write_text(json.dumps([records, len(records) if number is None else number]))
    return str(path)


MANY = [
    record(start, [start + first, start + first + second, start + first + second + third])
    for start in (0, 90, 180)
    for first in (50, 95, 185)
    for second in (-90, -30, 30, 90)
    for third in (-80, -20, 20, 80)
]


def test_a_published_record_is_the_route_that_the_published_environment_makes_of_it(tmp_path: Path) -> None:
    """Turn, two steps, and so on, with the destination's stop; headings by name, turns by the difference of degrees."""
    [route], _ = read_routes(written(tmp_path, [record(170, [92, 62, 177])]))
    assert route.heading == "south"
    assert [(leg.turn, leg.direction, leg.blocks) for leg in route.legs] == [
        ("left", "east", 2),
        ("slightly left", "northeast", 2),
        ("right", "south", 2),
    ]
    assert [leg.sight for leg in route.legs] == [
        "Lola's: Taverna is on your right front",
        "",
        "The destination Shuka is on your left",
    ]


def test_a_leg_of_five_metres_has_no_step(tmp_path: Path) -> None:
    blocks = [
        [leg.blocks for leg in read_routes(written(tmp_path, [record(0, [90, 0], metres)]))[0][0].legs]
        for metres in (4.9, 5.1)
    ]
    assert blocks == [[0, 0], [2, 2]]


def test_a_landmark_that_is_written_as_absent_is_absent(tmp_path: Path) -> None:
    one = record(0, [90, 0])
    one["milestone_info"] = one["milestone_info"].replace(
        "Lola's: Taverna is on your right front", "No landmarks nearby"
    )
    assert read_routes(written(tmp_path, [one]))[0][0].legs[0].sight == ""


@pytest.mark.parametrize("mode", ["steps", "route"])
def test_the_task_of_a_file_keeps_every_law(tmp_path: Path, mode: str) -> None:
    for wording in ("paper", "compact"):
        task = get_task("navigation", mode=mode, routes=written(tmp_path, MANY), wording=wording)
        found = check_task(task, effort=Effort(problems=5, calls=150))
        assert found.kept, "\n".join(map(str, found.breaches))


def drawn_routes() -> list[Route]:
    task = get_task("navigation", pool=600)
    parts = [("id", "train"), ("id", "eval"), ("ood", "eval")]
    return [
        cast(NavigationProblem, problem).route
        for rule, split in parts
        for problem in task.problems(rule, split, task.available(rule, split))  # type: ignore[arg-type]
    ]


def test_drawn_routes_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    routes, path = drawn_routes(), tmp_path / "routes.json"
    write_routes(routes, path)
    assert list(read_routes(str(path))[0]) == routes
    task = get_task("navigation", routes=str(path))
    assert sum(task.available(*part) for part in (("id", "train"), ("id", "eval"), ("ood", "eval"))) == len(
        routes
    )


def test_written_routes_have_the_published_layout(tmp_path: Path) -> None:
    """Read here by what is known of the published reader alone: fields, braces, lines with a colon, 5 m."""
    routes, path = drawn_routes(), tmp_path / "routes.json"
    write_routes(routes, path)
    records, number = json.loads(path.read_text())
    assert number == len(records) == len(routes)
    for found, route in zip(records, routes, strict=True):
        assert found["init_heading"] % 360 == 45 * NAMES.index(route.heading) and found["init_heading"] > 0
        places = [found["start_place"]["relocated_geocode"], *found["route_results"]["geocode_list"]]
        assert len(found["route_results"]["landmark_list"]) == len(route.legs) - 1
        assert found["dest_place"]["geocode"] == places[-1]
        milestones = found["milestone_info"].split("}")[:-1]
        assert len(milestones) == len(route.legs) == len(places) - 1
        for text, leg, (a, b) in zip(milestones, route.legs, pairwise(places), strict=True):
            lines = [line.rstrip(",").split(":", 1) for line in text.splitlines() if ":" in line]
            fields = {key.strip().strip("\"'"): value.strip().strip("\"'") for key, value in lines}
            degrees, name = fields["to_next_intersection_heading"].rstrip(")").split(" (")
            assert name == leg.direction and fields.get("landmarks", "") == leg.sight
            # The way by the geocodes has that heading, and is as many blocks long (a diagonal is longer).
            north, east = b[0] - a[0], (b[1] - a[1]) * math.cos(math.radians(a[0]))
            assert abs((math.degrees(math.atan2(east, north)) - int(degrees) + 180) % 360 - 180) < 0.1
            block = 80 * (math.sqrt(2) if int(degrees) % 90 else 1)
            assert math.hypot(north, east) * 111_195 == pytest.approx(leg.blocks * block, rel=1e-3)


def test_a_route_that_is_read_can_be_written_where_it_lies_on_the_grid(tmp_path: Path) -> None:
    published, _ = read_routes(written(tmp_path, [record(90, [0, 45, 315], 4.0), record(0, [90, 0])]))
    write_routes(published, tmp_path / "again.json")
    assert read_routes(str(tmp_path / "again.json"))[0] == published
    for leg in (Leg("left", "east", 2, ""), Leg("right", "east", 100, "")):
        with pytest.raises(ValueError, match=r"leg 1 of north.* cannot be written"):
            write_routes([Route("north", (leg,))], tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_every_route_of_a_file_is_a_problem_once(tmp_path: Path) -> None:
    task = get_task("navigation", routes=written(tmp_path, [*MANY, *MANY]))
    parts = [("id", "train"), ("id", "eval"), ("ood", "eval")]
    problems = [
        cast(NavigationProblem, problem)
        for rule, split in parts
        for problem in task.problems(rule, split, task.available(rule, split))  # type: ignore[arg-type]
    ]
    assert len({p.route for p in problems}) == len(problems) == len(MANY)
    with pytest.raises(InputError, match="give more routes"):
        task.problems("ood", "eval", task.available("ood", "eval") + 1)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    path = written(tmp_path, MANY)
    first, again = get_task("navigation", routes=path), get_task("navigation", routes=path)
    written(tmp_path, MANY[::-1])
    other = get_task("navigation", routes=path)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first == again != other


def changed(**fields: Any) -> dict[str, Any]:
    return {**record(0, [90, 0]), **fields}


HEADING = "to_next_intersection_heading of milestone 1"


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ([], "the record itself: input should be"),
        (changed(init_heading=361), "init_heading: input should be less than or equal to 360"),
        (changed(start_place={}), "start_place.relocated_geocode: field required"),
        (changed(start_place={"relocated_geocode": [91, 0]}), "start_place.relocated_geocode.0: input"),
        (changed(route_results={"geocode_list": []}), "route_results.geocode_list: list should have"),
        (changed(route_results={"geocode_list": [[1, 2, 3]]}), "route_results.geocode_list.0: "),
        (changed(milestone_info=None), "milestone_info: input should be a valid string"),
        (changed(milestone_info=""), "milestone_info: it has 0 milestones, route_results.geocode_list 2"),
        (changed(milestone_info="{}{}"), f"milestone_info: {HEADING} is '', not like"),
        (
            changed(milestone_info="{\nto_next_intersection_heading: 90 (up)\n}{}"),
            f"milestone_info: {HEADING} is '90 (up)', not like '177 (south)'",
        ),
        (
            changed(milestone_info="{\nto_next_intersection_heading: 90 (southwest)\n}{}"),
            f"milestone_info: {HEADING} is '90 (southwest)', another direction",
        ),
        (
            changed(milestone_info="{\nto_next_intersection_heading: 400 (north)\n}{}"),
            f"milestone_info: {HEADING} is '400 (north)', not like",
        ),
        (
            changed(milestone_info="{\nto_next_intersection_heading: 90 (east)\nsteps: 2.5\n}{}"),
            "milestone_info: steps of milestone 1 is '2.5', not a number from 0 to 99",
        ),
        (
            changed(milestone_info="{\nto_next_intersection_heading: 90 (east)\nlandmarks: {Hotel\n}{}"),
            "milestone_info: landmarks of milestone 1 is '{Hotel', with a brace",
        ),
    ],
)
def test_a_wrong_record_is_named_by_number_and_field(tmp_path: Path, second: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        get_task("navigation", routes=written(tmp_path, [record(0, [90, 0]), second]))
    assert re.match(r"task\.routes \(got '.*route_infos\.json'\): record 2, ", str(caught.value))
    assert told in str(caught.value) and str(caught.value).endswith("; mend or remove it.")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "it is no JSON"),
        ("[[], 0", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("\udcff", "it is no JSON"),
        ("{}", "not a list of a list of routes and their number"),
        ("[1, 2]", "not a list of a list of routes and their number"),
        ("[[], 1]", "it says 1 routes but has 0"),
        ("[[], 0]", "there are 0 distinct id train problems, fewer than 1; give a file of more routes"),
    ],
)
def test_a_wrong_file_is_refused_with_a_remedy(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "routes.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=rf"task\.routes \(got .*{re.escape(told)}"):
        get_task("navigation", routes=str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(
            InputError, match=r"task\.routes .*cannot be read .*; give the path of a JSON file"
        ):
            get_task("navigation", routes=str(path))


@given(value=st.recursive(st.none() | st.integers() | st.text() | st.floats(), lambda x: st.lists(x, max_size=3)
       | st.dictionaries(st.sampled_from(sorted(record(0, [0]))), x, max_size=3), max_leaves=12))  # fmt: skip
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    for content in (value, [[value], 1], [[{**record(0, [90, 0]), "milestone_info": str(value)}], 1]):
        path.write_text(json.dumps(content))
        try:
            read_routes(str(path))
        except InputError as error:
            assert "\n" not in str(error)
