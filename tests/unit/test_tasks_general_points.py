"""GeneralPoints: what it says and how it judges."""

import json
import re
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.tasks import Rule, Split, Task, get_task
from rlheals_ray.tasks.deals import GeneralPointsProblem
from rlheals_ray.tasks.general_points import GeneralPoints
from rlheals_ray.tasks.solver import solutions
from rlheals_ray.tasks.wording import compact_vocabulary
from tests.cpu_time import cpu_seconds
from tests.oracles import points

NANO = {"cards": 3, "targets": [18, 24], "wording": "compact"}

RULES: tuple[Rule, ...] = ("id", "ood")


def answer(number: list[int], formula: str) -> str:
    return json.dumps({"cards": ["?"], "number": number, "formula": formula})


def dealt(task: Task, rule: Rule, split: Split, count: int) -> list[GeneralPointsProblem]:
    problems = task.problems(rule, split, count)
    assert all(isinstance(problem, GeneralPointsProblem) for problem in problems)
    return cast(list[GeneralPointsProblem], problems)


# Words


@pytest.mark.parametrize("wording", ["compact", "paper"])
@pytest.mark.parametrize("options", [NANO, {"cards": 4}])
def test_every_demonstration_is_judged_solved(options: dict, wording: str) -> None:
    task = get_task("general_points", **{**options, "wording": wording})
    for rule in RULES:
        for i, problem in enumerate(task.problems(rule, "eval", 450)):
            verdict = task.judge(problem, task.demonstration(problem, seed=i))
            assert (verdict.reward, verdict.solved, verdict.well_formed, verdict.feedback) == (
                5,
                True,
                True,
                "",
            )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_demonstrations_show_the_shortest_or_now_and_then_the_second_formula(share: float) -> None:
    task = get_task("general_points", **NANO, second_solution=share)
    problem = task.deal(["A", "4", "6"], rule="id", target=24)
    shortest, second = "6 * 4 * 1", "1 * 4 * 6"
    shown = [re.search(r'"formula":" (.*) "}', task.demonstration(problem, seed=s))[1] for s in range(1000)]  # type: ignore[index]
    assert set(shown) <= {shortest, second}
    # Five standard deviations of a binomial.
    assert abs(shown.count(second) / 1000 - share) < 5 * (share * (1 - share) / 1000) ** 0.5 + 1e-9


def test_compact_texts_are_words_of_the_closed_vocabulary_and_each_word_is_of_use() -> None:
    task = get_task("general_points", **NANO)
    known, seen = set(compact_vocabulary([18, 24])), set()
    for problem in [p for rule in RULES for p in dealt(task, rule, "eval", 450)]:
        texts = [task.prompt(problem), *(task.demonstration(problem, seed=s) for s in range(3))]
        for n in range(1, 14):
            texts.append(task.reply(task.judge(problem, answer([*problem.values], f"{n}*9999"))))
        texts.append(task.reply(task.judge(problem, "nothing")))
        texts.append(
            task.reply(task.judge(problem, answer([*problem.values], "+".join(map(str, problem.values)))))
        )
        for text in texts:
            seen |= set(text.split())
    assert seen <= known
    assert known - seen <= {"-", "/"}


def test_the_compact_prompt_and_answer() -> None:
    task = get_task("general_points", **NANO, second_solution=0)
    problem = task.deal(["8", "J", "5"], rule="ood", target=24)
    assert task.prompt(problem) == "make 24 rule J 11 Q 12 K 13 cards 8 J 5 reply"
    assert task.demonstration(problem) == '{"cards":[ 8 J 5 ],"number":[ 8 11 5 ],"formula":" 11 + 8 + 5 "}'


def test_the_paper_prompt_names_cards_rule_target_and_form() -> None:
    task = get_task("general_points", cards=4)
    prompts = {rule: task.prompt(task.deal(["A", "Q", "2", "A"], rule=rule)) for rule in RULES}
    for prompt in prompts.values():
        assert "You are an expert 24 points card game player. You will receive a set of 4 cards." in prompt
        assert "Cards: ['A', 'Q', '2', 'A']" in prompt
        assert re.search(r'"cards": \[x, y, z, w\].*"number": \[a, b, c, d\].*"formula"', prompt, re.DOTALL)
    assert "'J', 'Q', and 'K' count as '10'" in prompts["id"]
    assert "'J', 'Q', and 'K' count as '11', '12', and '13' respectively" in prompts["ood"]


@pytest.mark.parametrize("wording", ["compact", "paper"])
def test_feedback_says_what_is_wrong_and_never_a_solution(wording: str) -> None:
    task = get_task("general_points", **{**NANO, "wording": wording})
    for problem in dealt(task, "ood", "eval", 300):
        wrong = [*problem.values[1:], 7, 9]
        for formula in ("+".join(map(str, problem.values)), "*".join(map(str, wrong)), "2**3", "1/0"):
            verdict = task.judge(problem, answer([*problem.values], formula))
            if verdict.solved:
                continue
            assert verdict.feedback
            squeezed = verdict.feedback.replace(" ", "")
            assert not any(s.replace(" ", "") in squeezed for s in solutions(problem.values, problem.target))


