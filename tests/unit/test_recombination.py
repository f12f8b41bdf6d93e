"""The laws of recombination over all shapes, ranks and scales, against sums of triplets written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar, subspace_angles

from rlheals_ray.spectra import decompose, recombine
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.recombination import MODES, Recombination
from rlheals_ray.spectra.rotation import complete
from rlheals_ray.spectra.rotation import subspace_angles as fast_angles

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices of one shape, near each other or not, of any rank, from tiny to huge."""
    m, n, seed = draw(st.integers(2, 14)), draw(st.integers(2, 14)), draw(seeds)
    rng = np.random.default_rng(seed)
    rank = draw(st.sampled_from([min(m, n), max(1, min(m, n) // 2)]))
    first = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    second = first + draw(st.sampled_from([1e-6, 0.1, 10.0])) * rng.standard_normal((m, n))
    scale = draw(st.sampled_from([1e-15, 1.0, 1e15]))
    return scale * first, scale * draw(st.sampled_from([1.0, 1e-4, 1e4])) * second


def written_out(recipient: Factors, donor: Factors, k: int, factors: str, part: str) -> np.ndarray:
    """Σ σ_i u_i v_iᵀ, triplet by triplet."""
    rank = len(recipient[1])
    whole = np.zeros((recipient[0].shape[0], recipient[2].shape[1]))
    for i in range(rank):
        swapped = i < k if part == "top" else i >= rank - k
        U, S, Vh = (
            (donor if swapped and letter in factors else recipient)[place].double().numpy()
            for place, letter in enumerate("USV")
        )
        whole += S[i] * np.outer(U[:, i], Vh[i])
    return whole


def apart(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> float:
    """‖a − b‖ / ‖b‖."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@few
@given(
    pair=pairs(),
    factors=st.sampled_from(["UV", "S", "USV"]),
    part=st.sampled_from(["top", "tail"]),
    data=st.data(),
)
def test_going_from_k_to_k_is_the_sum_of_triplets_at_every_k(
    pair: tuple[np.ndarray, np.ndarray], factors: str, part: str, data: st.DataObject
) -> None:
    recipient, donor = (decompose(matrix) for matrix in pair)
    rank = len(recipient[1])
    ks = data.draw(st.sets(st.integers(0, rank), min_size=1))
    found = {
        k: matrix.numpy().copy()
        for (k, _), matrix in Recombination(recipient, donor, part).edited([(k, 1.0) for k in ks], factors)
    }
    assert list(found) == sorted(ks)
    largest = float(max(recipient[1][0], donor[1][0]))
    for k, matrix in found.items():
        expected = written_out(recipient, donor, k, factors, part)
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-13 * largest)
        alone = recombine(recipient, donor, k, factors, part=part)  # type: ignore[arg-type]
        assert apart(alone, expected) <= 1e-6


@few
@given(
    pair=pairs(), mode=st.sampled_from(["concatenate", "orthonormal"]), part=st.sampled_from(["top", "tail"])
)
def test_nothing_of_the_donor_is_the_recipient_and_all_of_it_the_donor(
    pair: tuple[np.ndarray, np.ndarray], mode: str, part: str
) -> None:
    recipient, donor = (decompose(matrix) for matrix in pair)
    for factors in ("UV", "S", "USV"):
        assert apart(recombine(recipient, donor, 0, factors, mode, part=part), pair[0]) <= 1e-6
    assert apart(recombine(recipient, donor, None, "USV", mode, part=part), pair[1]) <= 1e-6
    for factors, values in (("UV", recipient[1]), ("S", donor[1])):
        whole = recombine(recipient, donor, None, factors, mode, part=part).double()  # type: ignore[arg-type]
        assert apart(torch.linalg.svdvals(whole), values) <= 1e-6


@few
@given(
    pair=pairs(),
    part=st.sampled_from(["top", "tail"]),
    factors=st.sampled_from(["UV", "USV"]),
    data=st.data(),
)
def test_orthonormal_and_rotate_keep_the_singular_values_at_any_rank_and_scale(
    pair: tuple[np.ndarray, np.ndarray], part: str, factors: str, data: st.DataObject
) -> None:
    recipient, donor = (decompose(matrix) for matrix in pair)
    rank = len(recipient[1])
    k = data.draw(st.integers(0, rank - 1))
    chosen = slice(0, k) if part == "top" else slice(rank - k, rank)
    values = recipient[1].double().clone()
    if "S" in factors:
        values[chosen] = donor[1][chosen].double()
    values = values.sort(descending=True).values
    for mode, t in (("orthonormal", 1.0), ("rotate", data.draw(st.floats(0, 1)))):
        edited = recombine(recipient, donor, k, factors, mode, part=part, t=t)  # type: ignore[arg-type]
        assert float((torch.linalg.svdvals(edited.double()) - values).abs().max()) <= 1e-5 * float(values[0])


def blocks(seed: int) -> tuple[Factors, torch.Tensor]:
    """Factors of a matrix with repeated singular values, and a rotation within each set of equal ones."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, 6)))[0] for n in (9, 7))
    turn = torch.zeros(6, 6, dtype=torch.float64)
    for block in (slice(0, 2), slice(2, 3), slice(3, 6)):
        size = block.stop - block.start
        turn[block, block] = torch.from_numpy(np.linalg.qr(rng.standard_normal((size, size)))[0])
    values = torch.tensor([3.0, 3, 2, 1, 1, 1])
    return (torch.from_numpy(U).float(), values, torch.from_numpy(V.T.copy()).float()), turn


@pytest.mark.parametrize("part", ["top", "tail"])
@pytest.mark.parametrize("mode", MODES)
def test_the_bases_of_repeated_singular_values_do_not_matter(mode: str, part: str) -> None:
    """Nor do signs, which are turns of one dimension, as long as no set of equal values is cut by k."""
    (recipient, turn), (donor, other) = blocks(1), blocks(2)

    def turned(factors: Factors, by: torch.Tensor) -> Factors:
        U, S, Vh = factors
        return (U.double() @ by).float(), S, (by.mT @ Vh.double()).float()

    for k in (2, 3) if part == "top" else (3, 4):
        for factors in ("UV", "USV"):
            plain = recombine(recipient, donor, k, factors, mode, part=part)
            moved = recombine(
                turned(recipient, turn),
                turned(donor, other),
                k,
                factors,
                mode,
                part=part,
            )
            assert apart(moved, plain) <= 2e-6


@few
@given(seed=seeds, k=st.integers(1, 6), part=st.sampled_from(["top", "tail"]))
def test_the_rotation_asks_for_the_donor_s_subspaces_only(seed: int, k: int, part: str) -> None:
    rng = np.random.default_rng(seed)
    own, other = (decompose(rng.standard_normal((9, 7))) for _ in range(2))
    turn = torch.eye(7, dtype=torch.float64)
    chosen = slice(0, k) if part == "top" else slice(7 - k, 7)
    turn[chosen, chosen] = torch.from_numpy(np.linalg.qr(rng.standard_normal((k, k)))[0])
    again = (other[0].double() @ turn).float(), other[1], (turn.mT @ other[2].double()).float()
    for t in (0.3, 1.0):
        first, second = (recombine(own, donor, k, "UV", "rotate", part=part, t=t) for donor in (other, again))
        assert apart(second, first) <= 1e-5


@few
@given(pair=pairs(), part=st.sampled_from(["top", "tail"]), data=st.data())
def test_the_smallest_singular_value_is_that_of_the_mixed_bases(
    pair: tuple[np.ndarray, np.ndarray], part: str, data: st.DataObject
) -> None:
    recipient, donor = (decompose(matrix) for matrix in pair)
    rank = len(recipient[1])
    k = data.draw(st.integers(0, rank))
    chosen = [i < k if part == "top" else i >= rank - k for i in range(rank)]
    expected = min(
        np.linalg.svd(np.where(chosen, theirs.double(), own.double()), compute_uv=False)[-1]
        for own, theirs in ((recipient[0], donor[0]), (recipient[2].mT, donor[2].mT))
    )
    assert Recombination(recipient, donor, part).smallest([k])[k] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("angle", [math.pi / 2, 0.3, 0.02, 0.009, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_direction_that_changed_places_is_completed_all_the_same(angle: float, dtype: torch.dtype) -> None:
    """The donor's last direction is, but for an angle, the recipient's next: as when σ_k and σ_{k+1} cross."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    kept = basis[:, :8].copy()
    kept[:, 7] = math.cos(angle) * basis[:, 8] + math.sin(angle) * basis[:, 30]
    own = torch.from_numpy(basis[:, 8:24]).to(dtype)
    completed, smallest = complete(torch.from_numpy(kept).to(dtype), own)
    mixed = torch.cat([torch.from_numpy(kept).to(dtype).double(), completed], dim=1)
    rounding = 1e-9 if dtype == torch.float64 else 1e-6
    assert torch.allclose(mixed.T @ mixed, torch.eye(24, dtype=torch.float64), atol=rounding)
    assert smallest == pytest.approx(math.sqrt(1 - math.cos(angle)), rel=1e-4, abs=1e-7)
    if dtype == torch.float64 and angle > 1e-5:
        outside = own.numpy() - kept @ (kept.T @ own.numpy())
        np.testing.assert_allclose(completed, polar(outside)[0], atol=1e-9 / angle)


@few
@given(m=st.integers(2, 16), data=st.data(), distance=st.sampled_from([1e-4, 0.1, 10.0]), seed=seeds)
def test_fast_angles_are_the_principal_angles(
    m: int, data: st.DataObject, distance: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, m))
    first = rng.standard_normal((m, k))
    a, b = (np.linalg.qr(x)[0] for x in (first, first + distance * rng.standard_normal((m, k))))
    found = fast_angles(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(found, subspace_angles(a, b), atol=5e-8)


@pytest.mark.parametrize("part", ["top", "tail"])
@pytest.mark.parametrize("t", [0.25, 1.0])
def test_the_random_turn_goes_t_of_the_way(part: str, t: float) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((20, 16))
    own, donor = decompose(weight), decompose(weight + 0.3 * rng.standard_normal((20, 16)))
    pair = Recombination(own, donor, part)
    turned = pair.randomly_turned(4, 0, subspaces_only=True, t=t)
    chosen, _ = pair.blocks(4)
    after = decompose(turned)
    for own_side, after_side, donor_side in (
        (own[0], after[0], donor[0]),
        (own[2].mT, after[2].mT, donor[2].mT),
    ):
        asked = subspace_angles(own_side[:, chosen].double().numpy(), donor_side[:, chosen].double().numpy())
        got = subspace_angles(own_side[:, chosen].double().numpy(), after_side[:, chosen].double().numpy())
        np.testing.assert_allclose(got, t * asked, atol=1e-4)
