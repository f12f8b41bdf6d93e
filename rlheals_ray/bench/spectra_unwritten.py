"""Every edited matrix made and none written: what a Ray worker runs in the ablation without writing.

A file of its own, so that workers import the system and not the published procedure with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from rlheals_ray.spectra.edit import Variant
from rlheals_ray.spectra.factors import stored_factors
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.variants import edited_matrices


def make_unwritten(batch: pa.Table, catalogue: Sequence[dict[str, Any]], factors: str) -> pa.Table:
    """As `ablation.make_rows`, but that no piece is written: how many edited matrices were made."""
    torch.set_num_threads(1)
    variants = [Variant(**fields) for fields in catalogue]
    counts = []
    for row in batch.to_pylist():
        (name,) = row["tensors"]
        recipient, donor = (Matrices.of(row[side]).tensor(name) for side in ("recipient", "donor"))
        wanted = [variants[index] for index in row["variants"]]
        counts.append(_count(name, recipient, donor, wanted, factors))
    return pa.table({"made": counts})


def _count(
    name: str, recipient: torch.Tensor, donor: torch.Tensor, wanted: Sequence[Variant], factors: str
) -> int:
    """How many variants were made; raises what kept one from being made."""

    def both() -> tuple[Factors, Factors]:
        return stored_factors(recipient, factors), stored_factors(donor, factors)

    made = 0
    for _, edited in edited_matrices(name, recipient, donor, wanted, both):
        if isinstance(edited, Exception):
            raise edited
        made += 1
    return made
