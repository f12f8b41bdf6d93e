"""Matrices put together from the singular factors of two others: the edits, and their random control.

A mode says how a replaced block of directions joins the recipient's others; a new one is a function and
a line in MODES. What several k or t of one pair of matrices have in common is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.rotation import (
    complete,
    minimal_rotation,
    polar_factor,
    random_conjugate,
    random_rotation,
    subspace_angles,
)

Which = Literal["UV", "S", "USV"]
Point: TypeAlias = tuple[int, float]
"""(k, t): how many directions, and how far they go."""

COLUMNS = 128
"""Singular vectors multiplied at a time: what is held beside the result stays small."""


def recombine(
    recipient: Factors,
    donor: Factors,
    k: int | None = 64,
    factors: Which = "UV",
    mode: str = "concatenate",
    *,
    part: str = "top",
    t: float = 1.0,
) -> torch.Tensor:
    """The recipient's matrix with factors of k of its singular triplets replaced by the donor's.

    recipient = (U, S, Vh), donor = (Ud, Sd, Vhd): thin SVDs of two matrices of one shape (m, n).
    k: how many triplets; None is all r = min(m, n); 0 gives the recipient.
    factors: "UV" puts the donor's directions u_i, v_i (as a pair, so that their common sign cancels) under
    the recipient's σ_i; "S" the donor's σ_i on the recipient's directions; "USV" both.
    mode: how a replaced block joins the rest; see MODES. part: the k "top" triplets, or the k of the "tail".
    t: how far to go, in [0, 1]; only the mode "rotate" can stop short of 1.
    Returns (m, n) float32. Raises ValueError for shapes that differ, a value out of range, or an unknown name.
    """
    pair = Recombination(recipient, donor, part)
    (matrix,) = (matrix.to(torch.float32) for _, matrix in pair.edited([(pair.count(k), t)], factors, mode))
    return matrix


@dataclass(frozen=True, eq=False)
class Recombination:
    """Two matrices' factors, (m, r), (r,), (r, n) each, from whose `part` directions are exchanged.

    Raises ValueError for shapes that differ or an unknown part.
    """

    recipient: Factors
    donor: Factors
    part: str = "top"
    dtype: torch.dtype = torch.float64
    """In which `concatenate` adds up."""

    def __post_init__(self) -> None:
        for name, factor, other in zip(("U", "S", "Vh"), self.recipient, self.donor, strict=True):
            if factor.shape != other.shape:
                raise ValueError(
                    f"{name} of recipient and donor differ: {tuple(factor.shape)}, {tuple(other.shape)}"
                )
        if self.part not in ("top", "tail"):
            raise ValueError(f"part={self.part!r}; choose 'top' or 'tail'")

    @property
    def rank(self) -> int:
        """r = min(m, n)."""
        return self.recipient[1].shape[0]

    def count(self, k: int | None) -> int:
        """k itself, or r for None; raises ValueError beyond 0..r."""
        k = self.rank if k is None else k
        if not 0 <= k <= self.rank:
            raise ValueError(
                f"k={k} is not within 0..{self.rank}, the singular values of this matrix; None takes all"
            )
        return k

    def edited(
        self, points: Sequence[Point], factors: str = "UV", mode: str = "concatenate"
    ) -> Iterator[tuple[Point, torch.Tensor]]:
        """`recombine` at every (k, t), in ascending order.

        Each matrix is (m, n), float64 or as `dtype`, and valid until the next.
        Raises ValueError as `recombine` does, before the first.
        """
        if factors not in ("UV", "S", "USV"):
            raise ValueError(f"factors={factors!r}; choose 'UV', 'S' or 'USV'")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}; choose from {sorted(MODES)}")
        for k, t in points:
            self.count(k)
            if not 0 <= t <= 1:
                raise ValueError(f"t={t} is not within 0..1, from the recipient's subspaces to the donor's")
            if t != 1 and mode != "rotate":
                raise ValueError(f"t={t} needs mode='rotate'; {mode!r} replaces directions whole")
            if mode == "rotate" and k == self.rank:
                raise ValueError(
                    f"k={k}: mode='rotate' turns a subspace of fewer than {k} directions into another; lower k"
                )
        return MODES[mode](self, sorted(set(points)), factors)

    def smallest(self, ks: Iterable[int]) -> dict[int, float]:
        """For each k the least singular value of the worse of the two mixed bases [donor's k, recipient's others].

        1 where they are orthonormal as they stand, 0 where a direction was lost. With the cosines c of the
        angles between the two blocks, a mixed basis has the singular values sqrt(1 ± c). Stored float32
        factors resolve values down to about 3e-4.
        """
        found = {self.count(k): 1.0 for k in ks}
        for own, other in (
            (self.recipient[0], self.donor[0]),
            (self.recipient[2].mT, self.donor[2].mT),
        ):
            overlap = other.mT @ own  # its blocks hold the cosines for every k
            for k in (k for k in found if 0 < k < self.rank):
                chosen, others = self.blocks(k)
                block = (
                    overlap[chosen, others] if 2 * k <= self.rank else overlap[chosen, others].mT
                ).double()
                # The largest singular value alone is wanted: the eigenvalues of a small Gram matrix are exact enough.
                cosine = float(torch.linalg.eigvalsh(block @ block.mT)[-1].clamp(0, 1).sqrt())
                found[k] = min(found[k], (1.0 - cosine) ** 0.5)
        return found

    def randomly_turned(
        self, k: int, seed: int, *, subspaces_only: bool = False, t: float = 1.0
    ) -> torch.Tensor:
        """The control of equal angle: the recipient turned as far as an edit of "UV" turns it, nowhere in particular.

        On each side the k directions' subspace turns by t times its principal angles towards the donor's, in
        random planes. Unless subspaces_only (as the mode "rotate" leaves it), the basis within also turns, by the
        angles between the recipient's vectors and the donor's, conjugated by a random rotation. Singular values
        are kept. Returns (m, n) float64.
        """
        U, V = self.recipient[0].double(), self.recipient[2].double().mT
        if self.count(k):
            chosen, _ = self.blocks(k)
            Ud, Vd = self.donor[0][:, chosen].double(), self.donor[2][chosen].double().mT
            # u_i and v_i are known up to a common sign: take the donor's that is nearer, or angles would be arbitrary.
            nearness = (U[:, chosen] * Ud).sum(0) + (V[:, chosen] * Vd).sum(0)
            signs = torch.where(nearness < 0, -1.0, 1.0)
            generator = torch.Generator().manual_seed(seed)
            U = _turned(U, Ud * signs, chosen, generator, subspaces_only, t)
            V = _turned(V, Vd * signs, chosen, generator, subspaces_only, t)
        return (U * self.recipient[1].double()) @ V.mT

    def blocks(self, k: int) -> tuple[slice, slice]:
        """Which of the r triplets are exchanged, and which stay."""
        if self.part == "top":
            return slice(0, k), slice(k, self.rank)
        return slice(self.rank - k, self.rank), slice(0, self.rank - k)

    def products(self, block: slice, factors: str, onto: torch.Tensor, sign: float = 1.0) -> None:
        """Add sign · Σ σ_i u_i v_iᵀ of a block to `onto` (m, n), in its dtype; factors "": the recipient's."""
        U = self.donor[0] if "U" in factors else self.recipient[0]
        S = self.donor[1] if "S" in factors else self.recipient[1]
        Vh = self.donor[2] if "V" in factors else self.recipient[2]
        for start in range(block.start, block.stop, COLUMNS):
            columns = slice(start, min(start + COLUMNS, block.stop))
            left = U[:, columns].to(onto.dtype) * S[columns].to(onto.dtype)
            onto.addmm_(left, Vh[columns].to(onto.dtype), alpha=sign)

    def zeros(self) -> torch.Tensor:
        """(m, n) in `dtype`."""
        return torch.zeros(self.recipient[0].shape[0], self.recipient[2].shape[1], dtype=self.dtype)


