"""Navigation by whole routes: what prompts say, how answers are read, what is said to wrong ones."""

import json
import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.tasks import Rule, get_task
from rlheals_ray.tasks.navigation import NavigationProblem
from rlheals_ray.tasks.navigation_answers import find_actions
from rlheals_ray.tasks.navigation_routes import DIRECTIONS, TURNS, Leg, Route
from rlheals_ray.tasks.navigation_wording import Compact, Paper
from rlheals_ray.tasks.turns import judge_turn
from tests.cpu_time import cpu_seconds

TASK = get_task("navigation", mode="route", pool=1000)
COMPACT = get_task("navigation", mode="route", pool=1000, wording="compact")
ROUTE = Route(
    "south",
    (
        Leg("left", "east", 2, "Hotel is on your right behind"),
        Leg("slightly left", "northeast", 1, ""),
        Leg("right", "southeast", 1, "The destination Cafe is on your right"),
    ),
)
ABSOLUTE = ["east", "forward", "forward", "northeast", "forward", "southeast", "forward", "stop"]
RELATIVE = ["left", "forward", "forward", "slightly left", "forward", "right", "forward", "stop"]


def posed(rule: Rule) -> NavigationProblem:
    return TASK.problem_of(ROUTE, rule)  # type: ignore[attr-defined]


# Words


def test_the_prompt_has_the_published_sections_and_the_action_space_of_the_rule() -> None:
    prompts = {rule: TASK.prompt(posed(rule)) for rule in ("id", "ood")}
    sections = ["Task Description", "Instruction", "Action space", "Observations", "Output"]
    for prompt in prompts.values():
        assert re.findall(r"^\[(.+)\]$", prompt, re.MULTILINE) == sections
        assert (
            "1. First, turn left to face east.\n"
            "2. Move forward until you reach next intersection where Hotel is on your right behind.\n"
            "3. Turn slightly left to face northeast.\n"
            "4. Move forward until you reach next intersection.\n"
            "5. Turn right to face southeast.\n"
            "6. Move forward until you reach destination where The destination Cafe is on your right.\n"
        ) in prompt
        assert (
            "O_1: No landmarks nearby;\nO_2: No landmarks nearby;\nO_3: No landmarks nearby;\n"
            "O_4: Hotel is on your right behind; You observe an intersection\nO_5: No landmarks nearby;\n"
            "O_6: No landmarks nearby; You observe an intersection\nO_7: No landmarks nearby;\n"
            "O_8: The destination Cafe is on your right;\n"
        ) in prompt
    space = {rule: prompt.split("[Action space]")[1].split("[Obs")[0] for rule, prompt in prompts.items()}
    assert all(f"'{direction}'" in space["id"] for direction in DIRECTIONS)
    assert "['left', 'right', 'slightly left', 'slightly right']" in space["ood"]
    assert prompts["id"].replace(space["id"], "") == prompts["ood"].replace(space["ood"], "")


def test_the_compact_wording_is_short_words() -> None:
    assert COMPACT.prompt(posed("ood")) == (
        "relative turn left east until hotel right behind turn slightly left northeast until crossing "
        "turn right southeast until destination cafe right "
        "see nothing see nothing see nothing see hotel right behind crossing see nothing see nothing crossing "
        "see nothing see destination cafe right reply"
    )
    assert COMPACT.demonstration(posed("id")) == f'{{"actions":[ {" ".join(ABSOLUTE)} ]}}'
    words = {word for p in COMPACT.problems("ood", "eval", 300) for word in COMPACT.prompt(p).split()}
    assert len(words) < 80 and all(word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize(("rule", "right"), [("id", ABSOLUTE), ("ood", RELATIVE)])
def test_only_the_directions_of_the_rule_are_right(rule: Rule, right: list[str]) -> None:
    wrong = RELATIVE if rule == "id" else ABSOLUTE
    assert TASK.judge(posed(rule), Paper().answer(right)).solved
    verdict = TASK.judge(posed(rule), Paper().answer(wrong))
    assert (verdict.solved, verdict.well_formed, verdict.reward) == (False, False, -1.5)


# Reading


items = st.lists(st.sampled_from([*DIRECTIONS, *TURNS, "forward", "stop"]), max_size=30)


@given(items=items, before=st.text(alphabet="ab {}[]\"',:\n"))
def test_actions_are_read_back_whatever_their_spelling(items: list[str], before: str) -> None:
    paper = Paper().answer(items)
    for text in (
        paper, Compact().answer(items), paper.replace('"', "'"), paper.replace("()", ""),
        paper.replace("]}", ",]}") if items else paper, paper.replace("()", "( )"),
        json.dumps(json.loads(paper), indent=2),
        paper.replace("{", '{"current observation": "[x], y", "n": 1, '),
        re.sub(r'"([a-z_]+\([a-z ]*\))"', r"\1", paper), re.sub(r"\(([a-z ]+)\)", r"( '\1' )", paper),
        re.sub(r'"turn_direction\(([a-z ]+)\)"', r'turn_direction("\1")', paper),
        paper.replace("{", '{"seen": [["a", "]"], [], [[1]]], \'why\': "a \\"b\\", c", '),
    ):  # fmt: skip
        assert find_actions(before + text) == tuple(items)


def test_a_call_without_quotes_is_one_action_under_either_rule() -> None:
    """A space in `slightly left` once made two of it: under the OOD rule alone."""
    for rule, actions in (("id", ABSOLUTE), ("ood", RELATIVE)):
        bare = Paper().answer(actions).replace('"', "").replace("actions", '"actions"')
        assert TASK.judge(posed(rule), bare).solved


@pytest.mark.parametrize("inside", ["left'", "'left", "'left\"", "''left''", "left''"])
def test_quotes_within_a_call_are_a_pair_or_not_there(inside: str) -> None:
    """One alone was once passed over, so that a damaged demonstration solved."""

    def read(inside: str) -> object:
        return find_actions(json.dumps({"actions": [f"turn_direction({inside})", "stop()"]}))

    assert read("'left'") == read("left") == ("left", "stop")
    assert read(inside) != ("left", "stop")


@given(first=items, last=items)
def test_the_last_list_counts(first: list[str], last: list[str]) -> None:
    assert find_actions(f"{Paper().answer(first)}\nor\n{Paper().answer(last)} done") == tuple(last)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "forward() stop()",
        '["forward()", "stop()"]',
        '{"actions": "forward()"}',
        '{"actions": []',
        '{"action": ["stop()"]}',
        '{"actions": ["stop()]}',
        '{"actions": [["stop()"]]}',
    ],
)
def test_without_a_list_of_actions_an_answer_is_malformed(text: str) -> None:
    verdict = TASK.judge(posed("id"), text)
    assert (verdict.reward, verdict.solved, verdict.well_formed) == (-1.5, False, False)
    assert verdict.feedback == "You failed this trial because you gave no list of actions."


