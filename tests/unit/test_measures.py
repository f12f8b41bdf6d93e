"""Measures of matrices and pairs of them: laws, and the calibration of their null values."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from rlheals_ray.spectra import decompose, principal_angles
from rlheals_ray.spectra.measures import (
    chordal_distance,
    drift,
    effective_rank,
    stretch_and_turn,
)
from rlheals_ray.spectra.null import looks_random, null_angle


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
