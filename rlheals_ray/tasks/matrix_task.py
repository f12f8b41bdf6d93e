"""What the tasks on matrices share: options, the pool that problems come from, wording and verdicts.

A problem is a matrix; its answer is one integer, `{"answer": 3}`, which short working may precede.
Rewards are the published +5 solved and -1 wrong (arXiv 2509.12235); an answer without the form asked for
gets -3, as in general_points.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rlheals_ray.config import InputError
from rlheals_ray.tasks.integer_matrix import Matrix, Row, find_answer, group_of
from rlheals_ray.tasks.splits import FEWEST, check_count, check_split, in_share, in_turn
from rlheals_ray.tasks.task import Problem, Rule, Split, Verdict

# Raise it whenever problems, prompts, demonstrations or verdicts change for the same options.
_CODE_VERSION = 1

_SOLVED, _WRONG, _MALFORMED = 5.0, -1.0, -3.0

_SMALL = 10**5
"""Where there may be fewer matrices than this, the problems are counted before anything starts."""

_SPLIT_SALT = "matrix"

Wording = Literal["compact", "paper"]
Entry = Annotated[int, Field(strict=True, ge=-20, le=20)]
Entries = tuple[Entry, Entry]


class MatrixOptions(BaseModel):
    """What a study may choose in either task; the shapes are the task's own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    id_entries: Entries = (-4, 4)
    """Least and greatest entry under the ID rule."""
    ood_entries: Entries = (-5, 5)
    wording: Wording = "paper"
    """`compact` is one space-separated word per token. The published prompts are not to be had: `paper` is our own
    text in the layout of the published GeneralPoints prompt."""
    working: Annotated[bool, Field(strict=True)] = True
    """Whether demonstrations show their steps."""
    held_out: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.4
    """Share of the ID groups that evaluation keeps for itself."""
    pool: Annotated[int, Field(strict=True, ge=500, le=200_000)] = 10_000
    """How many matrices are drawn for each rule, where there are more; problems come from these alone."""

    @field_validator("id_entries", "ood_entries")
    @classmethod
    def _ascending(cls, entries: Entries) -> Entries:
        if entries[0] >= entries[1]:
            raise ValueError(
                "the least entry comes first and is less than the greatest; write for example [-4, 4]"
            )
        return entries


def refuse_same_rule(same_shape: bool, id_entries: Entries, ood_entries: Entries) -> None:
    """Raises ValueError where the OOD rule asks nothing that the ID rule does not ask."""
    if same_shape and id_entries[0] <= ood_entries[0] and ood_entries[1] <= id_entries[1]:
        raise ValueError(
            f"matrices of this shape with ood_entries={list(ood_entries)} are among those of the ID rule with "
            f"id_entries={list(id_entries)}; give ood another shape or entries beyond these"
        )


@dataclass(frozen=True)
class MatrixProblem(Problem):
    """A matrix, by its rows, and the integer asked for."""

    rows: Matrix
    answer: int


