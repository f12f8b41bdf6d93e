"""Matrix rank: how many rows of an integer matrix are linearly independent.

A matrix of rank r is a product of factors with r columns and r rows whose entries are drawn uniformly;
a product of lower rank is drawn again. That is the published construction (arXiv 2509.12235), with two
changes. The published configuration of OOD equals that of ID; here the rules differ in shape and entries. And
problems are distinct, so rank 0, of which there is one matrix, does not occur; ranks 1 to the smaller side
are equally frequent in any number of problems (but for a remainder): by default chance is 1/4.

Entries grow with the rank, here as there, so that one may do better than chance without eliminating: the
rank whose mean sum of sizes in training is nearest is right for 51 % of the default ID and 39 % of the OOD problems.
With several attempts a model may try all ranks: allow one or two, as published.
"""

from __future__ import annotations

import random
from math import gcd
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from rlheals_ray.tasks.integer_matrix import Matrix, Row, rank_and_determinant
from rlheals_ray.tasks.matrix_task import MatrixOptions, MatrixProblem, MatrixTask, refuse_same_rule
from rlheals_ray.tasks.task import Rule

_TRIES = 20
"""Draws for each problem wanted, on average, before a rank counts as exhausted."""

Side = Annotated[int, Field(strict=True, ge=2, le=6)]
Shape = tuple[Side, Side]


class MatrixRankOptions(MatrixOptions):
    """What a study may choose; `id_entries` and `ood_entries` bound the entries of the factors."""

    id_shape: Shape = (4, 5)
    """Rows and columns under the ID rule."""
    ood_shape: Shape = (5, 4)

    @field_validator("ood_shape")
    @classmethod
    def _differs(cls, shape: Shape, info: ValidationInfo) -> Shape:
        # A field that is itself wrong is missing here, and reported by its own error.
        if {"id_shape", "id_entries", "ood_entries"} <= info.data.keys():
            same = shape == info.data["id_shape"]
            refuse_same_rule(same, info.data["id_entries"], info.data["ood_entries"])
        return shape


class MatrixRank(MatrixTask):
    """The task; see `rlheals_ray.tasks.task.Task` for what each method promises."""

    name = "matrix_rank"
    asked = "rank"
    Options = MatrixRankOptions
    options: MatrixRankOptions

    def __init__(self, options: MatrixRankOptions) -> None:
        super().__init__(options)

    def shape(self, rule: Rule) -> Shape:
        return self.options.id_shape if rule == "id" else self.options.ood_shape

    def space(self, rule: Rule) -> int:
        """Pairs of factors of a matrix of rank 1."""
        least, greatest = self.entries(rule)
        return (greatest - least + 1) ** sum(self.shape(rule))

    def strata(self, rule: Rule) -> list[list[MatrixProblem]]:
        """By rank, from 1 on."""
        ranks = range(1, min(self.shape(rule)) + 1)
        most = self.options.pool // len(ranks)
        return [
            [self.problem_of(rows, rule, rank) for rows in self._products(rule, rank, most)] for rank in ranks
        ]

    def steps(self, problem: MatrixProblem) -> list[str]:
        """Row operations to row echelon form, on integers: swaps, and `R2 := ( 3 * R2 - 2 * R1 ) / 7 = [...]`."""
        work = list(problem.rows)
        steps = []
        top = 0
        for column in range(len(work[0])):
            below = [r for r in range(top, len(work)) if work[r][column]]
            if not below:
                continue
            # The smallest pivot keeps the numbers small.
            pivot = min(below, key=lambda r: abs(work[r][column]))
            if pivot != top:
                work[top], work[pivot] = work[pivot], work[top]
                steps.append(f"swap R{top + 1} and R{pivot + 1}")
            for r in range(top + 1, len(work)):
                if work[r][column]:
                    work[r], operation = _eliminate(work[r], work[top], column, r + 1, top + 1)
                    steps.append(f"R{r + 1} := {operation} = {self.row_text(work[r])}")
            top += 1
        return [*steps, f"nonzero rows = {top}"]

    def _products(self, rule: Rule, rank: int, most: int) -> list[Matrix]:
        """Distinct products of the rank, `most` of them or as many as turn up."""
        (height, width), (least, greatest) = self.shape(rule), self.entries(rule)
        inside = self.entries("id") if rule == "ood" and self.shape("ood") == self.shape("id") else None
        rng = random.Random(f"{self.name}/{height}x{width}/{least}..{greatest}/{rank}")
        values = range(least, greatest + 1)
        drawn: dict[Matrix, None] = {}
        for _ in range(_TRIES * most):
            if len(drawn) == most:
                break
            factors = rng.choices(values, k=rank * (height + width))
            # Of one shape, only factors that the ID rule cannot have make an OOD problem.
            if inside and inside[0] <= min(factors) and max(factors) <= inside[1]:
                continue
            left = [factors[i * rank : (i + 1) * rank] for i in range(height)]
            right = [factors[(height + j) * rank : (height + j + 1) * rank] for j in range(width)]
            rows = tuple(tuple(sum(map(int.__mul__, a, b)) for b in right) for a in left)
            if rank_and_determinant(rows)[0] == rank:
                drawn[rows] = None
        return list(drawn)


def _eliminate(row: Row, pivot: Row, column: int, row_number: int, pivot_number: int) -> tuple[Row, str]:
    """The row without its entry in `column`, by its greatest common divisor, and the operation that makes it."""
    common = gcd(pivot[column], row[column])
    keep, subtract = pivot[column] // common, row[column] // common
    if keep < 0:
        keep, subtract = -keep, -subtract
    combined = [keep * x - subtract * y for x, y in zip(row, pivot, strict=True)]
    sign, factor = ("-", subtract) if subtract > 0 else ("+", -subtract)
    terms = [
        f"{n} * R{number}" if n > 1 else f"R{number}"
        for n, number in ((keep, row_number), (factor, pivot_number))
    ]
    operation = f"{terms[0]} {sign} {terms[1]}"
    divisor = gcd(*combined)
    if divisor <= 1:
        return tuple(combined), operation
    return tuple(x // divisor for x in combined), f"( {operation} ) / {divisor}"