def test_feedback_stays_short_however_long_the_answer_is() -> None:
    for wording in ("compact", "paper"):
        task = get_task("general_points", **{**NANO, "wording": wording})
        problem = task.deal(["8", "J", "5"], rule="ood", target=24)
        for text in (answer([7] * 4000, "8+11+5"), answer([8, 11, 5], "7+" * 200 + "7"), "x" * 10**6):
            assert len(task.reply(task.judge(problem, text)).split()) < 40


# Verdicts

PAPER = get_task("general_points", cards=4)
ADDITIVE = get_task("general_points", cards=4, additive_penalties=True)
DEAL = PAPER.deal(["8", "5", "10", "6"], rule="id")
THREE_EIGHTS = PAPER.deal(["8", "8", "3", "3"], rule="id")


@pytest.mark.parametrize("formula", ["8/(3-8/3)", "8/(3-8/3)=24", " 8 / ( 3 - 8 / 3 ) = 24 "])
def test_fractions_on_the_way_are_exact(formula: str) -> None:
    assert PAPER.judge(THREE_EIGHTS, answer([3, 3, 8, 8], formula)).solved


@pytest.mark.parametrize(
    ("number", "formula", "reward", "added"),
    [
        # Right numbers, legal, not the target.
        ([8, 5, 10, 6], "8+5+10+6", -1, -1),
        ([8, 5, 10, 6], "8+5+10+6=24", -1, -1),
        ([8, 5, 10, 6], "8+5+10+6=29", -1, -1),
        # Numbers that were not dealt, though the value is 24: other judges let the first one pass.
        ([8, 5, 10, 6], "6*4*1*1", -2, -2),
        ([8, 5, 10, 6], "8+10+6", -2, -2),
        ([8, 5, 10, 6], "24", -2, -2),
        ([8, 5, 10, 6], "8+5+10+6+0-5", -2, -2),
        ([8, 5, 10, 6], "1+1", -2, -3),
        # The field itself is wrong.
        ([8, 5, 11, 6], "8+5+10+6", -2, -3),
        ([8, 5, 10], "8+5+10+6", -2, -3),
        # Values that truncate to 24, powers, decimals, floor division.
        ([8, 5, 10, 6], "24.5", -3, -3),
        ([8, 5, 10, 6], "2**3+4", -3, -3),
        ([8, 5, 10, 6], "1.5*16", -3, -3),
        ([8, 5, 10, 6], "8//5+10+6", -3, -3),
        ([8, 5, 11, 6], "8+", -3, -5),
    ],
)
def test_the_most_severe_fault_counts_or_all_of_them_add_up(
    number: list[int], formula: str, reward: float, added: float
) -> None:
    verdict = PAPER.judge(DEAL, answer(number, formula))
    assert (verdict.reward, verdict.solved, verdict.well_formed) == (reward, False, True)
    assert ADDITIVE.judge(DEAL, answer(number, formula)).reward == added


def test_a_value_near_the_target_is_not_the_target() -> None:
    # 24.5, which int() would take for 24.
    problem = PAPER.deal(["10", "5", "2", "A"], rule="id")
    assert PAPER.judge(problem, answer([10, 5, 2, 1], "(10*5-1)/2")).reward == -1
    assert PAPER.judge(problem, answer([10, 5, 2, 1], "10*5/2-1")).solved


def test_a_false_equation_is_not_solved_and_a_true_one_is() -> None:
    assert PAPER.judge(THREE_EIGHTS, answer([8, 8, 3, 3], "8/(3-8/3)=25")).reward == -1
    assert PAPER.judge(THREE_EIGHTS, answer([8, 8, 3, 3], "8/(3-8/3)=24")).reward == 5


def test_no_answer_object_counts_as_an_illegal_formula_and_is_malformed() -> None:
    for text in ("", "8/(3-8/3)", '{"formula": "8/(3-8/3)"}'):
        verdict = PAPER.judge(THREE_EIGHTS, text)
        assert (verdict.reward, verdict.solved, verdict.well_formed) == (-3, False, False)


def test_face_cards_count_what_the_rule_says() -> None:
    task = get_task("general_points", cards=3)
    as_ten = task.deal(["J", "10", "4"], rule="id")
    assert task.judge(as_ten, answer([10, 10, 4], "10+10+4")).solved
    as_eleven = task.deal(["J", "8", "5"], rule="ood")
    assert task.judge(as_eleven, answer([11, 8, 5], "11+8+5")).solved
    assert task.judge(as_eleven, answer([10, 8, 5], "11+8+5")).reward == -2
    assert task.judge(as_eleven, answer([11, 8, 5], "10+8+5")).reward == -2


