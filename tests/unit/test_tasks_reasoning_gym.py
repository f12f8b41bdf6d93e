"""The task reasoning_gym: two configurations of a dataset of the package, drawn alike everywhere."""

import pickle
import random
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError
from rlheals_ray.tasks import Problem, Task, get_task
from rlheals_ray.tasks.reasoning_gym import MAX_CHARACTERS, find_answer
from rlheals_ray.tasks.reasoning_gym_config import CHUNK, Config, make
from rlheals_ray.tasks.reasoning_gym_draw import Draw, draw, drawn, held_out, seed_of
from tests.cpu_time import cpu_seconds

NAME = "rlheals_ray.tasks.reasoning_gym:ReasoningGym"


def task(dataset: str, ood: Config, **options: Any) -> Task:
    return get_task(NAME, dataset=dataset, ood=ood, **options)


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """Draw in this process: a process of its own takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlheals_ray.tasks.reasoning_gym.draw", drawn)
        yield


@pytest.fixture(scope="module")
def sums(here: None) -> Task:
    """A generator that never ends."""
    return task("chain_sum", {"min_digits": 5, "max_digits": 5}, train_problems=40, eval_problems=20)


@pytest.fixture(scope="module")
def coins(here: None) -> Task:
    """A generator with few questions."""
    return task("coin_flip", {"min_trials": 5, "max_trials": 5}, id={"min_trials": 3, "max_trials": 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "countdwn", "ood": {}}, r"task\.dataset \(got 'countdwn'\): .*use countdown"),
        ({"dataset": "sudoku_", "ood": {}}, "sudoku or mini_sudoku"),
        ({"dataset": "?", "ood": {}}, "it has 99, from ab to zebra_puzzles"),
        ({"dataset": "codeio", "ood": {}}, "programs that a language model wrote.*another dataset"),
        ({"dataset": "rubiks_cube", "ood": {}}, "no answer"),
        ({"dataset": "composite", "ood": {}}, "only mixes other datasets"),
        ({"dataset": "gcd"}, r"task\.ood .*required"),
        ({"dataset": "gcd", "ood": {}}, r"task\.ood .*the same rule as id"),
        ({"dataset": "gcd", "ood": {"max_numbers": 2}}, r"task\.ood .*the same rule as id"),
        ({"dataset": "gcd", "ood": {"most": 3}}, r"task\.ood .*no field most; use min_numbers, max_numbers"),
        ({"dataset": "gcd", "ood": {"seed": 3}}, r"task\.ood .*seed is not yours to set"),
        ({"dataset": "gcd", "id": {"size": 3}, "ood": {"max_numbers": 3}}, r"task\.id .*size is not yours to set"),
        ({"dataset": "gcd", "ood": {"min_numbers": 9}}, r"task\.ood .*refuses it \(max_numbers must be >= min"),
        ({"dataset": "figlet_font", "ood": {"static_font": "x"}}, r"static_font must be one of .{,300}\); change"),
        ({"dataset": "gcd", "ood": {"max_numbers": "3"}}, "max_numbers cannot be '3'; write a whole number"),
        ({"dataset": "gcd", "ood": {"max_numbers": True}}, "max_numbers cannot be True; write a whole number"),
        ({"dataset": "time_intervals", "ood": {"min_date": "May"}}, "min_date cannot be 'May'"),
        ({"dataset": "gcd", "ood": {"max_numbers": 3}, "held_out": 1.0}, r"task\.held_out .*less than 1"),
        ({"dataset": "gcd", "ood": {"max_numbers": 3}, "train_problems": 0}, r"task\.train_problems .*greater"),
        ({"dataset": "gcd", "ood": {"max_numbers": 3}, "sizes": 0}, r"task\.sizes.*use dataset, id, ood"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_its_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        get_task(NAME, **options)
    assert "\n" not in str(raised.value)


def test_what_a_study_file_cannot_write_is_made_from_what_it_can() -> None:
    dated = task("time_intervals", {"min_date": "2000-01-01", "max_time": "12:30:00"})
    assert dated.options.ood["min_date"] == "2000-01-01"  # type: ignore[attr-defined]
    boards = task("arc_agi", {"board_format_opts": {"col_delimiter": ","}})
    assert boards.options.ood["board_format_opts"]["row_delimiter"] == "\n"  # type: ignore[attr-defined]
    assert make("arc_agi", boards.options.ood, 0).board_format_opts.col_delimiter == ","  # type: ignore[attr-defined]


def test_the_fingerprint_is_that_of_the_completed_options() -> None:
    ood = {"max_numbers": 3}
    same = [task("gcd", ood), task("gcd", ood, id={"max_numbers": 2}), task("gcd", ood, held_out=0.5)]
    others = [
        task("lcm", ood), task("gcd", {"max_numbers": 4}), task("gcd", ood, id={"max_numbers": 5}),
        task("gcd", ood, held_out=0.4), task("gcd", ood, train_problems=5), task("gcd", ood, eval_problems=5),
    ]  # fmt: skip
    assert len({one.fingerprint() for one in same}) == 1
    assert len({one.fingerprint() for one in [*same, *others]}) == 7


def test_smaller_counts_are_prefixes_and_seeds_are_other_orders_of_the_same_problems(sums: Task) -> None:
    every = sums.problems("id", "train", 40)
    assert sums.available("id", "train") == len({problem.id for problem in every}) == 40
    assert sums.problems("id", "train", 7) == every[:7]
    other = sums.problems("id", "train", 40, seed=1)
    assert other != every and {p.id for p in other} == {p.id for p in every}
    for wrong in (41, -1):
        with pytest.raises(InputError, match="count: "):
            sums.problems("id", "train", wrong)


def test_no_question_is_trained_on_and_evaluated(sums: Task, coins: Task) -> None:
    for one in (sums, coins):
        trained, evaluated, ood = (
            {problem.group for problem in one.problems(rule, split, one.available(rule, split))}
            for rule, split in (("id", "train"), ("id", "eval"), ("ood", "eval"))
        )
        assert trained and evaluated and ood
        assert not trained & (evaluated | ood)


def test_a_field_that_is_one_of_several_words_is_given_as_the_word() -> None:
    def sorting(**more: object) -> Task:
        given = {"min_words": 2, "max_words": 3, **more}
        return get_task(
            "reasoning_gym", dataset="word_sorting", id=given, ood={"min_words": 5, "max_words": 6}
        )

    for problem in sorting(transformation="uppercase").problems("id", "train", 20):
        listed = re.findall(r"[A-Za-z]+", problem.question.rpartition(":")[2])  # type: ignore[attr-defined]
        assert listed and all(word.isupper() for word in listed)
    assert len(sorting().problems("ood", "eval", 20)) == 20
    with pytest.raises(
        InputError, match="transformation cannot be 'loud'; write 'lowercase' or 'uppercase' or"
    ):
        sorting(transformation="loud")


def test_a_generator_with_few_questions_gives_all_of_them_once(coins: Task) -> None:
    # exactly and at least k heads: k from 0 or 1 to n, whatever the package asks within 4,000 items.
    chunk = make("coin_flip", {"min_trials": 3, "max_trials": 4}, 5)
    asked = {chunk[index]["question"] for index in range(4_000)}
    given = [
        problem.question  # type: ignore[attr-defined]
        for split in ("train", "eval")
        for problem in coins.problems("id", split, coins.available("id", split))  # type: ignore[arg-type]
    ]
    assert sorted(given) == sorted(asked)
    with pytest.raises(
        InputError, match=rf"there are {coins.available('id', 'eval')} distinct ones; ask for"
    ):
        coins.problems("id", "eval", len(asked))


def test_the_ood_rule_has_no_train_split_and_unknown_rules_are_refused(sums: Task) -> None:
    assert sums.available("ood", "train") == 0
    with pytest.raises(InputError, match="only ever evaluated"):
        sums.problems("ood", "train", 1)
    with pytest.raises(InputError, match="rule"):
        sums.problems("odd", "eval", 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="split"):
        sums.available("id", "test")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sums.judge(Problem("x", "id", "x"), "")


def test_each_rule_follows_its_own_configuration(sums: Task) -> None:
    longest = {
        rule: max(len(n) for p in sums.problems(rule, "eval", 20) for n in re.findall(r"\d+", p.question))  # type: ignore
        for rule in ("id", "ood")
    }
    assert longest == {"id": 4, "ood": 5}


def test_prompt_demonstration_and_judge_belong_together_and_travel(sums: Task) -> None:
    away: Task = pickle.loads(pickle.dumps(sums))
    for problem in pickle.loads(pickle.dumps(sums.problems("id", "train", 10))):
        prompt, shown = sums.prompt(problem), sums.demonstration(problem)
        assert prompt.startswith(problem.question) and "<answer>" in prompt
        assert shown == f"<answer>{problem.answer}</answer>"
        assert away.judge(problem, f"Let me see. {shown} So it is.").solved
        outcomes = [away.judge(problem, text) for text in (shown, "<answer>no</answer>", problem.answer)]
        assert [(v.reward, v.solved, v.well_formed) for v in outcomes] == [
            (5.0, True, True), (-1.0, False, True), (-3.0, False, False),
        ]  # fmt: skip
        assert [bool(away.reply(verdict)) for verdict in outcomes] == [False, True, True]
        assert not any(character.isdigit() for verdict in outcomes for character in verdict.feedback)


PIECES = st.lists(
    st.sampled_from(["<answer>", "</answer>", " ", "\n", "7", "a</answer", "<answer"]), max_size=12
)


@settings(max_examples=500, deadline=None)
@given(PIECES.map("".join))
def test_the_answer_is_what_the_packages_convention_extracts(text: str) -> None:
    from reasoning_gym.utils import extract_answer

    assert find_answer(text) == extract_answer(text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200) | PIECES.map("".join) | st.sampled_from(["<answer>" * 20_000, "9" * 10**6]))
def test_the_judge_is_total_and_quick_whatever_the_text(sums: Task, text: str) -> None:
    problem = sums.problems("id", "eval", 1)[0]
    verdicts = [sums.judge(problem, one) for one in (text, f"<answer>{text}</answer>")]
    for one in (text, f"<answer>{text}</answer>"):
        assert cpu_seconds(partial(sums.judge, problem, one), 0.05) < 0.05
    assert verdicts[1].well_formed or len(text) > MAX_CHARACTERS - 20


# Of list_functions some questions come from the global `random`; isomorphic_strings walks through sets of strings.
@pytest.mark.parametrize("dataset", ["list_functions", "isomorphic_strings"])
def test_items_depend_on_no_state_of_the_process_and_leave_none(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Draw(dataset, {}, "id/train", 0.5, False, 10)
    state = random.getstate()
    first = draw(wanted)
    assert random.getstate() == state
    random.seed(7)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert draw(wanted) == first and len({item.question for item in first}) == 10
    random.setstate(state)


def test_a_configuration_that_cannot_be_drawn_from_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlheals_ray.tasks.reasoning_gym.draw", draw)
    without = task("simple_integration", {"symbols": []})
    with pytest.raises(
        InputError, match=r"task\.ood .* for eval cannot be had: .*IndexError.*; change the"
    ) as raised:
        without.available("ood", "eval")
    assert "\n" not in str(raised.value)


def test_a_dataset_whose_own_answers_do_not_count_as_right_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlheals_ray.tasks.reasoning_gym_draw.verifier", lambda name, chunk: lambda *_: False)
    with pytest.raises(ValueError, match="none has an answer that counts as right"):
        drawn(Draw("gcd", {}, "x", 0.5, True, 1))


def test_items_are_the_packages_own_by_index() -> None:
    chunk = make("gcd", {}, seed_of("x/0"))
    own = [chunk[index]["question"] for index in range(40)]
    mine = [item.question for item in drawn(Draw("gcd", {}, "x", 0.5, True, 10))]
    assert mine == [question for question in dict.fromkeys(own) if held_out(question, 0.5)][:10]
    assert len(chunk) == CHUNK
