"""Navigation with routes from a file in the published layout: what is read, what is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.conformance import Effort, check_task
from rlheals_ray.tasks.navigation import NavigationProblem
from rlheals_ray.tasks.navigation_files import read_routes

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


def test_the_task_of_a_file_keeps_every_law(tmp_path: Path) -> None:
    for wording in ("paper", "compact"):
        task = get_task("navigation", routes=written(tmp_path, MANY), wording=wording)
        found = check_task(task, effort=Effort(problems=5, calls=150))
        assert found.kept, "\n".join(map(str, found.breaches))


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