def test_compact_feedback_is_the_closed_set_of_phrases() -> None:
    task = get_task("general_points", **NANO)
    problem = task.deal(["8", "J", "5"], rule="ood", target=24)

    def feedback(number: list[int], formula: str) -> str:
        return task.reply(task.judge(problem, answer(number, formula)))

    assert feedback([8, 11, 5], "8+") == "failed illegal"
    assert feedback([8, 11, 5], "8+11-5") == "failed nomatch"
    assert feedback([8, 11, 5], "8+10+5") == "failed invalid 10 unused 11"
    assert feedback([8, 11, 5], "8+11") == "failed unused 5"
    assert feedback([8, 11, 5], "8+11+5+0") == "failed invalid"
    assert feedback([8, 10, 5], "8+11+5") == "failed invalid 10 unused 11"


def test_paper_feedback_is_a_sentence() -> None:
    for formula in ("8+", "8+5+10+6", "6*4*1*1"):
        feedback = PAPER.reply(PAPER.judge(DEAL, answer([8, 5, 10, 6], formula)))
        assert re.fullmatch(r"You failed this trial because [^.]+\.", feedback)


@given(
    st.text()
    | st.text(alphabet="0123456789+-*/()= ").map(lambda formula: answer([8, 5, 10, 6], formula))
    | st.lists(st.integers()).map(lambda number: answer(number, "8+5+10+6"))
)
@settings(max_examples=400, deadline=None)
def test_the_judge_is_total(text: str) -> None:
    verdict = PAPER.judge(DEAL, text)
    assert verdict.reward in (5, -1, -2, -3)
    assert verdict.solved == (verdict.reward == 5) == (verdict.feedback == "")


RULES_OF: dict[str, GeneralPoints] = {
    "faces": get_task("general_points", cards=3, targets=[18, 24], wording="compact"),
    "other_faces": get_task("general_points", cards=3, ood="other_faces", ood_faces=[5, 7, 9]),
    "larger": get_task("general_points", cards=3, ood="larger", ood_cards=4),
    "target": get_task("general_points", cards=3, ood="target", ood_targets=[36]),
    "wording": get_task("general_points", cards=3, targets=[18, 24], ood="wording"),
}


@st.composite
def formulas(draw: st.DrawFn, values: tuple[int, ...], solution: str) -> str:
    """A formula of these numbers, or of some of them and others, or a solution, with a few characters changed."""
    numbers = (
        draw(st.permutations(values))
        if draw(st.booleans())
        else draw(st.lists(st.integers(0, 30), max_size=5))
    )
    parts = [str(number) for number in numbers] or [""]
    while len(parts) > 1:
        at = draw(st.integers(0, len(parts) - 2))
        joined = f"{parts[at]}{draw(st.sampled_from('+-*/'))}{parts[at + 1]}"
        parts[at : at + 2] = [f"({joined})" if draw(st.booleans()) else joined]
    formula = draw(st.sampled_from([solution, *parts]))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(formula)))
        formula = (
            formula[:at]
            + draw(st.sampled_from([*"0123456789+-*/() =.", "**", "//", "="]))
            + formula[at + 1 :]
        )
    return formula + draw(st.sampled_from(["", "", "", "=24", "= 18", "=36", "=24=24", "=24.0", "=024"]))


@pytest.mark.parametrize("ood", RULES_OF)
@given(data=st.data(), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_a_formula_is_solved_just_when_its_value_in_fractions_is_the_target_and_its_numbers_the_cards(
    ood: str, data: st.DataObject, seed: int
) -> None:
    task = RULES_OF[ood]
    right = points(task)
    for rule in RULES:
        [problem] = cast(list[GeneralPointsProblem], task.problems(rule, "eval", 1, seed=seed))
        formula = data.draw(formulas(problem.values, solutions(problem.values, problem.target)[0]))
        number = data.draw(st.sampled_from([problem.values, problem.values[::-1], (*problem.values[1:], 9)]))
        text = answer([*number], formula)
        assert task.judge(problem, text).solved == right(problem, text), formula


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10**6,
        '{"cards":[' * 10**5,
        answer([1], "(" * 10**6),
        answer([1], "9" * 10**6),
        answer([1] * 300_000, "1+1"),
        '{"cards":[],"number":[' + "9" * 10_000 + '],"formula":"1"}',
        '{"cards":[],"number":[' + "٣ ² " * 3000 + '],"formula":"8+5+10+6"}',
        answer([8, 5, 10, 6], "9999*" * 100 + "9999"),
    ],
)
def test_hostile_answers_take_no_time(text: str) -> None:
    assert not PAPER.judge(DEAL, text).solved
    assert cpu_seconds(lambda: PAPER.judge(DEAL, text), 0.05) < 0.05
