"""Rotations between singular subspaces: the shortest one, and random ones of the same angles.

A rotation here is low-rank: it turns k planes and leaves the rest of the space alone, so it is applied
in O(m k) per column and never formed as a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SINGULAR = 1e-7
"""A cosine below this counts as 0: the two subspaces have orthogonal directions, and tan θ has no use."""


@dataclass(frozen=True)
class Rotation:
    """Turns each a_i towards n_i by θ_i, and n_i towards −a_i; the identity on the rest of Rᵐ."""

    a: torch.Tensor
    """(m, p) float64, orthonormal."""
    n: torch.Tensor
    """(m, p) float64, orthonormal, orthogonal to every a_j."""
    angles: torch.Tensor
    """(p,) radians in [0, π/2]."""

    def apply(self, vectors: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        """The vectors, columns of (m, c), turned by t θ_i; float64."""
        vectors = vectors.double()
        along_a, along_n = self.a.mT @ vectors, self.n.mT @ vectors
        sine, less = torch.sin(t * self.angles)[:, None], (torch.cos(t * self.angles) - 1)[:, None]
        return (
            vectors + self.a @ (less * along_a - sine * along_n) + self.n @ (sine * along_a + less * along_n)
        )


def minimal_rotation(source: torch.Tensor, target: torch.Tensor) -> Rotation:
    """The shortest rotation that takes span(source) to span(target), both (m, k) orthonormal.

    It turns the planes of the principal vectors by the principal angles (Davis and Kahan 1970; the formula
    by tan θ is the Grassmann logarithm of Edelman, Arias and Smith 1998, exact for tiny angles too). Where
    an angle is 90 degrees the shortest rotation is not unique and one is chosen.
    """
    source, target = source.double(), target.double()
    cosine = source.mT @ target
    outside = target - source @ cosine
    left, cosines, right = torch.linalg.svd(cosine)
    if float(cosines[-1]) > SINGULAR:
        # tan θ: (I − A Aᵀ) B (AᵀB)⁻¹ = N tan(θ) Pᵀ, the planes being (A p_i, n_i).
        N, tangents, P = torch.linalg.svd(outside @ (right.mT / cosines) @ left.mT, full_matrices=False)
        return Rotation(source @ P.mT, _orthogonal_to(source, N), torch.arctan(tangents))
    # Nearly orthogonal directions: principal vectors from the cosines, their normals by QR, widest angle first.
    order = torch.arange(cosines.shape[0] - 1, -1, -1)
    normals = (outside @ right.mT)[:, order]
    N = torch.linalg.qr(_orthogonal_to(source, normals))[0]
    N = N * torch.where((N * normals).sum(0) < 0, -1.0, 1.0)
    return Rotation(source @ left[:, order], N, torch.arccos(cosines.clamp_max(1.0))[order])


def random_rotation(source: torch.Tensor, angles: torch.Tensor, generator: torch.Generator) -> Rotation:
    """A rotation of span(source), (m, k) orthonormal, by these principal angles in uniformly random planes.

    At most m − k of the angles can differ from 0; the largest ones are taken.
    """
    source = source.double()
    m, k = source.shape
    count = min(k, m - k)
    wanted = angles.double().sort(descending=True).values[:count]
    planes = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0][:, :count]
    normals = torch.randn(m, count, generator=generator, dtype=torch.float64)
    normals = _orthogonal_to(source, torch.linalg.qr(_orthogonal_to(source, normals))[0])
    return Rotation(source @ planes, torch.linalg.qr(normals)[0], wanted)


def random_conjugate(rotation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Q O Qᵀ for a uniformly random orthogonal Q: turns by the same angles as O (k, k), in random planes."""
    Q, R = torch.linalg.qr(torch.randn(rotation.shape, generator=generator, dtype=torch.float64))
    Q = Q * torch.sign(R.diagonal())  # uniform (Mezzadri 2007)
    return Q @ rotation.double() @ Q.mT


def polar_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with orthonormal columns that is nearest to `matrix` (m, k), m ≥ k, in Frobenius norm."""
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left @ right


def complete(kept: torch.Tensor, rest: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Columns nearest to `rest` (m, r − k) that are orthonormal and orthogonal to `kept` (m, k), float64.

    The polar factor of what of `rest` lies outside span(kept). Also the smallest singular value of the
    mixed basis [kept, rest]: 1 where nothing had to give way, 0 where `rest` had a direction of `kept`.
    """
    kept, rest = kept.double(), rest.double()
    outside = _orthogonal_to(kept, rest)
    left, remaining, right = torch.linalg.svd(outside, full_matrices=False)
    # [kept, rest] has the singular values sqrt(1 ± sqrt(1 − s²)) for each s of `remaining`.
    smallest = float(1 - torch.sqrt((1 - remaining[-1] ** 2).clamp_min(0))) ** 0.5 if rest.shape[1] else 1.0
    if rest.shape[1] and float(remaining[-1]) < SINGULAR:
        # LAPACK's vectors of vanishing singular values may lie within span(kept): work in its complement.
        basis = torch.linalg.qr(kept, mode="complete")[0][:, kept.shape[1] :]
        left, _, right = torch.linalg.svd(basis.mT @ rest, full_matrices=False)
        left = basis @ left
    return left @ right, smallest


def _orthogonal_to(basis: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    # Twice is enough (Kahan, in Parlett 1980): the second pass removes what rounding left.
    for _ in range(2):
        vectors = vectors - basis @ (basis.mT @ vectors)
    return vectors
