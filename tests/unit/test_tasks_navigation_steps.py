"""Navigation step by step against a walk through the streets: whatever is answered, what is accepted, paid and told."""

import json
import re
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks import Verdict, get_task
from rlheals_ray.tasks.conformance import Effort, check_task
from rlheals_ray.tasks.navigation import Navigation, NavigationProblem
from rlheals_ray.tasks.navigation_routes import Leg, Route
from tests.route_walk import COMPASS, RELATIVE, Walk

TASKS = {
    wording: cast(Navigation, get_task("navigation", wording=wording, pool=1000))
    for wording in ("paper", "compact")
}
MODES = [
    {"mode": mode, "wording": wording} for mode in ("steps", "route") for wording in ("paper", "compact")
]
ROUTE = Route(
    "south",
    (
        Leg("left", "east", 2, "Hotel is on your right behind"),
        Leg("slightly left", "northeast", 1, ""),
        Leg("right", "southeast", 1, "The destination Cafe is on your right"),
    ),
)


def compact(action: str) -> str:
    return re.sub(r"turn_direction\((.+)\)|(\w+)\(\)", r"\1\2", action)


problems = st.builds(
    lambda rule, seed: cast(NavigationProblem, TASKS["paper"].problems(rule, "eval", 1, seed)[0]),
    st.sampled_from(["id", "ood"]),
    st.integers(0, 10**6),
)
calls = st.sampled_from(
    ["forward()", "stop()", *(f"turn_direction({word})" for word in (*COMPASS, *RELATIVE)), "fly()", "north"]
)
hostile = (
    st.text()
    | st.text(alphabet="{}[]\"',:\\ action()")
    | st.sampled_from(
        ["", "forward()", '{"action": ["forward()"]}', '{"action": "forward()', '{"actions": ["forward()"]}',
         '{"Action": "forward()"}', '{"action": {"action": null}}', "null", '{"action":\ud800}']
    )
)  # fmt: skip
SPELLINGS = [
    lambda fields: json.dumps(fields),
    lambda fields: json.dumps(fields, indent=2).replace("\n}", ",\n}"),
    lambda fields: str(fields),
    lambda fields: f"```json\n{json.dumps(fields)}\n```",
    lambda fields: f'First {{"action": "stop()"}}, no: {json.dumps(fields)}',
    lambda fields: re.sub(r'"action": "(.*)"', r'"action": \1', json.dumps(fields)),
    lambda fields: json.dumps({"why": [["a"], "]", {}.get("x", 1)], **fields}),
]


@given(data=st.data(), problem=problems, wording=st.sampled_from(["paper", "compact"]))
@settings(max_examples=300, deadline=None)
def test_an_episode_goes_where_the_walk_goes(
    data: st.DataObject, problem: NavigationProblem, wording: str
) -> None:
    task, walk, earlier = TASKS[wording], Walk(problem.route, problem.rule), cast(list[str], [])
    failures = 0
    while not walk.arrived and failures < 4:
        observation, readable = None, True
        if data.draw(st.integers(0, 9)):
            action = walk.right if data.draw(st.integers(0, 3)) else data.draw(calls)
            fields = {"current instruction": "Turn, then stop."}
            if data.draw(st.booleans()):
                observation = data.draw(
                    st.sampled_from(["No landmarks nearby;", "An intersection, a crossing"])
                )
                fields = {"current observation": observation, **fields}
            spelt = compact(action) if data.draw(st.booleans()) else action
            text = data.draw(st.sampled_from(SPELLINGS))({**fields, "action": spelt})
        else:
            action, text, readable = "", data.draw(hostile), False
        verdict = task.judge_turn(problem, earlier, text)
        if not readable and verdict.well_formed:
            continue  # an answer after all
        right = readable and walk.is_right(action if "(" in action else f"turn_direction({action})")
        assert verdict.accepted == (right and action != "stop()") and verdict.solved == (
            right and action == "stop()"
        )
        if right:
            assert verdict.reward == 1 and verdict.well_formed
        elif not readable:
            assert verdict.reward in (-1, -1.5)
        else:
            says = None if observation is None else "intersection" in observation
            assert verdict.reward == (-1.5 if says not in (None, walk.at_intersection) else -1)
        if not right:
            failures += 1
            assert walk.right not in verdict.feedback and compact(walk.right) not in verdict.feedback.split()
            continue
        earlier.append(text)
        walk.do(walk.right)
        if walk.arrived:
            assert verdict.feedback == "" and len(earlier) == task.turns(problem)
            continue
        assert ("intersection" in verdict.feedback or "crossing" in verdict.feedback) == walk.at_intersection
        if wording == "paper":
            assert (
                f"A_{len(earlier)}: {action if '(' in action else f'turn_direction({action})'}\n"
                in verdict.feedback
            )
            told = re.search(rf"^O_{len(earlier) + 1}: (.*);", verdict.feedback, re.MULTILINE)
            assert told and told[1] == (walk.sight or "No landmarks nearby")


