"""Matrices of integers: exact rank and determinant, which of them are near-copies, and the answer object.

All arithmetic is on Python's integers: exact, whatever their size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from rlheals_ray.tasks.answer import MAX_CHARACTERS

Row = tuple[int, ...]
Matrix = tuple[Row, ...]

# An object holds no braces, which makes the search linear; `answer:0` has eight characters.
_OBJECT = re.compile(r"\{([^{}]{8,}+)\}")
_FIELD = re.compile(
    r"""\s*+ (?: "(\w++)" | '(\w++)' | (\w++) ) \s*+ : \s*+
        (?: \[ [^\[\]]*+ \] | "[^"]*+" | '[^']*+' | (?P<bare> [^\s,"'\[\]]++ ) ) \s*+ ,?+ \s*+""",
    re.VERBOSE,
)
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*+)")


def find_answer(text: str) -> str | None:
    """The integer in the last object that has a field `answer`, as it is written; None without one. Linear time."""
    for match in reversed(list(_OBJECT.finditer(text[-MAX_CHARACTERS:]))):
        body, at, answer = match[1], 0, ""
        while at < len(body) and (field := _FIELD.match(body, at)):
            if "answer" in field.group(1, 2, 3):
                answer = field["bare"] or "not a number"
            at = field.end()
        if at == len(body) and answer:
            return answer if _INTEGER.fullmatch(answer) else None
    return None


def rank_and_determinant(rows: Sequence[Row]) -> tuple[int, int]:
    """The rank, and the determinant of a square matrix (0 for any other), both exact.

    Fraction-free elimination: Bareiss, "Sylvester's identity and multistep integer-preserving Gaussian
    elimination", Math. Comp. 22 (1968). Every entry on the way is a minor, so the divisions leave nothing.
    """
    work = [list(row) for row in rows]
    height, width = len(work), len(work[0])
    rank, last, sign = 0, 1, 1
    for column in range(width):
        pivot = next((r for r in range(rank, height) if work[r][column]), None)
        if pivot is None:
            continue
        if pivot != rank:
            work[rank], work[pivot], sign = work[pivot], work[rank], -sign
        top = work[rank]
        for row in work[rank + 1 :]:
            first = row[column]
            row[column:] = [(top[column] * row[c] - first * top[c]) // last for c in range(column, width)]
        last = top[column]
        rank += 1
        if rank == height:
            break
    return rank, sign * last if rank == height == width else 0


def group_of(rows: Matrix) -> str:
    """The group of a matrix: a hash of the sizes of its entries, row by row and column by column, in no order.

    Equal for matrices that differ by the order of rows or of columns, by transposition or by signs. Reordering,
    transposing and negating lines keep the rank, and the determinant but for its sign, so whoever has learnt one by
    heart knows the others. That unlike matrices may share a hash does no harm: a group is never split.
    """
    profiles = [sorted(sorted(map(abs, line)) for line in lines) for lines in (rows, zip(*rows, strict=True))]
    return hashlib.blake2b(json.dumps(sorted(profiles)).encode(), digest_size=8).hexdigest()
