"""Singular values and vectors of checkpoints: how training moves them, and what edits of them do."""

from rlheals_ray.spectra.linalg import decompose, principal_angles
from rlheals_ray.spectra.recombination import recombine

__all__ = ["decompose", "principal_angles", "recombine"]