def _concatenate(
    pair: Recombination, points: Sequence[Point], factors: str
) -> Iterator[tuple[Point, torch.Tensor]]:
    matrix, before = pair.zeros(), 0
    for number, (k, t) in enumerate(points):
        if number and 2 * (k - before) < pair.rank:
            # From k to k' only k' − k triplets change hands.
            grown = slice(before, k) if pair.part == "top" else slice(pair.rank - k, pair.rank - before)
            pair.products(grown, factors, matrix)
            pair.products(grown, "", matrix, sign=-1.0)
        else:
            chosen, others = pair.blocks(k)
            matrix.zero_()
            pair.products(chosen, factors, matrix)
            pair.products(others, "", matrix)
        before = k
        yield (k, t), matrix


def _orthonormal(
    pair: Recombination, points: Sequence[Point], factors: str
) -> Iterator[tuple[Point, torch.Tensor]]:
    if factors == "S":
        yield from _concatenate(pair, points, factors)
        return
    for k, t in points:
        chosen, others = pair.blocks(k)
        U, _ = complete(pair.donor[0][:, chosen], pair.recipient[0][:, others])
        V, _ = complete(pair.donor[2][chosen].mT, pair.recipient[2][others].mT)
        matrix = (U * pair.recipient[1][others].double()) @ V.mT
        pair.products(chosen, factors, matrix)
        yield (k, t), matrix


def _rotate(
    pair: Recombination, points: Sequence[Point], factors: str
) -> Iterator[tuple[Point, torch.Tensor]]:
    if factors == "S":
        yield from _concatenate(pair, points, factors)
        return
    U, V = pair.recipient[0].double(), pair.recipient[2].double().mT
    for k in sorted({k for k, _ in points}):
        chosen, _ = pair.blocks(k)
        S = pair.recipient[1].double()
        if "S" in factors:
            S[chosen] = pair.donor[1][chosen].double()
        left = minimal_rotation(U[:, chosen], pair.donor[0][:, chosen]) if k else None
        right = minimal_rotation(V[:, chosen], pair.donor[2][chosen].mT) if k else None
        for t in (t for other, t in points if other == k):
            if left is None or right is None:
                yield (k, t), (U * S) @ V.mT
            else:
                yield (k, t), (left.apply(U, t) * S) @ right.apply(V, t).mT


Mode: TypeAlias = Callable[[Recombination, Sequence[Point], str], Iterator[tuple[Point, torch.Tensor]]]
MODES: Mapping[str, Mode] = {"concatenate": _concatenate, "orthonormal": _orthonormal, "rotate": _rotate}
"""concatenate: the paper's; donor's columns beside the recipient's others. Mixed bases are not
orthonormal, so for 0 < k < r the result's singular values are not exactly the S that went in.
orthonormal: the donor's k directions kept exactly, the recipient's others completed orthogonally to them by
their polar factor; the result's singular values are the S that went in.
rotate: the whole matrix turned, on both sides, by t times the shortest rotation that takes the recipient's
k-dimensional subspaces to the donor's; singular values are kept for every t."""


def _turned(
    own: torch.Tensor,
    other: torch.Tensor,
    chosen: slice,
    generator: torch.Generator,
    subspaces_only: bool,
    t: float,
) -> torch.Tensor:
    leading = own[:, chosen]
    angles = subspace_angles(leading, other)
    basis = own.clone()
    if not subspaces_only:
        basis[:, chosen] = leading @ random_conjugate(polar_factor(leading.mT @ other), generator)
    return random_rotation(leading, angles, generator).apply(basis, t)
