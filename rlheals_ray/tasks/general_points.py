"""GeneralPoints: make a target from dealt cards, each used once.

The two rules differ in what face cards count: 10 each (`id`), or 11, 12, 13 (`ood`, where every deal
holds at least one); or in what else the option `ood` chooses (points_rules.py). Rewards are those of Chu et
al., arXiv 2501.17161: +5 solved, -1 legal without reaching the target, -2 wrong numbers, -3 no legal
formula.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import get_args

from rlheals_ray.config import InputError
from rlheals_ray.tasks.answer import Answer, find_answer
from rlheals_ray.tasks.deals import GeneralPointsProblem, counted, draw, groups, problem_of, reachable
from rlheals_ray.tasks.formula import Formula, FormulaError, parse
from rlheals_ray.tasks.points_options import GeneralPointsOptions
from rlheals_ray.tasks.points_rules import OOD_RULES, RANKS, Terms, id_terms
from rlheals_ray.tasks.solver import solutions, solvable
from rlheals_ray.tasks.spellings import second_shortest
from rlheals_ray.tasks.splits import FEWEST, check_count, check_split
from rlheals_ray.tasks.task import Problem, Rule, Split, Verdict
from rlheals_ray.tasks.wording import Fault, wording_of

# Raise it whenever problems, prompts, demonstrations or verdicts change for the same options.
_CODE_VERSION = 1

_SOLVED = 5.0
_PENALTY = {"illegal": -3.0, "numbers": -2.0, "nomatch": -1.0}
"""Most severe first."""


class GeneralPoints:
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "general_points"
    Options = GeneralPointsOptions

    def __init__(self, options: GeneralPointsOptions) -> None:
        self.options = options
        _check_targets(options)
        self.ood_rules = tuple(options.ood_rules)
        named = {"id": "id", **options.ood_rules}
        self._wordings = {
            rule: wording_of(options.wording, options.phrasing, named.values(), name)
            for rule, name in named.items()
        }
        self._terms: dict[Rule, Terms] = {
            "id": id_terms(options),
        } | {
            rule: replace(OOD_RULES[name].terms(options), rule=rule)
            for rule, name in options.ood_rules.items()
        }
        for rule, terms in self._terms.items():
            _check_enough(options, rule, terms)

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """Distinct ordered deals, dealt round-robin over (target, multiset) groups.

        Raises InputError when there are fewer than `count`; the OOD rule has no train split at all.
        """
        options = self.options
        check_split(rule, split, self._terms)
        terms = self._terms[rule]
        candidates = groups(terms, split, self._terms["id"], options.held_out)
        drawn: list[Problem] = list(islice(draw(candidates, f"{seed}/{terms.label}/{split}"), max(count, 0)))
        told = f"cards={terms.cards}, targets={list(terms.targets)} and held_out={options.held_out}"
        remedy = f"ask for {len(drawn)} at most, add targets, deal more cards or change held_out"
        check_count(count, len(drawn), rule, split, told, remedy)
        return drawn

    def available(self, rule: Rule, split: Split) -> int:
        """How many distinct ordered deals can be solved under the rule and lie in the split."""
        check_split(rule, split, self._terms)
        return _available(self._terms[rule], split, self._terms["id"], self.options.held_out)

    def deal(self, cards: Sequence[str], rule: Rule, target: int | None = None) -> GeneralPointsProblem:
        """The problem of one given deal, in its order; `target` may be left out when there is only one.

        Raises InputError for unknown cards, a wrong number of them, a target that is not the task's,
        or a deal without a solution.
        """
        check_split(rule, "eval", self._terms)
        terms = self._terms[rule]
        targets = terms.targets
        unknown = [card for card in cards if card not in RANKS]
        if unknown:
            raise InputError(f"cards: {unknown} are not cards; choose from {', '.join(RANKS)}, as strings.")
        if len(cards) != terms.cards:
            raise InputError(f"cards: {len(cards)} were dealt; this task deals {terms.cards}.")
        if target is None and len(targets) > 1:
            raise InputError(f"target: the task has several; name one of {list(targets)}.")
        chosen = targets[0] if target is None else target
        if chosen not in targets:
            raise InputError(f"target: {chosen} is not a target of this task; name one of {list(targets)}.")
        problem = problem_of(tuple(cards), terms, chosen)
        if not solvable(problem.values, chosen):
            raise InputError(
                f"cards: {list(cards)} cannot make {chosen} under the rule {rule!r}; deal other cards."
            )
        return problem

    def prompt(self, problem: Problem) -> str:
        own = _own(problem)
        return self._wordings[own.rule].prompt(own, self._terms[own.rule].faces)

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        """The shortest formula or, with probability `second_solution`, the second-shortest."""
        own = _own(problem)
        formulas = solutions(own.values, own.target)
        second = random.Random(f"{seed}/{own.id}").random() < self.options.second_solution
        return self._wordings[own.rule].answer(own, second_shortest(formulas) if second else formulas[0])

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Reads the last answer object in `text`; a missing one counts as an illegal formula.

        The field `number` must be the dealt values, and the formula must use each of them once, in
        any order; `cards` must be there but is not compared. A formula may end in `= target`.
        """
        own = _own(problem)
        answer = find_answer(text)
        faults = _faults(own, answer)
        if not faults:
            return Verdict(_SOLVED, True, True, "")
        penalties = [_PENALTY[fault.kind] for fault in faults]
        reward = sum(penalties) if self.options.additive_penalties else min(penalties)
        return Verdict(reward, False, answer is not None, self._wordings[own.rule].feedback(faults[0]))

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        declared = [self.name, _CODE_VERSION, self.options.declared()]
        return hashlib.blake2b(json.dumps(declared, sort_keys=True).encode(), digest_size=16).hexdigest()


