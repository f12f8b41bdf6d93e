"""Registered tasks and the documented one keep every law of tasks, and the check tells from outside what breaks one."""

import os
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlheals_ray.config import InputError, load_study
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.tasks import _TASKS, Problem, Verdict, command_check, get_task, rules_of
from rlheals_ray.tasks.conformance import LAWS, Conformance, Effort, Oracle, check_task, other_options
from rlheals_ray.tasks.conformance.apart import check_apart
from rlheals_ray.tasks.conformance.hostile import hostile_answers
from rlheals_ray.tasks.conformance.judging import Judging
from rlheals_ray.tasks.conformance.laws import Findings
from rlheals_ray.tasks.conformance.leaks import Leaks
from rlheals_ray.tasks.conformance.texts import check_texts
from rlheals_ray.tasks.reasoning_gym_here import NAME as DRAWN_HERE
from tests.near_answers import near_answers
from tests.oracles import navigation_turn, oracle_of

ROOT = Path(__file__).parents[2]
EXAMPLE, ORACLE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_task.md").read_text(), re.DOTALL)

OPTION_SETS: dict[str, list[dict[str, Any]]] = {
    "general_points": [
        {},
        {"cards": 3, "targets": [18, 24], "wording": "compact"},
        {"cards": 3, "additive_penalties": True, "second_solution": 1.0, "held_out": 0.3},
        {"cards": 2, "targets": [*range(1, 17), 18, 20, 24, 36, 40], "wording": "compact"},
        {
            "cards": 3,
            "targets": [18, 24],
            "ood": ["faces", "target", "wording"],
            "ood_targets": [12],
            "phrasing": "diverse",
        },
        {"cards": 3, "ood": "other_faces", "ood_faces": [5, 7, 9]},
        {"cards": 3, "ood": "larger", "ood_cards": 4, "wording": "compact"},
    ],
    "matrix_rank": [{"pool": 1000}, {"wording": "compact", "working": False, "pool": 1000}],
    "determinant": [
        {"pool": 1000},
        {"wording": "compact", "working": False, "symmetric": True, "pool": 1000},
    ],
    "navigation": [
        {"pool": 1000},
        {"turns": [2, 3], "landmarks": 8, "wording": "compact", "pool": 1000, "held_out": 0.2},
        {"mode": "route", "turns": [2, 4], "pool": 1000},
        {"mode": "route", "turns": [2, 3], "wording": "compact", "pool": 1000},
    ],
    "reasoning_gym": [
        {"dataset": "chain_sum", "id": {"max_terms": 3}, "ood": {"min_terms": 4, "max_terms": 6}},
    ],
}

JUDGED_BY_THE_PACKAGE: list[dict[str, Any]] = [
    {"dataset": "shortest_path", "ood": {"min_rows": 9, "max_rows": 12}, "train_problems": 100},
    {"dataset": "survo", "ood": {"max_board_size": 6, "max_empty": 8}, "train_problems": 100},
]

REGISTERED = [(name, options) for name in _TASKS for options in OPTION_SETS[name]]
# Of a dataset everything but the drawing, which as studies do it costs an import of the package for each part.
QUICK = [
    *((DRAWN_HERE if name == "reasoning_gym" else name, options) for name, options in REGISTERED),
    *((DRAWN_HERE, options) for options in JUDGED_BY_THE_PACKAGE),
]
# Of six cards a demonstration takes most of a second: every formula is looked for.
SLOW = [
    *((name, options, 300) for name, options in REGISTERED),
    *((name, {}, 300) for name in ("matrix_rank", "determinant", "navigation")),
    *(("reasoning_gym", options, 300) for options in JUDGED_BY_THE_PACKAGE),
    ("general_points", {"cards": 6}, 20),
    ("general_points", {"cards": 4, "ood": "larger", "ood_cards": 6}, 20),
]

for_each = pytest.mark.parametrize(("name", "options"), QUICK, scope="module")
"""Of this scope: all tests of one set of options follow each other, while its problems are in memory."""


# The tasks that are there


