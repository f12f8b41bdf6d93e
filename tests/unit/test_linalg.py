"""SVD, principal angles and recombination against float64 LAPACK, scipy and the laws they must obey."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from rlheals_ray.spectra import decompose, principal_angles, recombine
from rlheals_ray.spectra.linalg import row_blocks, singular_values

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 24)
quick = settings(max_examples=40, deadline=None)


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def orthonormal(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(gaussian(n, k, seed))[0]


def spectrum(rows: int, columns: int, values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A matrix with exactly these singular values."""
    k = len(values)
    return (orthonormal(rows, k, seed) * values) @ orthonormal(columns, k, seed + 1).T


# --- decompose


@quick
@given(
    rows=sizes,
    columns=sizes,
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e12]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=seeds,
)
def test_decompose_is_the_exact_thin_svd(
    rows: int, columns: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    weight = torch.from_numpy(gaussian(rows, columns, seed) * scale).to(dtype)
    U, S, Vh = decompose(weight)
    rank = min(rows, columns)
    assert (U.shape, S.shape, Vh.shape) == ((rows, rank), (rank,), (rank, columns))
    assert {U.dtype, S.dtype, Vh.dtype} == {torch.float32}
    exact = weight.double().numpy()
    expected = np.linalg.svd(exact, compute_uv=False)
    well = expected > 1e-8 * expected[0]
    np.testing.assert_allclose(S.numpy()[well], expected[well], rtol=1e-6)
    assert bool((S[:-1] >= S[1:]).all())
    rebuilt = (U.double() * S.double()) @ Vh.double()
    np.testing.assert_allclose(rebuilt, exact, rtol=0, atol=2e-6 * expected[0])
    np.testing.assert_allclose(U.double().mT @ U.double(), np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(Vh.double() @ Vh.double().mT, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("shape", [(320, 130), (130, 320), (200, 200)])
@pytest.mark.parametrize("condition", [1.0, 10.0, 9e3, 1e7])
def test_large_matrices_are_as_exact_on_either_side_of_the_gram_limit(
    shape: tuple[int, int], condition: float
) -> None:
    expected = np.geomspace(1.0, 1.0 / condition, min(shape))
    matrix = spectrum(*shape, expected)
    U, S, Vh = decompose(torch.from_numpy(matrix))
    np.testing.assert_allclose(S.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(U.double().mT @ U.double(), np.eye(min(shape)), atol=1e-6)
    np.testing.assert_allclose((U.double() * S.double()) @ Vh.double(), matrix, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(150, 150), (400, 140), (130, 390), (1500, 200)]),
    body=st.sampled_from(["flat", "power", "steps", "repeated"]),
    tail=st.integers(0, 12),
    condition=st.sampled_from([1e3, 1e5, 1e7]),
    scale=st.sampled_from([1e-18, 1.0, 1e18]),
    seed=seeds,
)
def test_any_spectrum_is_found_to_1e_6_however_few_or_many_values_are_small(
    shape: tuple[int, int], body: str, tail: int, condition: float, scale: float, seed: int
) -> None:
    rank = min(shape)
    values = {
        "flat": np.ones(rank) - 1e-3 * np.arange(rank) / rank,
        "power": np.arange(1.0, rank + 1) ** -0.8,
        "steps": np.geomspace(1, 1 / condition, rank),
        "repeated": np.repeat([3.0, 2.0, 1.0, 0.5], rank)[np.arange(rank) * 4],
    }[body]
    if tail:
        values[-tail:] = values[0] * np.geomspace(1e-4, 1 / condition, tail)
    values = np.sort(values)[::-1] * scale
    matrix = spectrum(*shape, values, seed)
    U, S, Vh = (factor.double().numpy() for factor in decompose(torch.from_numpy(matrix)))
    np.testing.assert_allclose(S, values, rtol=1e-6)
    np.testing.assert_allclose(U.T @ U, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose((U * S) @ Vh, matrix, atol=1e-6 * values[0])
    np.testing.assert_allclose(singular_values(torch.from_numpy(matrix)), values, atol=1e-7 * values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_is_decomposed_in_blocks_of_rows(dtype: torch.dtype) -> None:
    weight = torch.from_numpy(gaussian(9000, 130)).to(dtype)
    assert len(list(row_blocks(weight))) > 4
    U, S, Vh = decompose(weight)
    exact = weight.double().numpy()
    np.testing.assert_allclose(S, np.linalg.svd(exact, compute_uv=False), rtol=1e-6)
    np.testing.assert_allclose((U.double() * S.double()) @ Vh.double(), exact, atol=1e-6 * float(S[0]))


@pytest.mark.parametrize("shape", [(20, 30), (300, 160)])
def test_the_leading_triplets_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    weight = torch.from_numpy(spectrum(*shape, np.geomspace(1, 1e-6, min(shape))))
    U, S, Vh = decompose(weight)
    for k in (1, 7, min(shape)):
        U_k, S_k, Vh_k = decompose(weight, k)
        torch.testing.assert_close(S_k, S[:k])
        torch.testing.assert_close((U_k * S_k) @ Vh_k, (U[:, :k] * S[:k]) @ Vh[:k])
    for k in (0, min(shape) + 1):
        with pytest.raises(ValueError, match=f"k={k} is not within"):
            decompose(weight, k)


@pytest.mark.parametrize("shape", [(9, 6), (200, 150)])
def test_rank_deficiency_repeats_and_zeros_keep_orthonormal_factors(shape: tuple[int, int]) -> None:
    rank = min(shape)
    for values in (np.r_[3.0, 2.0, np.zeros(rank - 2)], np.ones(rank), np.zeros(rank)):
        U, S, Vh = decompose(torch.from_numpy(spectrum(*shape, values)))
        np.testing.assert_allclose(S.numpy(), values, atol=1e-6)
        np.testing.assert_allclose(U.double().mT @ U.double(), np.eye(rank), atol=1e-6)
        np.testing.assert_allclose(Vh.double() @ Vh.double().mT, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e30])
def test_extreme_scales_neither_underflow_nor_overflow(scale: float) -> None:
    matrix = gaussian(150, 140)
    U, _, Vh = decompose(torch.from_numpy(matrix * scale))
    U_1, _, Vh_1 = decompose(torch.from_numpy(matrix))
    assert principal_angles(U[:, :5], U_1[:, :5])[-1] < 1e-5
    assert principal_angles(Vh[:5].mT, Vh_1[:5].mT)[-1] < 1e-5


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (torch.ones(3), r"shape \(3,\)"),
        (torch.ones(2, 0), r"shape \(2, 0\)"),
        (torch.tensor([[1.0, math.nan]]), "1 values that are NaN or Inf"),
        (torch.tensor([[1.0, math.inf]]), "NaN or Inf"),
        (torch.ones(2, 2, dtype=torch.int64), "int64"),
        (torch.full((2, 2), 1e300, dtype=torch.float64), "beyond float32"),
    ],
)
def test_decompose_refuses_what_has_no_svd(weight: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decompose(weight)


# --- principal angles


@quick
@given(n=st.integers(2, 30), data=st.data(), seed=seeds)
def test_angles_agree_with_scipy(n: int, data: st.DataObject, seed: int) -> None:
    k_a, k_b = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    U_a, U_b = gaussian(n, k_a, seed), gaussian(n, k_b, seed + 1)
    angles = principal_angles(U_a, torch.from_numpy(U_b))
    assert angles.dtype == np.float64 and angles.shape == (min(k_a, k_b),)
    # scipy itself returns 1.5e-8 for some angles that are 0 (k_a + k_b > n).
    np.testing.assert_allclose(angles, subspace_angles(U_a, U_b)[::-1], atol=5e-8)
    assert bool((np.diff(angles) >= 0).all())


@quick
@given(
    wanted=st.lists(st.floats(1e-8, math.pi / 2 - 1e-8), min_size=1, max_size=8),
    extra=st.integers(0, 4),
    seed=seeds,
)
def test_known_angles_are_recovered_down_to_1e_8(wanted: list[float], extra: int, seed: int) -> None:
    theta = np.sort(wanted)
    k, n = len(theta), 2 * len(theta) + extra
    axes = orthonormal(n, n, seed)
    tilted = axes[:, :k] * np.cos(theta) + axes[:, k : 2 * k] * np.sin(theta)
    np.testing.assert_allclose(principal_angles(axes[:, :k], tilted), theta, rtol=1e-7, atol=1e-13)


@quick
@given(n=st.integers(4, 20), seed=seeds)
def test_angles_do_not_depend_on_the_basis_or_the_order(n: int, seed: int) -> None:
    k = n // 2
    U_a, U_b = orthonormal(n, k, seed), orthonormal(n, k, seed + 1)
    angles = principal_angles(U_a, U_b)
    turned = U_a @ orthonormal(k, k, seed + 2) * 1e-6
    flipped = U_b * np.where(np.arange(k) % 2, -1.0, 1.0)
    np.testing.assert_allclose(principal_angles(turned, flipped), angles, atol=1e-9)
    np.testing.assert_allclose(principal_angles(U_b, U_a), angles, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("k_b", [3, 9])
def test_nearly_parallel_subspaces_of_unequal_dimension_at_any_scale(scale: float, k_b: int) -> None:
    axes = orthonormal(60, 60, 3)
    tilted = axes[:, :6] * np.cos(1e-8) + axes[:, 20:26] * np.sin(1e-8)
    wider = np.hstack([axes[:, :6], axes[:, 40:46]])[:, :k_b]
    expected = np.full(min(6, k_b), 1e-8)
    np.testing.assert_allclose(principal_angles(tilted * scale, wider / scale), expected, rtol=1e-6)


@quick
@given(n=st.integers(50, 400), k=st.integers(1, 40), exponent=st.floats(-9, -1), seed=seeds)
def test_bases_stored_as_float32_tell_angles_down_to_a_floor_of_1e_7(
    n: int, k: int, exponent: float, seed: int
) -> None:
    theta, axes = 10.0**exponent, orthonormal(n, 2 * min(k, n // 2), seed)
    k = axes.shape[1] // 2
    bases = axes[:, :k], axes[:, :k] * np.cos(theta) + axes[:, k:] * np.sin(theta)
    stored = principal_angles(*(basis.astype(np.float32) for basis in bases))
    # Rounding to float32 turns a unit vector by some 2e-8, and a subspace by about twice that.
    np.testing.assert_allclose(stored, theta, atol=1e-7)
    np.testing.assert_allclose(principal_angles(*bases), theta, rtol=1e-6)


def test_identical_float32_factors_are_zero_apart() -> None:
    U = decompose(torch.from_numpy(gaussian(200, 60)))[0]
    assert principal_angles(U, U.clone())[-1] < 1e-14


@pytest.mark.parametrize(
    ("U_a", "U_b", "problem"),
    [
        (np.ones(3), np.eye(3), "U_a has the shape"),
        (np.eye(3), np.eye(4), "different spaces"),
        (np.eye(3), np.ones((3, 4)), "more columns than rows"),
        (np.ones((3, 2)), np.eye(3), "dependent columns"),
        (np.eye(3), np.zeros((3, 1)), "dependent columns"),
    ],
)
def test_angles_refuse_what_spans_no_subspace(U_a: np.ndarray, U_b: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        principal_angles(U_a, U_b)


# --- recombine


@quick
@given(rows=st.integers(1, 16), columns=st.integers(1, 16), data=st.data(), seed=seeds)
def test_recombine_is_the_sum_of_chosen_triplets(
    rows: int, columns: int, data: st.DataObject, seed: int
) -> None:
    rank = min(rows, columns)
    k = data.draw(st.integers(0, rank))
    recipient = decompose(torch.from_numpy(gaussian(rows, columns, seed)))
    donor = decompose(torch.from_numpy(gaussian(rows, columns, seed + 1)))
    for factors in ("UV", "S", "USV"):
        expected = np.zeros((rows, columns))
        for i in range(rank):
            U = donor[0] if i < k and "U" in factors else recipient[0]
            S = donor[1] if i < k and "S" in factors else recipient[1]
            Vh = donor[2] if i < k and "V" in factors else recipient[2]
            expected += float(S[i]) * np.outer(U[:, i].double(), Vh[i].double())
        edited = recombine(recipient=recipient, donor=donor, k=k, factors=factors)
        assert edited.dtype == torch.float32
        np.testing.assert_allclose(edited, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (15, 15)])
def test_recombine_laws(shape: tuple[int, int]) -> None:
    W_r, W_d = gaussian(*shape, 1), gaussian(*shape, 2) * 3
    recipient, donor = decompose(torch.from_numpy(W_r)), decompose(torch.from_numpy(W_d))
    np.testing.assert_allclose(recombine(recipient, donor, k=0), W_r, atol=1e-5)
    np.testing.assert_allclose(recombine(recipient, donor, k=None, factors="USV"), W_d, atol=1e-5)
    turned = recombine(recipient, donor, k=None, factors="UV")
    np.testing.assert_allclose(np.linalg.svd(turned.double(), compute_uv=False), recipient[1], rtol=1e-5)
    assert principal_angles(decompose(turned)[0][:, :3], donor[0][:, :3])[-1] < 1e-5
    stretched = recombine(recipient, donor, k=None, factors="S")
    np.testing.assert_allclose(np.linalg.svd(stretched.double(), compute_uv=False), donor[1], rtol=1e-5)


def test_recombine_does_not_depend_on_the_signs_of_either_svd() -> None:
    recipient, donor = (
        decompose(torch.from_numpy(gaussian(9, 7, 1))),
        decompose(torch.from_numpy(gaussian(9, 7, 2))),
    )
    signs = torch.tensor([1.0, -1, 1, -1, -1, 1, -1])
    flipped = (donor[0] * signs, donor[1], donor[2] * signs[:, None])
    for factors in ("UV", "S", "USV"):
        torch.testing.assert_close(
            recombine(recipient, flipped, 4, factors), recombine(recipient, donor, 4, factors)
        )


def test_recombine_refuses_what_does_not_fit() -> None:
    recipient, donor = (
        decompose(torch.from_numpy(gaussian(5, 4))),
        decompose(torch.from_numpy(gaussian(4, 5))),
    )
    with pytest.raises(ValueError, match=r"k=5 is not within 0\.\.4"):
        recombine(recipient, recipient, k=5)
    with pytest.raises(ValueError, match="U of recipient and donor differ"):
        recombine(recipient, donor, k=1)
    with pytest.raises(ValueError, match="choose 'UV'"):
        recombine(recipient, recipient, k=1, factors="U")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concatenate"):
        recombine(recipient, recipient, k=1, mode="blend")
