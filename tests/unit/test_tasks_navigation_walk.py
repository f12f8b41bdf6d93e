"""Navigation's judge and prompts against a walk through the streets and a reading of the text, both written here."""

import json
import math
import re
from itertools import accumulate
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks import Rule, get_task
from rlheals_ray.tasks.navigation import NavigationProblem
from rlheals_ray.tasks.navigation_routes import Route, streets

TASKS = {
    wording: get_task("navigation", mode="route", wording=wording, pool=1000)
    for wording in ("paper", "compact")
}
COMPASS = dict(
    north=0, northeast=45, east=90, southeast=135, south=180, southwest=225, west=270, northwest=315
)
RELATIVE = {"left": -90, "slightly left": -45, "slightly right": 45, "right": 90}
Point = tuple[int, int]


def ahead(position: Point, degrees: int) -> Point:
    """The next point of the grid: one block, or a block's diagonal, east of north by so many degrees."""
    east, north = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return position[0] + round(east), position[1] + round(north)


def trail_of(route: Route) -> list[Point]:
    """The points that the route leads over, by the compass alone."""
    trail = [(0, 0)]
    for leg in route.legs:
        for _ in range(leg.blocks):
            trail.append(ahead(trail[-1], COMPASS[leg.direction]))
    return trail


def walk_arrives(route: Route, rule: Rule, actions: list[str], observed: int) -> bool:
    """Whether these calls, executed in the streets, lead along the route and stop at its end in `observed` actions."""
    ways = {frozenset(street) for street in streets(route)}
    facing, trail = COMPASS[route.heading], [(0, 0)]
    for number, action in enumerate(actions, 1):
        turn = re.fullmatch(r"turn_direction\((.+)\)", action)
        if action == "stop()":
            return number == len(actions) == observed and trail == trail_of(route)
        if turn and rule == "id" and turn[1] in COMPASS:
            facing = COMPASS[turn[1]]
        elif turn and rule == "ood" and turn[1] in RELATIVE:
            facing = (facing + RELATIVE[turn[1]]) % 360
        elif action == "forward()":
            trail.append(ahead(trail[-1], facing))
            if frozenset(trail[-2:]) not in ways:
                return False
        else:
            return False
    return False


def followed(prompt: str, rule: Rule) -> list[str]:
    """The actions that the text of the prompt asks for, by the words for the rule's directions in its sentences."""
    instruction = prompt.partition("[Instruction]\n")[2].partition("\n\n")[0]
    word = r"to face (\w+)\." if rule == "id" else r"[Tt]urn (.+) to face"
    turns = iter(re.findall(word, instruction))
    done = [f"turn_direction({next(turns)})"]
    for seen in re.findall(r"^O_\d+: (.*)$", prompt, re.MULTILINE)[1:]:
        if "You observe an intersection" in seen:
            done.append(f"turn_direction({next(turns)})")
        else:
            done.append("stop()" if "destination" in seen else "forward()")
    assert next(turns, None) is None
    return done


problems = st.builds(
    lambda rule, seed: cast(NavigationProblem, TASKS["paper"].problems(rule, "eval", 1, seed)[0]),
    st.sampled_from(["id", "ood"]),
    st.integers(0, 10**6),
)
calls = st.sampled_from(
    ["forward()", "stop()", *(f"turn_direction({word})" for word in (*COMPASS, *RELATIVE))]
)


@st.composite
def corrupted(draw: st.DrawFn, right: list[str]) -> list[str]:
    """The right actions with none or a few of them replaced, left out, put in or exchanged."""
    actions = list(right)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(actions) - 1)))
        kind = draw(st.sampled_from(["replace", "remove", "insert", "exchange", "cut"]))
        if kind == "replace":
            actions[at : at + 1] = [draw(calls)]
        elif kind == "remove":
            del actions[at : at + 1]
        elif kind == "insert":
            actions.insert(at, draw(calls))
        elif kind == "cut":
            del actions[at:]
        elif actions:
            other = draw(st.integers(0, len(actions) - 1))
            actions[at], actions[other] = actions[other], actions[at]
    return actions


def written(actions: list[str], wording: str) -> str:
    if wording == "paper":
        return json.dumps({"actions": actions})
    words = [re.sub(r"turn_direction\((.+)\)|(\w+)\(\)", r"\1\2", action) for action in actions]
    return " ".join(['{"actions":[', *words, "]}"])