@lru_cache(64)
def _check_targets(options: GeneralPointsOptions) -> None:
    """Raises InputError for a target that no deal of the trained rule makes: nobody would miss it afterwards."""
    terms, splits = id_terms(options), get_args(Split)
    for target in options.targets:
        if not all(reachable(target, terms, terms, options.held_out, split) for split in splits):
            raise InputError(
                f"task.targets (got {list(options.targets)}): no {options.cards} cards make {target} on both sides of "
                f"the split with held_out={options.held_out}; write other targets, deal more cards or change held_out."
            )


@lru_cache(256)
def _check_enough(options: GeneralPointsOptions, rule: Rule, terms: Terms) -> None:
    """Raises InputError where a split of the rule has too few deals for any comparison."""
    for split in get_args(Split) if rule == "id" else ("eval",):
        there = counted(terms, split, id_terms(options), options.held_out, FEWEST)
        if there < FEWEST:
            raise InputError(
                f"task.cards (got {options.cards}): with targets={list(options.targets)}, ood={options.ood!r} and "
                f"held_out={options.held_out} there are {there} distinct {rule} {split} problems, fewer than {FEWEST}; "
                "deal more cards, add targets or change held_out."
            )


@lru_cache(64)
def _available(terms: Terms, split: Split, trained: Terms, held_out: float) -> int:
    return counted(terms, split, trained, held_out)


def _own(problem: Problem) -> GeneralPointsProblem:
    if not isinstance(problem, GeneralPointsProblem):
        raise TypeError(f"{problem.id!r} is not a problem of general_points")
    return problem


def _faults(problem: GeneralPointsProblem, answer: Answer | None) -> list[Fault]:
    """Everything wrong with an answer, most severe first, at most one fault of each kind."""
    if answer is None:
        return [Fault("illegal", "your answer is not an object with the fields cards, number and formula")]
    try:
        formula = parse(answer.formula)
    except FormulaError as error:
        listed = _number_fault(problem, answer)
        return [Fault("illegal", f"your formula is illegal: {error}"), *listed]
    numbers = _formula_fault(problem, formula) or _number_fault(problem, answer)
    return [*numbers, *_value_fault(problem, formula)]


def _formula_fault(problem: GeneralPointsProblem, formula: Formula) -> list[Fault]:
    if sorted(formula.numbers) == sorted(problem.values):
        return []
    used, dealt = Counter(formula.numbers), Counter(problem.values)
    # A formula of hundreds of numbers must not get hundreds of words of feedback.
    most = len(problem.values)
    invalid = tuple(sorted((used - dealt).elements()))[:most]
    unused = tuple(sorted((dealt - used).elements()))
    reason = "your formula must use the number of each card exactly once"
    if invalid:
        reason += f"; it uses {_listed(invalid)} too often or without such a card"
    if unused:
        reason += f"; it does not use {_listed(unused)}"
    return [Fault("numbers", reason, invalid, unused)]


def _number_fault(problem: GeneralPointsProblem, answer: Answer) -> list[Fault]:
    values = [str(value) for value in problem.values]
    if sorted(answer.number) == sorted(values):
        return []
    written, dealt = Counter(answer.number), Counter(values)
    most = len(problem.values)
    whole = (
        text for text in (written - dealt).elements() if text.isascii() and text.isdigit() and len(text) <= 4
    )
    invalid = tuple(sorted(map(int, whole)))[:most]
    unused = tuple(sorted(int(text) for text in (dealt - written).elements()))
    return [Fault("numbers", "the field number does not list what your cards count as", invalid, unused)]


def _value_fault(problem: GeneralPointsProblem, formula: Formula) -> list[Fault]:
    target = problem.target
    if formula.value == target:
        if formula.claimed in (None, target):
            return []
        return [Fault("nomatch", f"your formula says that it equals {formula.claimed}, not {target}")]
    value = str(formula.value) if _short(formula.value) else "something else"
    return [Fault("nomatch", f"your formula equals {value}, not {target}")]


def _short(value: Fraction) -> bool:
    return max(abs(value.numerator), value.denominator) < 10**6


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
