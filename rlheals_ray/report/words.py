"""How the report says things: a finding, and numbers and lists as words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One sentence that the tables support, contradict or leave open.

    `supported` speaks of the claim that `kind` names: True, the tables show it; False, they show that
    it does not hold or fail to show it where it was looked for; None, open or not measured.
    """

    kind: str
    text: str
    supported: bool | None


def number(value: float | None, signed: bool = False) -> str:
    """A share in the field's short form: .35, +.35, −.02, 1.00; an en dash where there is none."""
    if value is None:
        return "–"
    digits = f"{abs(value):.2f}"
    digits = digits[1:] if digits.startswith("0.") else digits
    negative = value < 0 and digits != ".00"
    return ("−" if negative else "+" if signed else "") + digits


def count(value: int | None) -> str:
    """`3`, or a dash where it is not known."""
    return "–" if value is None else str(value)


def interval(low: float | None, high: float | None) -> str:
    """` [.20, .48]` with its leading space, or nothing where there is no interval."""
    return "" if low is None or high is None else f" [{number(low)}, {number(high)}]"


def listed(items: Iterable[Any]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else "none"


def algorithm_name(algorithm: str) -> str:
    """An RL algorithm as the field writes it: PPO, GRPO, RLOO."""
    return algorithm.upper() if algorithm in ("ppo", "grpo", "rloo") else algorithm
