"""Determinant of an integer matrix: small under the ID rule, larger and with wider entries under the OOD rule.

As published (arXiv 2509.12235): 2x2 with entries in [-4, 4] and 3x3 with entries in [-5, 5], general or
symmetric, entries drawn uniformly, the determinant not 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from rlheals_ray.tasks.integer_matrix import Matrix, Row, rank_and_determinant
from rlheals_ray.tasks.matrix_task import MatrixOptions, MatrixProblem, MatrixTask, refuse_same_rule
from rlheals_ray.tasks.task import Rule

Size = Annotated[int, Field(strict=True, ge=2, le=4)]


class DeterminantOptions(MatrixOptions):
    """What a study may choose; where the matrices drawn for a rule are few enough, all of them are problems."""

    symmetric: Annotated[bool, Field(strict=True)] = False
    """Symmetric matrices only, of both rules."""
    id_size: Size = 2
    """Rows, and as many columns, under the ID rule."""
    ood_size: Size = 3

    @field_validator("ood_size")
    @classmethod
    def _differs(cls, size: int, info: ValidationInfo) -> int:
        # A field that is itself wrong is missing here, and reported by its own error.
        if {"id_size", "id_entries", "ood_entries"} <= info.data.keys():
            refuse_same_rule(size == info.data["id_size"], info.data["id_entries"], info.data["ood_entries"])
        return size


class Determinant(MatrixTask):
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "determinant"
    asked = "determinant"
    Options = DeterminantOptions
    options: DeterminantOptions

    def __init__(self, options: DeterminantOptions) -> None:
        super().__init__(options)

    def size(self, rule: Rule) -> int:
        return self.options.id_size if rule == "id" else self.options.ood_size

    def space(self, rule: Rule) -> int:
        """All matrices of the rule, those of determinant 0 included."""
        least, greatest = self.entries(rule)
        return int((greatest - least + 1) ** self._free(rule))

    def strata(self, rule: Rule) -> list[list[MatrixProblem]]:
        """One kind: determinants are as frequent as they come, small ones most of all."""
        size, (least, greatest) = self.size(rule), self.entries(rule)
        inside = self.entries("id") if rule == "ood" and self.size("ood") == self.size("id") else None
        rng = random.Random(f"{self.name}/{size}/{self.options.symmetric}/{least}..{greatest}")
        problems = []
        for entries in _distinct(range(least, greatest + 1), self._free(rule), self.options.pool, rng):
            # Of one size, only entries that the ID rule cannot have make an OOD problem.
            if inside and inside[0] <= min(entries) and max(entries) <= inside[1]:
                continue
            rows = self._matrix(entries, size)
            if determinant := rank_and_determinant(rows)[1]:
                problems.append(self.problem_of(rows, rule, determinant))
        return [problems]

    def steps(self, problem: MatrixProblem) -> list[str]:
        """Cofactor expansion along first rows, innermost minors first; a minor whose factor is 0 is left out."""
        return self._expansion(problem.rows)[1]

    def _free(self, rule: Rule) -> int:
        """How many entries can be chosen."""
        size = self.size(rule)
        return size * (size + 1) // 2 if self.options.symmetric else size * size

    def _matrix(self, entries: Sequence[int], size: int) -> Matrix:
        if not self.options.symmetric:
            return tuple(tuple(entries[i * size : (i + 1) * size]) for i in range(size))
        upper = iter(entries)
        chosen = {(i, j): next(upper) for i in range(size) for j in range(i, size)}
        return tuple(tuple(chosen[min(i, j), max(i, j)] for j in range(size)) for i in range(size))

    def _expansion(self, rows: Matrix) -> tuple[int, list[str]]:
        """The determinant, and the lines that end in it."""
        if len(rows) == 2:
            (a, b), (c, d) = rows
            value = a * d - b * c
            shown = f"{a} * {d} - {b} * {c} = {a * d} - {b * c} = {value}"
            return value, [f"det {self.text(rows)} = {shown}"]
        lines: list[str] = []
        terms: list[tuple[int, int]] = []
        for j, factor in enumerate(rows[0]):
            if factor:
                minor, minor_lines = self._expansion(tuple((*row[:j], *row[j + 1 :]) for row in rows[1:]))
                lines += minor_lines
                terms.append((-factor if j % 2 else factor, minor))
        value = sum(factor * minor for factor, minor in terms)
        if terms:
            factored = " + ".join(f"{factor} * {minor}" for factor, minor in terms)
            multiplied = " + ".join(str(factor * minor) for factor, minor in terms)
            lines.append(f"det {self.text(rows)} = {factored} = {multiplied} = {value}")
        else:
            lines.append(f"det {self.text(rows)} = 0")
        return value, lines


def _distinct(values: Sequence[int], length: int, most: int, rng: random.Random) -> list[Row]:
    """`most` distinct tuples in random order, or all where there are not more."""
    if len(values) ** length <= 4 * most:
        every = list(product(values, repeat=length))
        rng.shuffle(every)
        return every[:most]
    drawn: dict[Row, None] = {}
    while len(drawn) < most:
        drawn[tuple(rng.choices(values, k=length))] = None
    return list(drawn)