@given(problem=problems, wording=st.sampled_from(["paper", "compact"]))
@settings(max_examples=150, deadline=None)
def test_the_demonstration_is_the_walk(problem: NavigationProblem, wording: str) -> None:
    task, walk = TASKS[wording], Walk(problem.route, problem.rule)
    answers = task.demonstration_turns(problem)
    for place, answer in enumerate(answers):
        assert (f'"{walk.right}"' if wording == "paper" else f" {compact(walk.right)} ") in answer
        verdict = task.judge_turn(problem, answers[:place], answer)
        assert (verdict.accepted, verdict.solved) == (place < len(answers) - 1, place == len(answers) - 1)
        walk.do(walk.right)
    assert walk.arrived
    whole = task.judge(problem, task.demonstration(problem))
    assert whole == Verdict(float(len(answers)), True, True, "")


@given(data=st.data(), problem=problems)
@settings(max_examples=200, deadline=None)
def test_a_whole_solution_is_the_walk_without_second_tries(
    data: st.DataObject, problem: NavigationProblem
) -> None:
    task, walk = TASKS["paper"], Walk(problem.route, problem.rule)
    lines = task.demonstration_turns(problem)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(lines)))
        kind = data.draw(st.sampled_from(["replace", "remove", "insert", "cut"]))
        lines[at : len(lines) if kind == "cut" else at + (kind in ("replace", "remove"))] = (
            [json.dumps({"action": data.draw(calls)})] if kind in ("replace", "insert") else []
        )
    reward, said = 0.0, [json.loads(line) for line in lines]
    for fields in said:
        action, seen = fields["action"], fields.get("current observation")
        right = not walk.arrived and walk.is_right(action if "(" in action else f"turn_direction({action})")
        if not right:
            misled = not walk.arrived and seen and ("intersection" in seen) != walk.at_intersection
            reward -= 1.5 if misled else 1
            break
        reward += 1
        walk.do(walk.right)
    else:
        reward -= not walk.arrived
    verdict = task.judge(problem, "\n".join(lines))
    assert verdict.solved == (walk.arrived and reward == len(said))
    assert verdict.reward == (reward if said else -1.5)


@given(problem=problems)
@settings(max_examples=100, deadline=None)
def test_nothing_that_is_seen_later_is_told_before(problem: NavigationProblem) -> None:
    prompt = TASKS["paper"].prompt(problem)
    assert re.findall(r"^[OA]_\d+:.*$", prompt, re.MULTILINE) == ["O_1: No landmarks nearby;", "A_1:"]
    assert "You observe an intersection" not in prompt
    words = TASKS["compact"].prompt(problem).split()
    assert words.count("see") == 1 and words[-3:] == ["see", "nothing", "reply"]
    # Routes that are told alike are asked alike, however long their legs are.
    longer = Route(
        problem.route.heading,
        tuple(Leg(x.turn, x.direction, x.blocks + 1, x.sight) for x in problem.route.legs),
    )
    for task in TASKS.values():
        assert task.prompt(task.problem_of(longer, problem.rule)) == task.prompt(problem)


