"""How fast problems are dealt and answers judged, beside the published environment's way to deal a solvable hand.

All in this process, on one core. What is counted is processor time of the process, which other processes on
the machine disturb less than they disturb the clock on the wall.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle, islice, permutations, product
from typing import Any, cast

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.measure import Figure, Outcome, Ratio, alternate, at_least

PROBLEMS_TARGET = 10_000
JUDGE_TARGET = 50_000
TARGET = 24
NOTES = (
    "every repetition deals from empty caches, in this system as in the baseline, which has none",
    "baseline: permutations x operators x bracketings as strings through eval, until the first that makes the "
    "target; beside it the same expressions in floating point, without strings and eval",
    "problems are dealt many to a hand (a multiset of values), which is solved once; hands solved are the same "
    "distinct hands for this system's solver and both baselines, and nothing else",
    "left out in the baseline's favour: hands without a solution, which it must search to the end before it "
    "draws another, and the image that it draws of every hand",
    "judged: each answer once, all different: right ones, wrong formulas, illegal formulas and cut-off objects",
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--problems", type=positive, default=10_000, help="dealt in one call")
    parser.add_argument("--answers", type=positive, default=6_000, help="judged")
    parser.add_argument(
        "--hands", type=positive, default=150, help="of these problems, that each solver solves"
    )
    parser.add_argument("--cards", type=int, choices=(2, 3, 4), default=4)


def run(options: Namespace) -> Outcome:
    from rlheals_ray.tasks import get_task
    from rlheals_ray.tasks.solver import solvable

    task = get_task("general_points", cards=options.cards, targets=[TARGET])
    problems: list[Any] = task.problems("id", "train", options.problems)
    answers = [
        (problem, _answer(task, problem, i))
        for i, problem in enumerate(islice(cycle(problems), options.answers))
    ]
    by_hand = {tuple(sorted(problem.values)): problem.values for problem in reversed(problems)}
    hands = list(reversed(by_hand.values()))[: options.hands]

    def deal(repetition: int) -> float:
        _forget()
        return _rate(options.problems, lambda: task.problems("id", "train", options.problems, repetition))

    def solve(_: int) -> float:
        _forget()
        return _rate(len(hands), lambda: [solvable(hand, TARGET) for hand in hands])

    def judge(_: int) -> float:
        return _rate(len(answers), lambda: [task.judge(problem, text) for problem, text in answers])

    arms: dict[str, Callable[[int], float]] = {
        "dealt": deal,
        "solved": solve,
        "eval": lambda _: _rate(len(hands), lambda: [first_formula(hand, TARGET) for hand in hands]),
        "bare": lambda _: _rate(len(hands), lambda: [first_value(hand, TARGET) for hand in hands]),
        "judged": judge,
    }
    alternate(arms, 1)
    rates = {name: tuple(values) for name, values in alternate(arms, options.repetitions).items()}
    dealt = Figure("problems dealt", "problems/s", rates["dealt"])
    judged = Figure("answers judged", "calls/s", rates["judged"])
    solved = Figure("hands solved by this system", "hands/s", rates["solved"])
    published = Figure("hands solved by the published search (eval)", "hands/s", rates["eval"])
    bare = Figure("hands solved by the same search without eval", "hands/s", rates["bare"])
    ratios = [
        _against(dealt, PROBLEMS_TARGET),
        _against(judged, JUDGE_TARGET),
        solved.over(published, "hands solved ÷ the published search"),
        solved.over(bare, "hands solved ÷ the same search without eval"),
    ]
    settings = {key: str(value) if key == "json" else value for key, value in vars(options).items()}
    return Outcome({**settings, "target": TARGET}, ratios, [dealt, judged, solved, published, bare], NOTES)


def first_formula(values: Sequence[int], target: int) -> str | None:
    """BASELINE. The first formula that brute force comes upon, or None: every order of the cards, every choice of
    operators, every bracketing, each put together as a string and evaluated by Python, within 1e-6 of the target."""
    for order in permutations(values):
        for signs in product("+-*/", repeat=len(values) - 1):
            for template in _templates(len(values)):
                text = template.format(*order, s=signs)
                try:
                    if abs(eval(text) - target) < 1e-6:  # of our own making
                        return text
                except ZeroDivisionError:
                    continue
    return None


def first_value(values: Sequence[int], target: int) -> bool:
    """BASELINE. The same search in floating-point numbers, without strings: what is left when eval is not counted."""
    return any(
        abs(value - target) < 1e-6 for order in permutations(map(float, values)) for value in _values(order)
    )


@cache
def _templates(count: int, start: int = 0) -> tuple[str, ...]:
    """Every bracketing of `count` numbers, as templates whose fields are the numbers and `s`, the operators."""
    if count == 1:
        return (f"{{{start}}}",)
    return tuple(
        f"({left}{{s[{start + size - 1}]}}{right})"
        for size in range(1, count)
        for left in _templates(size, start)
        for right in _templates(count - size, start + size)
    )


def _values(numbers: Sequence[float]) -> Iterator[float]:
    """The values of all operators and bracketings of numbers in their order."""
    if len(numbers) == 1:
        yield numbers[0]
        return
    for size in range(1, len(numbers)):
        for x in _values(numbers[:size]):
            for y in _values(numbers[size:]):
                yield x + y
                yield x - y
                yield x * y
                if y:
                    yield x / y


def _answer(task: Any, problem: Any, index: int) -> str:
    right = cast(str, task.demonstration(problem, index))
    kinds = (right, right.replace("+", "-").replace("*", "+"), right.replace("/", "//").replace(")", "", 1))
    return f"Answer {index}: {kinds[index % 3]}" if index % 6 != 5 else f"Answer {index}: {right[:-9]}"


def _forget() -> None:
    """Empties what the solver remembers of earlier hands."""
    from rlheals_ray.tasks import solver

    for remembered in vars(solver).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()


def _rate(count: int, work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return count / (time.process_time() - started)


def _against(figure: Figure, target: float) -> Ratio:
    wanted = Figure("target", figure.unit, (float(target),) * len(figure.values))
    return figure.over(wanted, f"{figure.name} ÷ {target:,} {figure.unit}", target=at_least(1))
