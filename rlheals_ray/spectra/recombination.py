"""Matrices put together from the singular factors of two others: the edits, and their random controls.

A mode says how a replaced block of directions joins the recipient's others; a new one is a function and
a line in MODES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch

from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.rotation import (
    complete,
    minimal_rotation,
    polar_factor,
    random_conjugate,
    random_rotation,
)

Which = Literal["UV", "S", "USV"]


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
    k = _checked(recipient, donor, k, factors, mode, part, t)
    if part == "tail":
        # The same edit with the triplets in reverse order.
        recipient, donor = _reversed(recipient), _reversed(donor)
    U, S, Vh = MODES[mode](recipient, donor, k, factors, t)
    return ((U.double() * S.double()) @ Vh.double()).to(torch.float32)


def _checked(
    recipient: Factors, donor: Factors, k: int | None, factors: str, mode: str, part: str, t: float
) -> int:
    for name, factor, other in zip(("U", "S", "Vh"), recipient, donor, strict=True):
        if factor.shape != other.shape:
            raise ValueError(
                f"{name} of recipient and donor differ: {tuple(factor.shape)}, {tuple(other.shape)}"
            )
    rank = recipient[1].shape[0]
    k = rank if k is None else k
    if not 0 <= k <= rank:
        raise ValueError(f"k={k} is not within 0..{rank}, the singular values of this matrix; None takes all")
    if factors not in ("UV", "S", "USV"):
        raise ValueError(f"factors={factors!r}; choose 'UV', 'S' or 'USV'")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}; choose from {sorted(MODES)}")
    if part not in ("top", "tail"):
        raise ValueError(f"part={part!r}; choose 'top' or 'tail'")
    if not 0 <= t <= 1:
        raise ValueError(f"t={t} is not within 0..1, from the recipient's subspaces to the donor's")
    if t != 1 and mode != "rotate":
        raise ValueError(f"t={t} needs mode='rotate'; {mode!r} replaces directions whole")
    if mode == "rotate" and k == rank:
        raise ValueError(
            f"k={k}: mode='rotate' turns a subspace of fewer than {rank} directions into another; lower k"
        )
    return k


def _concatenate(recipient: Factors, donor: Factors, k: int, factors: str, t: float) -> Factors:
    U = donor[0] if "U" in factors else recipient[0]
    Vh = donor[2] if "V" in factors else recipient[2]
    return (
        torch.cat([U[:, :k], recipient[0][:, k:]], dim=1),
        _values(recipient, donor, k, factors),
        torch.cat([Vh[:k], recipient[2][k:]]),
    )


def _orthonormal(recipient: Factors, donor: Factors, k: int, factors: str, t: float) -> Factors:
    U, V = recipient[0].double(), recipient[2].double().mT
    if factors != "S":
        U = _completed(U, donor[0], k)
        V = _completed(V, donor[2].mT, k)
    return U, _values(recipient, donor, k, factors), V.mT


def _rotate(recipient: Factors, donor: Factors, k: int, factors: str, t: float) -> Factors:
    U, V = recipient[0].double(), recipient[2].double().mT
    if factors != "S" and k:
        U = minimal_rotation(U[:, :k], donor[0][:, :k]).apply(U, t)
        V = minimal_rotation(V[:, :k], donor[2][:k].mT).apply(V, t)
    return U, _values(recipient, donor, k, factors), V.mT


MODES: Mapping[str, Callable[[Factors, Factors, int, str, float], Factors]] = {
    "concatenate": _concatenate,
    "orthonormal": _orthonormal,
    "rotate": _rotate,
}
"""concatenate: the paper's; donor's columns beside the recipient's others. Mixed bases are not
orthonormal, so for 0 < k < r the result's singular values are not exactly the S that went in.
orthonormal: the donor's k directions kept exactly, the recipient's others completed orthogonally to them by
their polar factor; the result's singular values are the S that went in.
rotate: the whole matrix turned, on both sides, by t times the shortest rotation that takes the recipient's
k-dimensional subspaces to the donor's; singular values are kept for every t."""


def smallest_singular_value(recipient: Factors, donor: Factors, k: int, part: str = "top") -> float:
    """Of the worse of the two mixed bases [donor's k, recipient's others]: 1 orthonormal, 0 a lost direction."""
    if part == "tail":
        recipient, donor = _reversed(recipient), _reversed(donor)
    sides = ((recipient[0], donor[0]), (recipient[2].mT, donor[2].mT))
    return min(complete(other[:, :k], own[:, k:])[1] for own, other in sides)


def randomly_turned(
    recipient: Factors,
    donor: Factors,
    k: int | None,
    seed: int,
    *,
    part: str = "top",
    subspaces_only: bool = False,
    t: float = 1.0,
) -> torch.Tensor:
    """The control of equal angle: the recipient turned as far as an edit of "UV" turns it, nowhere in particular.

    On each side the k directions' subspace turns by t times its principal angles towards the donor's, in
    random planes. Unless subspaces_only (as the mode "rotate" leaves it), the basis within also turns, by the
    angles between the recipient's vectors and the donor's, conjugated by a random rotation. Singular values
    are kept. Returns (m, n) float32.
    """
    k = _checked(recipient, donor, k, "UV", "orthonormal", part, 1.0)
    if part == "tail":
        recipient, donor = _reversed(recipient), _reversed(donor)
    U, V = recipient[0].double(), recipient[2].double().mT
    Ud, Vd = donor[0].double(), donor[2].double().mT
    if k:
        # u_i and v_i are known up to a common sign: take the donor's that is nearer, or angles would be arbitrary.
        signs = torch.where((U * Ud).sum(0) + (V * Vd).sum(0) < 0, -1.0, 1.0)
        generator = torch.Generator().manual_seed(seed)
        U, V = (
            _turned(own, other, k, generator, subspaces_only, t)
            for own, other in ((U, Ud * signs), (V, Vd * signs))
        )
    return ((U * recipient[1].double()) @ V.mT).to(torch.float32)


def _turned(
    own: torch.Tensor, other: torch.Tensor, k: int, generator: torch.Generator, subspaces_only: bool, t: float
) -> torch.Tensor:
    leading = own[:, :k]
    angles = minimal_rotation(leading, other[:, :k]).angles
    basis = own
    if not subspaces_only:
        within = random_conjugate(polar_factor(leading.mT @ other[:, :k]), generator)
        basis = torch.cat([leading @ within, own[:, k:]], dim=1)
    return random_rotation(leading, angles, generator).apply(basis, t)


def _values(recipient: Factors, donor: Factors, k: int, factors: str) -> torch.Tensor:
    S = donor[1] if "S" in factors else recipient[1]
    return torch.cat([S[:k], recipient[1][k:]])


def _completed(own: torch.Tensor, other: torch.Tensor, k: int) -> torch.Tensor:
    kept = other[:, :k].double()
    return torch.cat([kept, complete(kept, own[:, k:])[0]], dim=1)


def _reversed(factors: Factors) -> Factors:
    U, S, Vh = factors
    return U.flip(1), S.flip(0), Vh.flip(0)