@pytest.mark.parametrize(
    "text",
    [
        '{"actions": [' + '"forward()", ' * 5000 + "]}",
        '{"actions": [' + "slightly " * 5000,
        "{" + '"actions": [] ' * 3000,
        '{"actions": [' * 3000,
        "{" + "'" * 20_000,
        "{" + " " * 20_000 + "}",
        "{" + "a" * 20_000 + "}",
        '{"actions": [' + " " * 16_000 + '"]}',
        '{"n": [[' + '\\"' * 8000 + "}",
        '{"n": ' + "[" * 16_000 + "}",
        '{"n": [["' + "\\" * 16_000 + "}",
        '{"actions": [' + "turn_direction( " * 1000 + "]}",
        '{"actions": ["turn_direction(' + " a" * 8000 + '"]}',
        '{"action": "forward()"}' * 2000,
        "{" + '"action": "forward()", ' * 700 + "}",
    ],
    ids=range(15),
)
def test_a_text_made_to_be_slow_is_judged_in_50_milliseconds(text: str) -> None:
    steps = get_task("navigation", pool=1000)
    for judge in (
        TASK.judge,
        steps.judge,
        lambda problem, text: judge_turn(steps, problem, [], text),
    ):
        assert cpu_seconds(partial(judge, posed("id"), text), 0.05) < 0.05


# Feedback


@pytest.mark.parametrize(
    ("actions", "reward", "well_formed", "told"),
    [
        (ABSOLUTE, 8, True, ""),
        (ABSOLUTE[:-1], 6, True, "you gave fewer actions than there are observations"),
        ([], -1, True, "you gave fewer actions than there are observations"),
        ([*ABSOLUTE, "stop"], 7, True, "you gave more actions than there are observations"),
        (["west", *ABSOLUTE[1:]], -1, True, "action 1 is incorrect"),
        ([*ABSOLUTE[:3], "forward", *ABSOLUTE[4:]], 2, True, "action 4 is incorrect"),
        ([*ABSOLUTE[:3], "left", *ABSOLUTE[4:]], 1.5, False, "action 4 is not in the action space"),
        ([*ABSOLUTE[:3], "stop", "fly"], 2, False, "action 4 is incorrect"),
    ],
)
def test_the_feedback_names_the_first_wrong_action_and_no_right_one(
    actions: list[str], reward: float, well_formed: bool, told: str
) -> None:
    verdict = TASK.judge(posed("id"), Paper().answer(actions))
    assert (verdict.reward, verdict.solved, verdict.well_formed) == (reward, not told, well_formed)
    assert verdict.feedback == (f"You failed this trial because {told}." if told else "")
    assert TASK.reply(verdict) == verdict.feedback
    compact = COMPACT.judge(posed("id"), Compact().answer(actions))
    assert (compact.reward, compact.solved) == (verdict.reward, verdict.solved)
    assert re.fullmatch(r"(failed (short|long|(wrong|unknown) \d+))?", compact.feedback)