def test_the_prompt_has_the_published_sections() -> None:
    prompts = {rule: TASKS["paper"].prompt(TASKS["paper"].problem_of(ROUTE, rule)) for rule in ("id", "ood")}
    for prompt in prompts.values():
        assert re.findall(r"^\[(.+)\]$", prompt, re.MULTILINE) == [
            "Task Description", "Instruction", "Action space", "Observations and actions sequence", "Output"
        ]  # fmt: skip
        assert (
            "1. First, turn left to face east.\n2. Move forward until you reach next intersection" in prompt
        )
    space = {rule: prompt.split("[Action space]")[1].split("[Obs")[0] for rule, prompt in prompts.items()}
    assert prompts["id"].replace(space["id"], "") == prompts["ood"].replace(space["ood"], "")


def test_an_answer_names_the_sentence_that_it_carries_out() -> None:
    task = TASKS["paper"]
    said = [
        json.loads(a)["current instruction"] for a in task.demonstration_turns(task.problem_of(ROUTE, "id"))
    ]
    hotel = "Move forward until you reach next intersection where Hotel is on your right behind."
    cafe = "Move forward until you reach destination where The destination Cafe is on your right."
    assert said == [
        "First, turn left to face east.", hotel, hotel, "Turn slightly left to face northeast.",
        "Move forward until you reach next intersection.", "Turn right to face southeast.", cafe, cafe,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "fields", "reward", "well_formed", "told"),
    [
        (0, {"action": "turn_direction(west)"}, -1, True, "your action is incorrect"),
        (0, {"action": "turn_direction(left)"}, -1, False, "your action is not in the action space"),
        (0, {"move": "forward()"}, -1.5, False, "you gave no action"),
        (0, {"current observation": "Intersection", "action": "stop()"}, -1.5, True, "you are not at any intersection"),
        (3, {"current observation": "Hotel", "action": "forward()"}, -1.5, True, "you are at an intersection"),
        (3, {"current observation": "at an intersection", "action": "forward()"}, -1, True, "your action is incorrect"),
        (3, {"current observation": ["Hotel"], "action": "forward()"}, -1, True, "your action is incorrect"),
        (9, {"action": "stop()"}, -1, True, "the navigation is finished"),
    ],
)  # fmt: skip
def test_what_a_wrong_answer_is_worth_and_told(
    place: int, fields: dict[str, Any], reward: float, well_formed: bool, told: str
) -> None:
    task = TASKS["paper"]
    verdict = task.judge_turn(task.problem_of(ROUTE, "id"), ["x"] * place, json.dumps(fields))
    assert verdict == Verdict(reward, False, well_formed, f"You failed this trial because {told}.")
    assert task.reply(verdict) == verdict.feedback


def test_a_right_action_is_right_whatever_else_is_said() -> None:
    task = TASKS["paper"]
    wrong = json.dumps({"current observation": "an intersection", "action": "turn_direction(east)"})
    verdict = task.judge_turn(task.problem_of(ROUTE, "id"), [], wrong)
    assert verdict.accepted and verdict.reward == 1
    assert verdict.feedback == "Correct action.\nA_1: turn_direction(east)\nO_2: No landmarks nearby;\nA_2:"


@pytest.mark.parametrize("options", MODES)
def test_every_law_is_kept(options: dict[str, Any]) -> None:
    found = check_task(get_task("navigation", pool=1000, **options), effort=Effort(problems=8, calls=300))
    assert found.kept, "\n".join(map(str, found.breaches))
    assert found.calls >= 450


def test_the_modes_are_two_tasks() -> None:
    tasks = [get_task("navigation", pool=1000, **options) for options in MODES]
    assert len({task.fingerprint() for task in tasks}) == len(set(tasks)) == 4
    routes = cast(Navigation, tasks[2])
    problem = routes.problem_of(ROUTE, "id")
    assert routes.turns(problem) == 1 and routes.demonstration_turns(problem) == [
        routes.demonstration(problem)
    ]
    text = routes.demonstration(problem)
    assert routes.judge_turn(problem, [], text) == routes.judge(problem, text)