@given(data=st.data(), problem=problems, wording=st.sampled_from(["paper", "compact"]))
@settings(max_examples=400, deadline=None)
def test_an_answer_is_solved_just_when_the_walk_follows_the_route_and_arrives(
    data: st.DataObject, problem: NavigationProblem, wording: str
) -> None:
    observed = TASKS["paper"].prompt(problem).count("\nO_")
    right = followed(TASKS["paper"].prompt(problem), problem.rule)
    actions = data.draw(corrupted(right))
    verdict = TASKS[wording].judge(problem, written(actions, wording))
    assert verdict.solved == walk_arrives(problem.route, problem.rule, actions, observed)


@given(data=st.data(), problem=problems)
@settings(max_examples=300, deadline=None)
def test_the_reward_is_that_of_the_published_steps_up_to_the_first_wrong_one(
    data: st.DataObject, problem: NavigationProblem
) -> None:
    right = followed(TASKS["paper"].prompt(problem), problem.rule)
    actions = data.draw(corrupted(right))
    space = {f"turn_direction({word})" for word in (COMPASS if problem.rule == "id" else RELATIVE)}
    space |= {"forward()", "stop()"}
    reward = 0.0
    for number in range(max(len(right), len(actions))):
        given, wanted = (x[number] if number < len(x) else None for x in (actions, right))
        reward += 1 if given == wanted else -1 if given in space or None in (given, wanted) else -1.5
        if given != wanted:
            break
    verdict = TASKS["paper"].judge(problem, written(actions, "paper"))
    assert verdict.reward == reward
    assert verdict.well_formed == (set(actions) <= space)


@given(problem=problems)
@settings(max_examples=200, deadline=None)
def test_the_right_actions_follow_from_the_text_and_from_the_streets(problem: NavigationProblem) -> None:
    task, route = TASKS["paper"], problem.route
    prompt = task.prompt(problem)
    actions = json.loads(task.demonstration(problem))["actions"]
    assert actions == followed(prompt, problem.rule)
    assert walk_arrives(route, problem.rule, actions, prompt.count("\nO_"))
    # The other rule's words are in the text as well, and mean the same walk.
    other: Rule = "ood" if problem.rule == "id" else "id"
    assert walk_arrives(route, other, followed(prompt, other), len(actions))


@given(problem=problems)
@settings(max_examples=200, deadline=None)
def test_streets_run_at_multiples_of_45_degrees_and_branch_wherever_an_intersection_is_observed(
    problem: NavigationProblem,
) -> None:
    ways, trail = streets(problem.route), trail_of(problem.route)
    for (a, b), (c, d) in ways:
        assert max(abs(a - c), abs(b - d)) == 1
    # Two diagonals of one square would cross without an intersection.
    middles = [(a + c, b + d) for (a, b), (c, d) in ways]
    assert len(set(middles)) == len(middles)
    assert len(set(trail)) == len(trail)
    degree = {point: sum(point in way for way in ways) for point in trail}
    corners = [trail[blocks] for blocks in accumulate(leg.blocks for leg in problem.route.legs[:-1])]
    assert all(degree[point] >= 3 for point in corners)
    assert all(degree[point] == 2 for point in trail[1:-1] if point not in corners)


@given(problem=problems)
@settings(max_examples=200, deadline=None)
def test_no_landmark_stands_in_a_street_that_the_route_uses(problem: NavigationProblem) -> None:
    sides = ["front", "right front", "right", "right behind", "behind", "left behind", "left", "left front"]
    legs = problem.route.legs
    for leg, onward in zip(legs, [*legs[1:], None], strict=True):
        if not leg.sight:
            continue
        bearing = COMPASS[leg.direction] + 45 * sides.index(leg.sight.partition(" is on your ")[2])
        came_from = COMPASS[leg.direction] + 180
        used = [came_from] if onward is None else [came_from, COMPASS[onward.direction]]
        assert all((bearing - way) % 360 for way in used)


def rotated(route: Route, eighths: int) -> Route:
    names = list(COMPASS)
    turned = {name: names[(index + eighths) % 8] for index, name in enumerate(names)}
    legs = tuple(type(leg)(leg.turn, turned[leg.direction], leg.blocks, leg.sight) for leg in route.legs)
    return Route(turned[route.heading], legs)


@given(problem=problems, eighths=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_a_rotated_route_has_the_same_relative_actions_other_absolute_ones_and_the_same_group(
    problem: NavigationProblem, eighths: int
) -> None:
    task = TASKS["compact"]
    answers = {}
    for rule in ("id", "ood"):
        own, other = (
            task.problem_of(route, rule)  # type: ignore[attr-defined]
            for route in (problem.route, rotated(problem.route, eighths))
        )
        assert own.group == other.group and own.id != other.id
        answers[rule] = task.demonstration(own) == task.demonstration(other)
    assert answers == {"id": False, "ood": True}
