"""Thinned spectra: few rows whatever the rank, the first and the last singular value always among them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray import tables
from rlheals_ray.spectra.overlay import POINTS, kept_indices, singular_value_rows


@given(st.integers(1, 20_000))
def test_the_indices_ascend_from_the_first_to_the_last(rank: int) -> None:
    kept = kept_indices(rank)
    assert (kept[0], kept[-1]) == (1, rank) and (kept[1:] > kept[:-1]).all()
    assert len(kept) == rank if rank <= POINTS else len(kept) <= POINTS


def test_a_rank_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rank=0"):
        kept_indices(0)


def test_rows_carry_the_values_at_their_indices() -> None:
    S = torch.linspace(9, 1, 300)
    rows = singular_value_rows(0, "base", "model.layers.1.mlp.down_proj.weight", S)
    found = tables.table("singular_values", rows)
    assert set(found["role"].to_pylist()) == {"down"} and set(found["layer"].to_pylist()) == {1}
    assert [row["sigma"] for row in rows] == [float(S[row["index"] - 1]) for row in rows]