class MatrixTask(ABC):
    """A task on matrices; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name: ClassVar[str]
    asked: ClassVar[str]
    """What is to be found, in one word."""

    def __init__(self, options: MatrixOptions) -> None:
        self.options = options
        splits: tuple[tuple[Rule, Split], ...] = (("id", "train"), ("id", "eval"), ("ood", "eval"))
        for rule, split in splits:
            if self.space(rule) > _SMALL or (there := self.available(rule, split)) >= FEWEST:
                continue
            raise InputError(
                f"task.{rule}_entries (got {list(self.entries(rule))}): with these options there are {there} distinct "
                f"{rule} {split} problems, fewer than {FEWEST}; widen {rule}_entries, take larger matrices or change "
                "held_out."
            )

    @abstractmethod
    def space(self, rule: Rule) -> int:
        """An upper bound on the distinct matrices of the rarest kind."""

    @abstractmethod
    def strata(self, rule: Rule) -> list[list[MatrixProblem]]:
        """Distinct problems in random order, by kinds that are to be equally frequent; always the same."""

    @abstractmethod
    def steps(self, problem: MatrixProblem) -> list[str]:
        """The working, each line a true statement."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.options == getattr(other, "options", None)

    def __hash__(self) -> int:
        return hash((self.name, self.options))

    def entries(self, rule: Rule) -> Entries:
        return self.options.id_entries if rule == "id" else self.options.ood_entries

    def problems(self, rule: Rule, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """Distinct matrices, the kinds in turn and, within each, one of every group before a second of any.

        Raises InputError when there are fewer than `count`; the OOD rule has no train split at all.
        """
        there, options = self.available(rule, split), self.options
        told = (
            f"{rule}_entries={list(self.entries(rule))}, pool={options.pool} and held_out={options.held_out}"
        )
        remedy = f"ask for {there} at most, raise pool, widen {rule}_entries or take larger matrices"
        check_count(count, there, rule, split, told, remedy)
        problems: list[Problem] = [
            *in_turn(_pool(self, rule, split), random.Random(f"{seed}/{rule}/{split}"))
        ]
        return problems[:count]

    def available(self, rule: Rule, split: Split) -> int:
        """How many problems the split has: all that exist, or those among the `pool` drawn of more than that."""
        check_split(rule, split)
        return sum(map(len, _pool(self, rule, split)))

    def prompt(self, problem: Problem) -> str:
        rows = self._own(problem).rows
        if self.options.wording == "compact":
            return f"{self.asked} {self.text(rows)} reply"
        leave = "You may work step by step; end" if self.options.working else "Reply"
        return (
            "[Task Description]\n"
            "You are an expert in linear algebra. You will receive a matrix of integers with "
            f"{len(rows)} rows and {len(rows[0])} columns.\n"
            f"Your goal is to find the {self.asked} of the matrix.\n\n"
            "[Input]\n"
            f"Matrix: {self.text(rows)}\n\n"
            "[Output]\n"
            f"{leave} with one JSON object:\n"
            f'{{"answer": n}}, where n is the {self.asked}, an integer'
        )

    def demonstration(self, problem: Problem, seed: int = 0) -> str:
        """The same for every seed."""
        own = self._own(problem)
        steps = self.steps(own) if self.options.working else []
        if self.options.wording == "compact":
            return " . ".join([*steps, f'{{"answer": {own.answer} }}'])
        return "\n".join([*steps, f'{{"answer": {own.answer}}}'])

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Reads the last object in `text` that has a field `answer`, which must be an integer as JSON writes it."""
        own, written = self._own(problem), find_answer(text)
        if written is None:
            return Verdict(
                _MALFORMED, False, False, self._feedback("illegal", "you gave no integer as the answer")
            )
        # As text: an integer of thousands of digits is never converted.
        if written == str(own.answer) or (written == "-0" and own.answer == 0):
            return Verdict(_SOLVED, True, True, "")
        return Verdict(
            _WRONG,
            False,
            True,
            self._feedback("nomatch", f"your answer is not the {self.asked} of the matrix"),
        )

    def reply(self, verdict: Verdict) -> str:
        return verdict.feedback

    def fingerprint(self) -> str:
        declared = [self.name, _CODE_VERSION, self.options.model_dump(mode="json")]
        return hashlib.blake2b(json.dumps(declared, sort_keys=True).encode(), digest_size=16).hexdigest()

    def problem_of(self, rows: Matrix, rule: Rule, answer: int) -> MatrixProblem:
        """The problem of one matrix, with its id and group; the answer is taken as given."""
        name = f"{self.name}:{rule}:{';'.join(','.join(map(str, row)) for row in rows)}"
        return MatrixProblem(name, rule, group_of(rows), rows, answer)

    def text(self, rows: Matrix) -> str:
        """`[[1, 2], [3, 4]]`, or `1 2 ; 3 4` in the compact wording."""
        if self.options.wording == "compact":
            return " ; ".join(map(self.row_text, rows))
        return f"[{', '.join(map(self.row_text, rows))}]"

    def row_text(self, row: Row) -> str:
        return " ".join(map(str, row)) if self.options.wording == "compact" else str(list(row))

    def _feedback(self, kind: str, reason: str) -> str:
        return (
            f"failed {kind}"
            if self.options.wording == "compact"
            else f"You failed this trial because {reason}."
        )

    def _own(self, problem: Problem) -> MatrixProblem:
        if not isinstance(problem, MatrixProblem) or not problem.id.startswith(f"{self.name}:"):
            raise TypeError(f"{problem.id!r} is not a problem of {self.name}")
        return problem


@lru_cache(maxsize=32)
def _pool(task: MatrixTask, rule: Rule, split: Split) -> tuple[tuple[MatrixProblem, ...], ...]:
    """The split's problems by kind, as many of each as of the rarest; `ood` shares no group with `id`."""
    if rule == "ood" and split == "train":
        return ()
    if rule == "ood":
        known = {problem.group for stratum in _strata(task, "id") for problem in stratum}
        kept = [[p for p in stratum if p.group not in known] for stratum in _strata(task, "ood")]
    else:
        share, wanted = task.options.held_out, split == "eval"
        kept = [
            [p for p in stratum if in_share(f"{_SPLIT_SALT}/{p.group}", share) == wanted]
            for stratum in _strata(task, "id")
        ]
    return tuple(zip(*zip(*kept, strict=False), strict=True))


@lru_cache(maxsize=8)
def _strata(task: MatrixTask, rule: Rule) -> list[list[MatrixProblem]]:
    return task.strata(rule)
