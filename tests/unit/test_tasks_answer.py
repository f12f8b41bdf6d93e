"""The answer object is found in every wording, and no text is too odd or too long."""

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks.answer import Answer, find_answer
from tests.cpu_time import cpu_seconds

EXPECTED = Answer(("3", "J", "5"), ("3", "10", "5"), "3+10+5")


@pytest.mark.parametrize(
    "text",
    [
        '{"cards": ["3","J","5"], "number": [3,10,5], "formula": "3+10+5"}',
        "{'cards': ['3', 'J', '5'], 'number': [3, 10, 5], 'formula': '3+10+5',}",
        '{\n  "cards": [3, J, 5],\n  "number": [3, 10, 5],\n  "formula": \'3+10+5\',\n}',
        '{"cards":[ 3 J 5 ],"number":[ 3 10 5 ],"formula":"3+10+5"}',
        '{"formula":"3+10+5","number":["3","10","5"],"cards":["3","J","5"]}',
        '{cards:[3 J 5] number:[3 10 5] formula:"3+10+5"}',
        '{"thoughts": "it\'s [easy]", "sure": true, "cards":[3 J 5],"number":[3 10 5],"formula":"3+10+5"}',
        'Think {draft}. So:\n```json\n{"cards":[3,J,5],"number":[3,10,5],"formula":"3+10+5"}\n``` done }{',
        '{"cards":[1],"number":[1],"formula":"1"} no: {"cards":[3,J,5],"number":[3,10,5],"formula":"3+10+5"}',
        '{"cards":[3,J,5],"number":[3,10,5],"formula":"3+10+5"} {"cards":[3,J',
        '\\boxed{{"cards":[3,J,5],"number":[3,10,5],"formula":"3+10+5"}}',
    ],
)
def test_every_wording_is_read_alike_and_the_last_complete_object_counts(text: str) -> None:
    assert find_answer(text) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "", "24", "{}", "{ }", "[]", "3+10+5", '{"formula":"3+10+5"}', '{"cards":[3],"number":[3]}',
        '{"cards":[3],"number":[3],"formula":"3"', '"cards":[3],"number":[3],"formula":"3"}',
        '{"cards":[3],"number":[3],"formula":3}', '{"cards":"3","number":[3],"formula":"3"}',
        '{"cards":[3],"number":[3,"formula":"3"}', '{"cards":[3],"number":[3],"formula":"3}',
        '{"Cards":[3],"number":[3],"formula":"3"}', '{"cards":[3]; "number":[3]; "formula":"3"}',
    ],
)  # fmt: skip
def test_anything_less_than_three_fields_of_the_right_shape_is_no_answer(text: str) -> None:
    assert find_answer(text) is None


words = st.text(alphabet="0123456789AJQK", min_size=1, max_size=3)


@given(st.lists(words), st.lists(words), st.text(alphabet="0123456789+-*/() =", max_size=40))
def test_what_json_writes_is_read_back(cards: list[str], number: list[str], formula: str) -> None:
    text = json.dumps({"cards": cards, "number": number, "formula": formula})
    assert find_answer(text) == Answer(tuple(cards), tuple(number), formula)


@given(
    st.text()
    | st.lists(st.sampled_from(['{"', '":', "[", "]", '"', "'", "{", "}", ",", "cards", " "])).map("".join)
)
@settings(max_examples=400, deadline=None)
def test_any_text_is_an_answer_or_none(text: str) -> None:
    assert isinstance(find_answer(text), Answer | None)


@pytest.mark.parametrize(
    "piece",
    [
        "{", "}", "{}", '{"', '{"cards":[', '{"a":"', "{a:[", '"', "'", "[", "\\", " ", "{ ", "{a:1,", "{a :",
        "é", "{a" + " " * 999,
    ],
)  # fmt: skip
def test_a_megabyte_of_anything_takes_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    for hostile in (text, "{" + text, "{" + text + "}", '{"cards":[' + text + '],"number":[],"formula":""}'):
        assert cpu_seconds(partial(find_answer, hostile), 0.05) < 0.05


def test_the_answer_at_the_end_of_a_megabyte_is_found() -> None:
    assert find_answer("{" * 1_000_000 + '"cards":[3,J,5],"number":[3,10,5],"formula":"3+10+5"}') == EXPECTED