class Watched:
    """Keeps every verdict of a task, to be held against an oracle when the clock no longer runs."""

    def __init__(self, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.task = task
        self.seen: dict[tuple[str, ...], tuple[Problem, bool]] = {}
        kind = type(task)
        judge, judge_turn = kind.judge, getattr(kind, "judge_turn", None)

        def watched(own: Any, problem: Problem, text: str) -> Verdict:
            verdict: Verdict = judge(own, problem, text)
            self.seen[problem.id, text] = problem, verdict.solved
            return verdict

        def watched_turn(own: Any, problem: Problem, earlier: Sequence[str], text: str) -> Verdict:
            assert judge_turn is not None
            verdict: Verdict = judge_turn(own, problem, earlier, text)
            self.seen[(problem.id, *earlier, "a turn", text)] = problem, verdict.solved or verdict.accepted
            return verdict

        monkeypatch.setattr(kind, "judge", watched)
        if judge_turn is not None:
            monkeypatch.setattr(kind, "judge_turn", watched_turn)

    def agrees(self, oracle: Oracle) -> bool:
        """Whether there are right and wrong answers; that each is what the oracle says is asserted."""
        wrong = []
        for (_, *earlier, text), (problem, right) in self.seen.items():
            turn = earlier[-1:] == ["a turn"]
            says = navigation_turn(self.task)(problem, earlier[:-1], text) if turn else oracle(problem, text)
            if says != right:
                wrong.append(f"{problem.id}: {'solved' if right else 'not solved'}: {text[-300:]!r}")
        assert not wrong, "\n".join(wrong[:5])
        return len({right for _, right in self.seen.values()}) == 2


def checked(
    name: str, options: dict[str, Any], effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> Conformance:
    """What a check finds with the task's oracle, which also agrees with every verdict on the way."""
    task = get_task(name, **options)
    oracle, watched = oracle_of(name, task), Watched(task, monkeypatch)
    found = check_task(task, oracle=oracle, effort=effort)
    assert found.kept, "\n".join(map(str, found.breaches))
    without = {"oracle"} if options in JUDGED_BY_THE_PACKAGE else set()
    assert set(LAWS) - set(found.checked) == {"processes"} | without
    assert oracle is None or watched.agrees(oracle)
    return found


@for_each
def test_registered_tasks_keep_every_law(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked(name, options, Effort(), monkeypatch).calls >= 400


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "options", "problems"), SLOW)
def test_registered_tasks_keep_every_law_over_ten_thousand_answers(
    name: str, options: dict[str, Any], problems: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    effort = Effort(problems=problems, calls=10_000, most=50_000)
    found = checked(name, options, effort, monkeypatch)
    print(f"\n{name} {options}: {found.calls} answers, the slowest {found.slowest * 1000:.1f} ms")
    assert found.calls >= 10_000
    apart = check_apart(name, options, Effort(problems=5, calls=100, most=0))
    assert apart.kept, "\n".join(map(str, apart.breaches))


answers = (
    st.text()
    | st.text(alphabet="0123456789+-*/()=[]{}\"',: \n")
    | st.binary().map(lambda b: b.decode("latin-1"))
)


@for_each
@given(data=st.data(), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_seed_rule_or_answer_breaks_a_law(
    name: str, options: dict[str, Any], data: st.DataObject, seed: int
) -> None:
    task, findings = get_task(name, **options), Findings(Effort())
    oracle = oracle_of(name, task)
    rule = data.draw(st.sampled_from(rules_of(task)))
    [problem] = task.problems(rule, "eval", 1, seed=seed)
    texts = check_texts(task, None, [problem], findings)
    judging = Judging(task, None, findings, texts, oracle)
    right = texts.demonstrations[problem.id][0]
    tried = [
        *data.draw(st.lists(st.one_of(answers, st.builds(right.replace, answers, answers)), max_size=8)),
        *near_answers(name, random.Random(seed), problem, right, 8),
    ]
    for answer in tried:
        judging.check_answer(problem, answer, "any text")
        assert oracle is None or oracle(problem, answer) == task.judge(problem, answer).solved, answer
    assert findings.result.kept, "\n".join(map(str, findings.result.breaches))


def test_the_documented_task_keeps_every_law_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tasks.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    found = check_apart("my_tasks:Sign", {"largest": 30})
    assert found.kept, "\n".join(map(str, found.breaches))
    assert set(LAWS) - set(found.checked) == {"oracle"}


def test_the_documented_oracle_finds_nothing_wrong_with_the_documented_task(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(EXAMPLE)
    (tmp_path / "check_my_tasks.py").write_text(ORACLE)
    run = subprocess.run(
        [sys.executable, "check_my_tasks.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


# From outside: processes, the command, studies


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make `own_tasks:Own`, the documented task with methods replaced, importable."""
    (tmp_path / "own_tasks.py").write_text(
        f"{EXAMPLE}\n\nclass Own(Sign):\n{textwrap.indent(code, '    ')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


HASHED = """
def problems(self, rule, split, count, seed=0):
    found = super().problems(rule, split, max(count, self.available(rule, split)), seed)
    return sorted(found, key=lambda problem: hash(problem.id))[:count]
"""
HANGS = """
def judge(self, problem, text):
    while text == "I do not know.":
        pass
    return super().judge(problem, text)
"""
DIES = """
def judge(self, problem, text):
    return __import__("os")._exit(3) if text == "null" else super().judge(problem, text)
"""


@pytest.mark.parametrize(
    ("code", "breach"),
    [
        (HASHED, r"processes: problems\('id', 'train'.* is another in another process; use hashlib"),
        (HANGS, r"total: problem 'id:.*': judge\(\) of an answer \(plain words\) does not end within 1 s"),
        (
            DIES,
            r"total: problem 'id:.*': judge\(\) of an answer \(JSON null\) ends the process \(exit code 3\)",
        ),
    ],
)
def test_what_a_process_cannot_tell_of_itself_is_told(
    code: str, breach: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, monkeypatch, code)
    found = check_apart("own_tasks:Own", {"largest": 20}, Effort(problems=4, calls=100, hung_seconds=1.0))
    assert re.match(breach, str(found.breaches[0]))
    assert len(found.broken) == 1


def test_the_command_prints_a_table_of_laws_and_every_breach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(tmp_path, monkeypatch, "def fingerprint(self):\n    return 'own'\n")
    assert command_check.main(["--check-task", "own_tasks:Own", "largest=25", "--calls", "120"]) == 1
    told = capsys.readouterr().out
    assert told.startswith("task own_tasks:Own largest=25\n")
    assert re.search(r"^fingerprint +\d+ +1  the fingerprint is that of the options$", told, re.MULTILINE)
    assert re.search(r"^bounded +\d+ +-  the judge takes 50 ms at most$", told, re.MULTILINE)
    assert re.search(
        r"^\d+ answers judged; the slowest took [\d.]+ ms \(.+, problem '.+'\)$", told, re.MULTILINE
    )
    assert "- fingerprint: fingerprint() with largest=26 is the same; hash all options" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chess"], "no task 'chess'; use one of general_points"),
        (["no_such_tasks:Task"], "no module no_such_tasks"),
        (["general_points", "card=3"], "task.card: there is no such option; use cards"),
        (["general_points", "cards=9"], "task.cards (got 9): input should be less than or equal to 6"),
        (["general_points", "cards"], "option 'cards': write option=value"),
        (["general_points", "cards=["], "cards: the value '[' is not valid YAML"),
        (["general_points", "--calls", "0"], "--calls (got 0)"),
    ],
)
def test_the_command_ends_with_two_where_there_is_nothing_to_check(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_check.main(["--check-task", *arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert told in error


def test_the_job_checks_a_task_of_the_directory_that_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(EXAMPLE)
    job = subprocess.run(
        [sys.executable, ROOT / "jobs" / "evaluate.py", "--check-task=my_tasks:Sign", "largest=20"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert f"The task keeps all {len(LAWS) - 1} laws." in job.stdout
    assert not [path for path in tmp_path.iterdir() if path.name not in ("my_tasks.py", "__pycache__")]


def test_a_study_refuses_a_task_of_ones_own_that_breaks_a_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, monkeypatch, "def demonstration(self, problem, seed=0):\n    return 'answer: 1'\n")
    study = load_study("tiny", ["task={name: own_tasks:Own}", f"storage={tmp_path / 'runs'}"])
    with pytest.raises(InputError, match=r"task\.name \(got 'own_tasks:Own'\): .*demonstrations: problem"):
        preflight(study)


def test_the_check_of_a_study_is_short() -> None:
    effort = Effort.quick()
    start = time.process_time()
    found = check_task(get_task("tests.toy_task:ToyTask"), effort=effort)
    assert time.process_time() - start < 2
    assert found.kept, "\n".join(map(str, found.breaches))


# Guesses


@pytest.mark.parametrize(
    ("said", "leaks"),
    [
        ("It is 4711.", True),
        ("Try  ANSWER : 4711 .", True),
        ("Use one of 4711 and 1234.", False),  # the same for another answer
        ("The number 14711 is wrong.", False),
        ("Wrong.", False),
    ],
)
def test_a_leak_is_what_is_said_of_this_answer_and_of_no_other(said: str, leaks: bool) -> None:
    heard = Leaks({"a": "?", "b": "?"}, {"a": ["answer: 4711"], "b": ["answer: 1234"]})
    heard.heard("a", "I do not know.", said)
    if "one of" in said:
        heard.heard("b", "I do not know.", said)
    heard.heard("a", "Is it answer: 4711 or 4711?", said)  # what was said by the answer itself is none
    findings = Findings(Effort())
    heard.decide(findings)
    assert bool(findings.result.broken) == leaks


def test_other_options_differ_in_one_field_each_and_are_valid() -> None:
    options = get_task("general_points").options
    others = dict(other_options(options))
    together = {"ood_faces", "ood_cards", "ood_targets"}  # none of them is valid without another
    assert {changed.partition("=")[0] for changed in others} == set(type(options).model_fields) - together
    for changed, other in others.items():
        differing = [
            name for name in type(options).model_fields if getattr(other, name) != getattr(options, name)
        ]
        assert differing == [changed.partition("=")[0]]


def test_hostile_answers_are_of_all_sizes_and_each_is_once() -> None:
    texts = [text for _, text in hostile_answers()]
    assert len(set(texts)) == len(texts) > 40
    assert {0, 10**6} <= set(map(len, texts))
