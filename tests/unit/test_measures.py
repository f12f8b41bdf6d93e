"""Measures of matrices and pairs of them: laws, and the calibration of their null values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import ks_2samp

from rlheals_ray.folder import Folder
from rlheals_ray.spectra import decompose, principal_angles
from rlheals_ray.spectra.measures import (
    alignment,
    chordal_distance,
    delta_norm,
    difference,
    drift,
    effective_rank,
    inner,
    noisy,
    norm,
    stretch_and_turn,
)
from rlheals_ray.spectra.null import (
    LEVEL,
    PLANTED,
    gaussian_spectrum,
    looks_random,
    null_angle,
    null_spectrum,
    stored_null_spectrum,
    upper_quantile,
)


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def orthonormal(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(gaussian(n, k, seed))[0]


def test_drift_is_relative_and_silent_about_rounding() -> None:
    found = drift(np.array([4.0, 2.0, 1e-9]), np.array([5.0, 1.0, 1e-10]))
    np.testing.assert_allclose(found, [0.25, 0.5, math.nan])


def test_effective_rank_of_flat_and_peaked_spectra() -> None:
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.r_[5.0, np.zeros(6)]) == pytest.approx(1)
    assert effective_rank(np.zeros(3)) == 0.0


def test_chordal_distance_is_that_of_the_projectors() -> None:
    U_a, U_b = orthonormal(12, 4, 1), orthonormal(12, 4, 2)
    expected = np.linalg.norm(U_a @ U_a.T - U_b @ U_b.T) / math.sqrt(2)
    assert chordal_distance(principal_angles(U_a, U_b)) == pytest.approx(expected)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_even_a_tiny_change_is_exact_to_float32(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    a = torch.from_numpy(gaussian(40, 30)).to(dtypes[0])
    b = (a.double() + 1e-6 * torch.from_numpy(gaussian(40, 30, 1))).to(dtypes[1])
    exact = b.double() - a.double()
    delta = difference(a, b)
    assert delta.dtype == torch.float32
    np.testing.assert_allclose(delta, exact, rtol=6e-8)
    assert delta_norm(a, b) == pytest.approx(float(torch.linalg.matrix_norm(exact)), rel=1e-7)
    assert difference(a.double(), b).dtype == torch.float64


def test_sums_over_whole_matrices_do_not_depend_on_the_blocks() -> None:
    a, b = (torch.from_numpy(gaussian(5000, 120, seed)).float() for seed in (1, 2))
    assert inner(a, b) == pytest.approx(float((a.double() * b.double()).sum()), rel=1e-12)
    assert norm(a) == pytest.approx(float(torch.linalg.matrix_norm(a.double())), rel=1e-12)


def test_noise_is_as_long_as_asked_and_the_same_for_a_seed() -> None:
    weight = torch.from_numpy(gaussian(30, 20)).to(torch.bfloat16)
    changed = noisy(weight, 0.25, seed=3)
    assert norm(changed - weight.double()) == pytest.approx(0.25, rel=1e-9)
    assert torch.equal(noisy(weight, 0.25, seed=3), changed)
    assert not torch.equal(noisy(weight, 0.25, seed=4), changed)


def test_alignment_sees_through_swaps_and_signs() -> None:
    U = torch.from_numpy(orthonormal(12, 4))
    np.testing.assert_allclose(alignment(U, -U[:, [2, 0, 3, 1]]), 1)
    half = torch.stack([U[:, 0] + U[:, 1], U[:, 0] - U[:, 1]], dim=1) / math.sqrt(2)
    np.testing.assert_allclose(alignment(U[:, :2], half), math.sqrt(0.5))


def test_stretch_and_turn_of_the_leading_triplets_are_the_first_of_all() -> None:
    weight, delta = (torch.from_numpy(gaussian(4000, 140, seed)) for seed in (1, 2))
    all_of_them = stretch_and_turn(decompose(weight), delta)
    leading = stretch_and_turn(decompose(weight, 9), delta)
    for whole, first in zip(all_of_them, leading, strict=True):
        np.testing.assert_allclose(first, whole[:9], rtol=1e-5)


def test_stretch_and_turn_tell_scaling_from_rotation() -> None:
    weight = torch.from_numpy(gaussian(10, 8))
    factors = decompose(weight)
    stretch, turn = stretch_and_turn(factors, 0.1 * weight)
    assert stretch[-1] == pytest.approx(1) and turn[-1] == pytest.approx(0, abs=1e-6)
    assert stretch[2] == pytest.approx(float((factors[1][:3] ** 2).sum() / (factors[1] ** 2).sum()), rel=1e-5)
    generator = gaussian(10, 10, 3)
    rotation = torch.from_numpy(generator - generator.T) @ weight
    stretch, turn = stretch_and_turn(factors, rotation)
    # First order: a rotation moves no singular value of W, so its diagonal is zero.
    assert stretch[-1] == pytest.approx(0, abs=1e-6)
    assert (stretch[-1] + turn[-1]) <= 1 + 1e-9
    assert np.isnan(stretch_and_turn(factors, torch.zeros(10, 8))[0]).all()


def test_null_angle_of_lines_and_of_large_subspaces() -> None:
    # In the plane the angle of two lines is uniform on [0, π/2].
    assert null_angle(2, 1) == pytest.approx(math.pi / 4, abs=0.03)
    expected = np.mean(
        [subspace_angles(gaussian(40, 10, 2 * i), gaussian(40, 10, 2 * i + 1)) for i in range(150)]
    )
    assert null_angle(40, 10) == pytest.approx(float(expected), abs=0.02)
    assert null_angle(6, 6) == pytest.approx(0, abs=1e-6)
    assert null_angle(40, 10) == null_angle(40, 10)
    with pytest.raises(ValueError, match="k=7"):
        null_angle(6, 7)


@pytest.mark.parametrize(("n", "k"), [(40, 10), (7, 3), (30, 21)])
def test_null_angles_are_those_of_random_subspaces(n: int, k: int) -> None:
    drawn = np.mean([subspace_angles(gaussian(n, k, 2 * i), gaussian(n, k, 2 * i + 1)) for i in range(400)])
    assert null_angle(n, k) == pytest.approx(float(drawn), abs=0.03)


@pytest.mark.parametrize("planted", [0.0, 9.0, 30.0])
def test_simulated_spectra_have_the_law_of_those_of_whole_matrices(planted: float) -> None:
    rng = np.random.default_rng(0)
    whole = []
    for _ in range(300):
        matrix = rng.standard_normal((40, 12))
        matrix[3, 5] += planted
        whole.append(np.linalg.svd(matrix, compute_uv=False))
    simulated = np.stack([gaussian_spectrum(40, 12, rng, planted) for _ in range(300)])
    for index in (0, 1, 5, 11):
        assert ks_2samp(np.stack(whole)[:, index], simulated[:, index]).pvalue > 1e-4, index


def test_the_power_is_how_often_a_planted_direction_is_found() -> None:
    shape, rng = (96, 64), np.random.default_rng(5)
    strength = PLANTED * (shape[0] * shape[1]) ** 0.25
    found = 0
    for _ in range(200):
        u, v = (rng.standard_normal(size) for size in shape)
        direction = np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        matrix = rng.standard_normal(shape) + strength * direction
        found += not looks_random(np.linalg.svd(matrix, compute_uv=False), shape)
    power = null_spectrum(*shape).power
    assert LEVEL < power < 1
    # Two estimates of one share, from 200 and 300 draws: standard errors of 0.035 and 0.03.
    assert found / 200 == pytest.approx(power, abs=0.17)


def test_larger_matrices_hide_less() -> None:
    assert null_spectrum(64, 64).power < null_spectrum(300, 300).power


def test_a_simulated_null_spectrum_is_kept(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    made = stored_null_spectrum((20, 31), folder)
    assert made == null_spectrum(31, 20) == stored_null_spectrum((31, 20), folder)
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert stored_null_spectrum((20, 31), folder) == made


@pytest.mark.parametrize("draws", [100, 132, 400, 600])
def test_the_threshold_is_exceeded_by_one_in_a_hundred_however_few_the_draws(draws: int) -> None:
    """Another draw exceeds the k-th smallest of n with probability (n + 1 − k)/(n + 1), whatever the law."""
    place = upper_quantile(np.random.default_rng(0).permutation(np.arange(1.0, draws + 1)))
    assert (draws + 1 - place) / (draws + 1) <= LEVEL < (draws + 2 - place) / (draws + 1)


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (300, 40)])
def test_one_gaussian_matrix_in_a_hundred_is_missed(shape: tuple[int, int]) -> None:
    found = [
        looks_random(np.linalg.svd(gaussian(*shape, seed) * 0.02, compute_uv=False), shape)
        for seed in range(300)
    ]
    # At 1 %, 10 or more misses of 300 have probability 0.001; the threshold is an estimate, too.
    assert 300 - sum(found) <= 12


@pytest.mark.parametrize("shape", [(64, 64), (64, 128)])
def test_learnt_structure_does_not_look_random(shape: tuple[int, int]) -> None:
    def looks(matrix: np.ndarray) -> bool:
        return looks_random(np.linalg.svd(matrix, compute_uv=False), shape)

    noise = gaussian(*shape)
    spike = 40.0 * np.outer(orthonormal(shape[0], 1, 1), orthonormal(shape[1], 1, 2))
    assert not looks(noise + spike), "an outlier beyond the bulk's edge"
    assert not looks(np.random.default_rng(0).standard_t(2.5, shape)), "heavy-tailed entries"
    assert not looks(np.diag(np.arange(1.0, 65.0) ** -0.7) @ np.eye(*shape)), "a power law"
    assert not looks(noise @ np.diag(np.linspace(0.3, 1.7, shape[1]))), "a deformed bulk"
    assert not looks(np.zeros(shape))


def test_a_spectrum_must_be_complete() -> None:
    with pytest.raises(ValueError, match="64"):
        looks_random(np.ones(63), (64, 128))
