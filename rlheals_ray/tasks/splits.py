"""Which groups lie on which side of a split, and how problems are spread over groups: for every task alike."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from rlheals_ray.config import InputError
from rlheals_ray.tasks.task import Problem, Rule

P = TypeVar("P", bound=Problem)

FEWEST = 100
"""Options that leave a split with fewer distinct problems are refused."""


def in_share(name: str, share: float) -> bool:
    """Whether what has this name belongs to a share (0 to 1) of all names: a fixed draw, whatever else is drawn."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def check_split(rule: Rule, split: str, rules: Iterable[Rule] = ("id", "ood")) -> None:
    """Raises InputError for a rule or a split that does not exist."""
    for field, value, known in (("rule", rule, tuple(rules)), ("split", split, ("train", "eval"))):
        if value not in known:
            raise InputError(f"{field}: there is no {value!r}; use one of {', '.join(known)}.")


def check_count(count: int, there: int, rule: Rule, split: str, options: str, remedy: str) -> None:
    """Raises InputError unless `count` problems can be had of the `there` that `options` leave."""
    if count < 0:
        raise InputError(f"count: {count} is negative; ask for 0 problems or more.")
    if count > there:
        if rule != "id" and split == "train":
            remedy = "the OOD rule is only ever evaluated: use split='eval'"
        raise InputError(
            f"count: {count} {rule} {split} problems were asked for, but with {options} there are {there} distinct "
            f"ones; {remedy}."
        )


def in_turn(strata: Iterable[Sequence[P]], rng: random.Random) -> list[P]:
    """One problem of each stratum in turn, and within each, one of every group before a second of any.

    The strata are of one size.
    """
    turns = zip(*[spread(stratum, rng) for stratum in strata], strict=True)
    return [problem for turn in turns for problem in rng.sample(turn, len(turn))]


def spread(problems: Sequence[P], rng: random.Random) -> list[P]:
    """One problem of each group, in random order, then another of each, and so on."""
    groups: dict[str, list[P]] = {}
    for problem in problems:
        groups.setdefault(problem.group, []).append(problem)
    shuffled = [rng.sample(group, len(group)) for group in groups.values()]
    rng.shuffle(shuffled)
    return [problem for turn in zip_longest(*shuffled) for problem in turn if problem is not None]
