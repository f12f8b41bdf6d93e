"""What an edit is: the recipient's matrices with singular factors, or whole matrices, of the donor.

An edit names checkpoints and matrices; what it does to one matrix is its `Variant`, made in pieces.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlheals_ray.config import InputError
from rlheals_ray.spectra.recombination import MODES, Which
from rlheals_ray.spectra.roles import ROLES

KINDS: Mapping[str, str] = {
    "edit": "singular factors recombined",
    "weight_swap": "the donor's matrices whole",
    "interpolation": "the straight way to the donor, per matrix as far (‖ΔW‖_F) as the edit goes",
    "random_angle": "the recipient turned by the same angles in random planes",
    "random_norm": "a Gaussian ΔW, per matrix as long as the edit's",
}
"""The edit and its controls, which never stands without them."""


@dataclass(frozen=True)
class Variant:
    """What an edit does to one matrix, in its plainest form: equal variants of a matrix are one piece.

    kind: see KINDS, or "recipient": nothing at all. k: a number of directions of this matrix. Fields that do
    not shape the result are at their defaults.
    """

    kind: str
    factors: str = "UV"
    mode: str = "concatenate"
    part: str = "top"
    k: int = 0
    t: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """A file name, one for each variant."""
        if self.kind in ("recipient", "weight_swap"):
            return self.kind
        return f"{self.kind}_{self.factors}_{self.mode}_{self.part}_k={self.k}_t={self.t!r}_seed={self.seed}"

    @property
    def measure(self) -> Variant | None:
        """The edit whose ‖ΔW‖ this control takes; None for what needs none."""
        if self.kind not in ("interpolation", "random_norm"):
            return None
        return replace(self, kind="edit", seed=0)

    @property
    def mixes(self) -> bool:
        """Whether it sets directions of two matrices beside each other: their bases may not be orthogonal."""
        return self.kind == "edit" and self.mode != "rotate" and self.factors != "S"


RECIPIENT = Variant("recipient")


@dataclass(frozen=True)
class Edit:
    """What to write: the matrices of `roles` in `layers` (None: all), changed as `kind` says.

    donor_directory, recipient_directory: Hugging Face directories, local or URIs. kind: see KINDS. factors,
    mode, part, t: as in `recombine`. k: how many triplets, a fraction of min(m, n) when it is a float in
    (0, 1], or None for all. The controls take from them how far to go; `weight_swap` ignores them. seed: of
    the random controls.
    Raises InputError for an unknown name or a k, t or part out of range.
    """

    donor_directory: str
    recipient_directory: str
    factors: Which = "UV"
    k: int | float | None = None
    mode: str = "concatenate"
    part: str = "top"
    t: float = 1.0
    roles: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    layers: tuple[int, ...] | None = None
    kind: str = "edit"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("factors", self.factors, ("UV", "S", "USV")),
            ("mode", self.mode, tuple(MODES)),
            ("part", self.part, ("top", "tail")),
            ("kind", self.kind, tuple(KINDS)),
        ):
            if value not in known:
                raise InputError(f"edit: {name} (got {value!r}) is unknown; choose from {list(known)}.")
        if unknown := sorted(set(self.roles) - set(ROLES)):
            raise InputError(f"edit: roles (got {unknown}) are unknown; choose from {list(ROLES)}.")
        if self.k is not None and (self.k < 0 or (isinstance(self.k, float) and not 0 < self.k <= 1)):
            raise InputError(
                f"edit: k (got {self.k}) must not be negative: it counts directions, or is a fraction in "
                "(0, 1], or null for all of them."
            )
        if not 0 <= self.t <= 1 or (self.t != 1 and self.mode != "rotate"):
            raise InputError(
                f"edit: t (got {self.t}) goes from 0 to 1, and needs mode: rotate to be less than 1."
            )
        if self.mode == "rotate" and self.k is None:
            raise InputError(
                "edit: mode rotate turns a subspace of fewer than all directions into another; give a k."
            )

    def directions(self, shape: tuple[int, ...]) -> int:
        """k for a matrix of this shape; a fraction is rounded up."""
        rank = min(shape)
        if self.k is None:
            return rank
        return math.ceil(self.k * rank) if isinstance(self.k, float) else self.k

    def variant(self, shape: tuple[int, ...]) -> Variant:
        """What this edit does to a matrix of this shape."""
        if self.kind == "weight_swap":
            return Variant("weight_swap")
        k = self.directions(shape)
        if k == 0 or self.t == 0:
            return RECIPIENT
        part = "top" if k == min(shape) else self.part
        if self.kind == "random_angle":
            # It turns as an edit of "UV" does; of the modes only `rotate` leaves the basis within alone.
            mode = "rotate" if self.mode == "rotate" else "concatenate"
            return Variant(self.kind, "UV", mode, part, k, self.t, self.seed)
        # Where nothing is left to join, or no directions are exchanged, every mode is the same.
        mode = "concatenate" if k == min(shape) or self.factors == "S" else self.mode
        seed = self.seed if self.kind == "random_norm" else 0
        return Variant(self.kind, self.factors, mode, part, k, self.t, seed)


@dataclass(frozen=True)
class EditReport:
    """How far an edit leads from recipient to donor, over the edited matrices as written.

    With ΔW_edit = edited − recipient, ΔW_donor = donor − recipient and sums over all edited matrices:
    projection p = ⟨ΔW_edit, ΔW_donor⟩ / ‖ΔW_donor‖² (0: stayed, 1: as far as the donor), and
    residual = ‖ΔW_edit − p ΔW_donor‖ / ‖ΔW_donor‖: what is not on the straight way back.
    delta_norm: ‖ΔW_edit‖_F. smallest: the least singular value of the mixed bases [donor's k, recipient's
    others] over the matrices (1: orthonormal as they stand, 0: a direction was lost), as `concatenate` leaves
    them and `orthonormal` mends them; None where no bases are mixed.
    """

    projection: float
    residual: float
    matrices: int
    smallest: float | None = None
    delta_norm: float | None = None
