"""Laws of what a task writes: prompts, demonstrations, replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlheals_ray.tasks.conformance.effects import Effects
from rlheals_ray.tasks.conformance.laws import Findings, cause
from rlheals_ray.tasks.task import Problem, Task

DEMONSTRATION_SEEDS = (0, 1)


class Texts:
    """What a task wrote about a sample of problems, by problem id; problems that it failed at are left out."""

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}
        self.demonstrations: dict[str, list[str]] = {}


def check_texts(task: Task, twin: Task | None, problems: Sequence[Problem], findings: Findings) -> Texts:
    """Ask for prompts and demonstrations, of the task, again, and of an equal task."""
    written, effects = Texts(), Effects()

    def text(of: Task, problem: Problem, what: str, call: Callable[[Task], object]) -> str | None:
        findings.doing("texts", what, problem.id)
        try:
            with effects:
                got = call(of)
        except Exception as error:
            wrong = f"{what} raises {cause(error)}"
            findings.check(
                "texts", False, wrong, "give a text for every problem that problems() gives", problem.id
            )
            return None
        check_pure(findings, effects, what, problem.id)
        return str(got) if is_text(findings, got, what, problem.id) else None

    for problem in problems:
        if written.prompts and findings.late:
            break
        calls: dict[str, Callable[[Task], object]] = {"prompt()": lambda t, p=problem: t.prompt(p)}  # type: ignore[misc]
        for seed in DEMONSTRATION_SEEDS:
            calls[f"demonstration(seed={seed})"] = lambda t, p=problem, s=seed: t.demonstration(p, seed=s)  # type: ignore[misc]
        got = {}
        for what, call in calls.items():
            first = text(task, problem, what, call)
            if first is None:
                continue
            got[what] = first
            for which, of in (("a second time", task), ("of an equal task", twin)):
                if of is None or (again := text(of, problem, what, call)) is None:
                    continue
                findings.check(
                    "texts",
                    again == first,
                    f"{what} {which} gives another text",
                    "draw what is drawn with random.Random(str of the problem's id and the seed)",
                    problem.id,
                )
        if len(got) == len(calls):
            written.prompts[problem.id], *written.demonstrations[problem.id] = got.values()
    return written


def is_text(findings: Findings, got: object, what: str, problem: str) -> bool:
    """Whether it is a text that a tokenizer can read; a breach of `texts` where it is not."""
    if not isinstance(got, str) or not got.strip():
        wrong = (
            f"{what} gives {got!r}"
            if not isinstance(got, str) or len(got) < 20
            else f"{what} gives white space"
        )
    elif not is_unicode(got):
        wrong = f"{what} gives a lone surrogate, which no tokenizer reads"
    else:
        wrong = ""
    return findings.check("texts", not wrong, wrong, "give a str with words in it", problem)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_pure(findings: Findings, effects: Effects, what: str, problem: str) -> None:
    touched = effects.take()
    findings.check(
        "pure",
        not touched,
        f"{what} touches {' and '.join(touched)}",
        "compute from the arguments alone: random.Random(...) of its own, no files, no eval",
        problem,
    )
