"""Rotations between singular subspaces: the shortest one, and random ones of the same angles.

A rotation here is low-rank: it turns k planes and leaves the rest of the space alone, so it is applied
in O(m k) per column and never formed as a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SINGULAR = 1e-7
"""A cosine below this counts as 0: the two subspaces have orthogonal directions, and tan θ has no use."""
NEARLY_LOST = 0.01
"""A sine below this magnifies the rounding of float32 bases too much to normalise by it."""


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


def subspace_angles(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The principal angles between two spans, (m, k) orthonormal each; radians, float64 (k,), descending.

    By eigenvalues of small Gram matrices: a quarter of the time of `linalg.angles_between`, and exact to
    about 1e-8 only, which is within the rounding of stored float32 bases.
    """
    source, target = source.double(), target.double()
    cosine = source.mT @ target
    outside = target - source @ cosine
    sines = torch.linalg.eigvalsh(outside.mT @ outside).clamp(0, 1).sqrt().flip(0)
    cosines = torch.linalg.eigvalsh(cosine.mT @ cosine).clamp(0, 1).sqrt()
    return torch.where(sines**2 < 0.5, torch.arcsin(sines), torch.arccos(cosines))


def random_rotation(source: torch.Tensor, angles: torch.Tensor, generator: torch.Generator) -> Rotation:
    """A rotation of span(source), (m, k) orthonormal, by these principal angles in uniformly random planes.

    At most m − k of the angles can differ from 0; the largest ones are taken.
    """
    source = source.double()
    m, k = source.shape
    count = min(k, m - k)
    wanted = angles.double().sort(descending=True).values[:count]
    planes = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0][:, :count]
    normals = _orthogonal_to(source, torch.randn(m, count, generator=generator, dtype=torch.float64))
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
    """Columns nearest to `rest` (m, q) that are orthonormal and orthogonal to `kept` (m, k), float64.

    kept, rest: orthonormal columns each. The result is the polar factor of what of `rest` lies outside
    span(kept). Also the smallest singular value of the mixed basis [kept, rest]: 1 where nothing had to
    give way, 0 where `rest` had a direction of `kept`.

    With the SVD keptᵀ rest = X diag(c) Yᵀ, only the p = min(k, q) principal directions rest·Y need to give
    way, each to its normalised part outside span(kept): the cost is that of an SVD of k × q, not of m × q.
    """
    kept, rest = kept.double(), rest.double()
    if not kept.shape[1] or not rest.shape[1]:
        return rest, 1.0
    X, cosines, Yh = torch.linalg.svd(kept.mT @ rest, full_matrices=False)
    principal = rest @ Yh.mT
    outside = principal - kept @ (X * cosines)
    outside = outside - kept @ (kept.mT @ outside)
    sines = torch.linalg.vector_norm(outside, dim=0)
    # [kept, rest] has the singular values sqrt(1 ± c), and 1 − c = s² / (1 + c).
    smallest = float((sines / (1 + cosines).sqrt()).min())
    if float(sines.min()) < NEARLY_LOST:
        return _completed(kept, rest), smallest
    nearest = rest + (outside / sines - principal) @ Yh
    # What rounding of the bases left, at most about 1e-5 here, is squared by one Newton step to the polar factor.
    nearest = nearest - kept @ (kept.mT @ nearest)
    return 1.5 * nearest - 0.5 * nearest @ (nearest.mT @ nearest), smallest


def _completed(kept: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """`complete` where a direction of `rest` all but lies in span(kept): by the SVD of the whole."""
    outside = _orthogonal_to(kept, rest)
    left, remaining, right = torch.linalg.svd(outside, full_matrices=False)
    if float(remaining[-1]) < SINGULAR:
        # LAPACK's vectors of vanishing singular values may lie within span(kept): work in its complement.
        basis = torch.linalg.qr(kept, mode="complete")[0][:, kept.shape[1] :]
        left, _, right = torch.linalg.svd(basis.mT @ rest, full_matrices=False)
        left = basis @ left
    return left @ right


def _orthogonal_to(basis: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    # Twice is enough (Kahan, in Parlett 1980): the second pass removes what rounding left.
    for _ in range(2):
        vectors = vectors - basis @ (basis.mT @ vectors)
    return vectors
