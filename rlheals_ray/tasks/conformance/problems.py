"""Laws of a task's problems: their lists, ids, groups and splits."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from rlheals_ray.config import InputError
from rlheals_ray.tasks.conformance.effects import Effects
from rlheals_ray.tasks.conformance.laws import Findings, cause
from rlheals_ray.tasks.task import Problem, Rule, Split, Task, ood_rules

SEEDS = (0, 1, 7)


@dataclass
class Drawn:
    """Problems that were seen: a sample of each part, and everything by id."""

    samples: dict[tuple[Rule, Split], list[Problem]] = field(default_factory=dict)
    seen: dict[tuple[Rule, Split], dict[str, Problem]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def sample(self) -> list[Problem]:
        """The parts by turns, so that the first few are of all of them; of each id one problem."""
        by_turns = chain.from_iterable(zip_longest(*self.samples.values()))
        distinct: dict[str, Problem] = {}
        for problem in by_turns:
            if problem is not None:
                distinct.setdefault(problem.id, problem)
        return list(distinct.values())


class Drawing:
    """Draws problems and holds them against the laws."""

    def __init__(self, task: Task, twin: Task | None, findings: Findings) -> None:
        self._task, self._twin, self._findings = task, twin, findings
        self._effects = Effects()
        self.drawn = Drawn()

    def check(self) -> Drawn:
        for rule, split in parts_of(self._task):
            self._check_part(rule, split)
        self._check_ids_of_rules()
        self._check_split()
        self._check_ood_training()
        return self.drawn

    def _check_part(self, rule: Rule, split: Split) -> None:
        available = self._available(rule, split)
        if not available:
            return
        effort = self._findings.effort
        count = min(available, effort.problems)
        for seed in SEEDS:
            if seed != SEEDS[0] and self._findings.late:
                break
            problems = self._draw(self._task, rule, split, count, seed)
            if problems is None:
                return
            if seed == SEEDS[0]:
                self.drawn.samples[rule, split] = problems
            self._check_again(rule, split, seed, problems)
        if available <= effort.most:
            self._check_whole(rule, split, available)
        elif not self._findings.late:
            self._draw(self._task, rule, split, effort.most, SEEDS[0])

    def _available(self, rule: Rule, split: Split) -> int:
        call = f"available({rule!r}, {split!r})"
        self._findings.doing("available", call)
        try:
            available = self._task.available(rule, split)
        except Exception as error:
            self._findings.check("available", False, f"{call} raises {cause(error)}", "give a number")
            return 0
        if not _is_count(available):
            self._findings.check("protocol", False, f"{call} gives {available!r}", "give an int of 0 or more")
            return 0
        self._findings.check(
            "available", available > 0, f"{call} gives 0", "let every rule have problems to evaluate"
        )
        return available

    def _draw(self, task: Task, rule: Rule, split: Split, count: int, seed: int) -> list[Problem] | None:
        """The problems, or None where what came is no list of them; whatever the list itself shows is checked."""
        call = f"problems({rule!r}, {split!r}, {count}, seed={seed})"
        check = self._findings.check
        self._findings.doing("available", call)
        try:
            with self._effects:
                problems = task.problems(rule, split, count, seed=seed)
        except Exception as error:
            check(
                "available",
                False,
                f"{call} raises {cause(error)}",
                "give as many problems as available() says",
            )
            return None
        changed = [effect for effect in self._effects.take() if effect not in ("files", "the network")]
        check(
            "pure",
            not changed,
            f"{call} changes {' and '.join(changed)}",
            "use random.Random(...) of its own",
        )
        if not _are_problems(problems):
            check(
                "protocol",
                False,
                f"{call} gives no list of Problem with str ids and groups",
                "see tasks.Problem",
            )
            return None
        if not check(
            "available",
            len(problems) == count,
            f"{call} gives {len(problems)} problems",
            "give exactly `count`, or raise InputError",
        ):
            return None
        self._check_ids(rule, split, call, problems)
        for problem in problems:
            check(
                "rule",
                problem.rule == rule,
                f"{call} gives a problem of rule {problem.rule!r}",
                "set Problem.rule to the rule asked for",
                problem.id,
            )
        return problems

    def _check_ids(self, rule: Rule, split: Split, call: str, problems: Sequence[Problem]) -> None:
        seen, listed = self.drawn.seen[rule, split], set()
        for problem in problems:
            remedy = "make the id spell out all that the problem depends on, and nothing else"
            if problem.id in listed:
                self._findings.check("ids", False, f"{call} gives this id twice", remedy, problem.id)
                continue
            listed.add(problem.id)
            first = seen.setdefault(problem.id, problem)
            self._findings.check(
                "ids",
                first == problem,
                f"{call} gives another problem of this id than was given before",
                remedy,
                problem.id,
            )

    def _check_again(self, rule: Rule, split: Split, seed: int, problems: list[Problem]) -> None:
        call = f"problems({rule!r}, {split!r}, {len(problems)}, seed={seed})"
        check = self._findings.check
        same = True
        for which, task in (("a second time", self._task), ("of an equal task", self._twin)):
            if task is None:
                continue
            again = self._draw(task, rule, split, len(problems), seed)
            differing = _first_difference(problems, again or [])
            same &= check(
                "deterministic",
                differing is None,
                f"{call} {which} gives another list from here on",
                "draw with random.Random(str of the arguments); give problems an __eq__ by value",
                differing,
            )
        for shorter in sorted({1, len(problems) // 2} if same else set()):
            fewer = self._draw(self._task, rule, split, shorter, seed)
            differing = _first_difference(problems[:shorter], fewer or [])
            check(
                "prefix",
                differing is None,
                f"{call} does not begin with the {shorter} problems that a count of {shorter} gives",
                "order all problems first, by the seed alone, and cut then",
                differing,
            )
        for problem in problems:
            self._check_travels(problem)

    def _check_travels(self, problem: Problem) -> None:
        try:
            arrived = pickle.loads(pickle.dumps(problem))
        except Exception as error:
            what, kept = f"it cannot be pickled ({cause(error)})", False
        else:
            what, kept = "it is another after pickling", arrived == problem
        self._findings.check(
            "travels",
            kept,
            what,
            "make it a frozen dataclass of plain values, in a module that can be imported",
            problem.id,
        )

    def _check_whole(self, rule: Rule, split: Split, available: int) -> None:
        if self._draw(self._task, rule, split, available, SEEDS[-1]) is None:
            return
        call = f"problems({rule!r}, {split!r}, {available + 1})"
        self._findings.doing("available", call)
        got = ""
        try:
            more = self._task.problems(rule, split, available + 1)
            got = f"gives {len(more)} problems"
        except InputError:
            pass
        except Exception as error:
            got = f"raises {cause(error)}"
        self._findings.check(
            "available",
            not got,
            f"{call} {got}, but available() says {available}",
            "raise rlheals_ray.config.InputError where there are fewer than asked for",
        )

    def _check_ids_of_rules(self) -> None:
        before: dict[str, str] = {}
        for rule, split in parts_of(self._task):
            mine = self.drawn.seen[rule, split]
            for name in mine if rule != "id" else ():
                self._findings.check(
                    "probes",
                    name not in before,
                    f"a problem of rule {rule!r} has this id, and one of {before.get(name)} as well",
                    "put the rule into the id",
                    name,
                )
            before |= dict.fromkeys(mine, f"rule {rule!r}, split {split!r},")

    def _check_split(self) -> None:
        train, held_out = self.drawn.seen["id", "train"], self.drawn.seen["id", "eval"]
        groups = {problem.group for problem in train.values()}
        for name, problem in held_out.items():
            shared = "problem" if name in train else "group" if problem.group in groups else ""
            what = (
                "it is in training and in evaluation"
                if shared == "problem"
                else f"its group {problem.group!r} has training problems as well"
            )
            self._findings.check(
                "split",
                not shared,
                what,
                "split groups, not problems: decide by a hash of Problem.group (hashlib, not hash())",
                name,
            )

    def _check_ood_training(self) -> None:
        for rule in ood_rules(self._task):
            got = ""
            self._findings.doing("ood training", f"problems({rule!r}, 'train', 1)")
            try:
                if available := self._task.available(rule, "train"):
                    got = f"available({rule!r}, 'train') gives {available!r}"
                if self._task.problems(rule, "train", 1):
                    got = f"problems({rule!r}, 'train', 1) gives a problem"
            except InputError:
                pass
            except Exception as error:
                got = f"asking for OOD training problems raises {cause(error)}"
            self._findings.check(
                "ood training", not got, got, "let available() give 0 and problems() raise InputError"
            )


def parts_of(task: Task) -> list[tuple[Rule, Split]]:
    """Where a task has problems."""
    ood: list[tuple[Rule, Split]] = [(rule, "eval") for rule in ood_rules(task)]
    return [("id", "train"), ("id", "eval"), *ood]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_problems(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(problem, Problem)
        and all(isinstance(text, str) and text for text in (problem.id, problem.group))
        for problem in value
    )


def _first_difference(some: Sequence[Problem], others: Sequence[Problem]) -> str | None:
    """The id of the first problem of `some` that `others` do not have in its place; None where all are equal."""
    for index, problem in enumerate(some):
        if index >= len(others) or others[index] != problem:
            return problem.id
    return None
