"""One matrix in two checkpoints, and two updates of it, against scipy and the published formulas."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.linalg import subspace_angles

from rlheals_ray.config import InputError
from rlheals_ray.spectra import decompose
from rlheals_ray.spectra.compare import compare_one, matching_shapes
from rlheals_ray.spectra.null import null_spectrum
from rlheals_ray.spectra.pairwise import compare_matrices
from rlheals_ray.spectra.stock import Stock, StoredMatrix
from rlheals_ray.spectra.updates import compare_two_updates

Q = "model.layers.0.self_attn.q_proj.weight"


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def compared(a: np.ndarray, b: np.ndarray, ks: tuple[int, ...]) -> list[dict[str, Any]]:
    weights = torch.from_numpy(a), torch.from_numpy(b)
    factors = [decompose(weight) for weight in weights]
    null = null_spectrum(max(a.shape), min(a.shape))
    return compare_matrices(lambda: weights[0], lambda: weights[1], factors[0], factors[1], null, ks)


def checkpoint(directory: Path, tensors: dict[str, torch.Tensor], **config: int) -> str:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


# --- pairs


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(20, 20), (30, 12), (12, 30), (180, 140)]),
    change=st.sampled_from([1e-6, 1e-2, 1.0]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 2),
)
def test_every_measure_is_its_formula(shape: tuple[int, int], change: float, scale: float, seed: int) -> None:
    W_a = gaussian(*shape, seed) * scale
    W_b = W_a + change * scale * gaussian(*shape, seed + 1)
    (U_a, S_a, Vh_a), (U_b, S_b, Vh_b) = (np.linalg.svd(W, full_matrices=False) for W in (W_a, W_b))
    delta = W_b - W_a
    for row in compared(W_a, W_b, (1, 5, min(shape))):
        k = row["k"]
        U, V, U2, V2 = U_a[:, :k], Vh_a[:k].T, U_b[:, :k], Vh_b[:k].T
        theta_u, theta_v = subspace_angles(U, U2), subspace_angles(V, V2)
        C, total = U.T @ delta @ V, np.sum(delta**2)
        shares = np.linalg.svd(delta, compute_uv=False)
        shares /= shares.sum()
        expected = {
            "drift_abs_mean": np.abs(S_b - S_a)[:k].mean(),
            "drift_abs_max": np.abs(S_b - S_a)[:k].max(),
            "angle_u_mean": theta_u.mean(), "angle_u_max": theta_u.max(),
            "angle_v_mean": theta_v.mean(), "angle_v_max": theta_v.max(),
            "alignment_u": np.abs(U.T @ U2).max(axis=1).mean(),
            "alignment_v": np.abs(V.T @ V2).max(axis=1).mean(),
            "chordal_u": np.linalg.norm(U @ U.T - U2 @ U2.T) / math.sqrt(2),
            "chordal_v": np.linalg.norm(V @ V.T - V2 @ V2.T) / math.sqrt(2),
            "stretch": np.sum(np.diag(C) ** 2) / total,
            "turn": (np.sum(C**2) - np.sum(np.diag(C) ** 2)) / total,
            "delta_norm": math.sqrt(total),
            "effective_rank_delta": np.exp(-np.sum(shares * np.log(shares))),
        }  # fmt: skip
        for name, value in expected.items():
            # Stored factors are float32: angles have a floor of 1e-7, drift one of 1e-7 σ_1.
            floor = {"drift_abs_mean": 2e-7 * S_a[0], "drift_abs_max": 2e-7 * S_a[0], "delta_norm": 0.0}
            assert row[name] == pytest.approx(value, rel=1e-4, abs=floor.get(name, 1e-6)), name


def test_noise_turns_as_far_as_noise_of_its_length() -> None:
    values = np.geomspace(10, 1, 40)
    W = (np.linalg.qr(gaussian(60, 40, 1))[0] * values) @ np.linalg.qr(gaussian(40, 40, 2))[0].T
    (row,) = compared(W, W + 0.02 * gaussian(60, 40, 3), (8,))
    assert row["angle_u_mean"] == pytest.approx(row["noise_angle_u"], rel=0.35)
    assert row["angle_v_mean"] == pytest.approx(row["noise_angle_v"], rel=0.35)
    assert row["noise_angle_u"] < 0.2 * row["null_angle"]


def test_a_matrix_that_did_not_change_has_no_ratios() -> None:
    (row,) = compared(gaussian(12, 9), gaussian(12, 9), (4, 10))
    assert row["k"] == 4, "there are only 9 directions"
    assert (row["stretch"], row["turn"]) == (None, None)
    zero = ("delta_norm", "drift_max", "effective_rank_delta")
    assert [row[name] for name in zero] == [0, 0, 0]
    assert max(row[name] for name in ("angle_u_max", "angle_v_max", "noise_angle_u")) < 1e-12
    assert row["looks_random"] and 0 < row["random_power"] <= 1


def test_what_was_found_is_used_again_under_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (
        checkpoint(tmp_path / name, {Q: torch.from_numpy(gaussian(20, 16, seed)).float()})
        for seed, name in enumerate("ab")
    )
    row = {"seed": 0, "a": "base", "b": "peak", "a_directory": a, "b_directory": b, "matrix": Q}
    first = compare_one(row, (4, 8), tmp_path / "factors", tmp_path / "parts")
    monkeypatch.setattr("rlheals_ray.spectra.compare.compare_matrices", None)
    again = compare_one({**row, "seed": 1, "b": "late"}, (4, 8), tmp_path / "factors", tmp_path / "parts")
    assert again == [{**found, "seed": 1, "b": "late"} for found in first]
    with pytest.raises(TypeError):
        compare_one(row, (4, 9), tmp_path / "factors", tmp_path / "parts")


def test_parts_of_fused_matrices_and_tied_heads_are_compared_as_matrices_of_their_own(tmp_path: Path) -> None:
    fused, embed = "model.layers.0.self_attn.qkv_proj.weight", "model.embed_tokens.weight"
    weights = [
        {
            fused: torch.from_numpy(gaussian(32, 16, s)).bfloat16(),
            embed: torch.from_numpy(gaussian(40, 16, s)),
        }
        for s in (0, 1)
    ]
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    a, b = (checkpoint(tmp_path / str(s), tensors, **sizes) for s, tensors in enumerate(weights))
    shapes = matching_shapes([(a, b)], ("k", "head"))
    assert shapes[a] == {f"{embed}[head]": (40, 16), f"{fused}[k]": (8, 16)}
    row = {"seed": None, "a": "a", "b": "b", "a_directory": a, "b_directory": b, "matrix": f"{fused}[k]"}
    (found,) = compare_one(row, (3,), tmp_path / "factors")
    assert (found["layer"], found["role"]) == (0, "k")
    W_a, W_b = (tensors[fused][16:24].double().numpy() for tensors in weights)
    U_a, U_b = (np.linalg.svd(W)[0][:, :3] for W in (W_a, W_b))
    assert found["angle_u_max"] == pytest.approx(subspace_angles(U_a, U_b).max(), rel=1e-5)


def test_checkpoints_of_other_shapes_are_told_by_tensor(tmp_path: Path) -> None:
    a, b = (checkpoint(tmp_path / str(rows), {Q: torch.ones(rows, 4)}) for rows in (4, 6))
    with pytest.raises(InputError, match=r"q_proj.weight' has the shapes \(4, 4\) and \(6, 4\)"):
        matching_shapes([(a, b)], ("q",))


def test_stocked_singular_values_are_a_table(tmp_path: Path) -> None:
    sigma = tuple(np.geomspace(9.0, 1.0, 16))
    stock = Stock({str(tmp_path): {Q: StoredMatrix("key", (16, 20), sigma)}})
    table = stock.singular_values([(3, "peak", tmp_path)])
    assert table["sigma"].to_pylist() == pytest.approx(sigma)
    assert table["index"].to_pylist() == list(range(1, 17))
    assert isinstance(table, pa.Table) and table["checkpoint"].to_pylist() == ["peak"] * 16


# --- updates


def updates(first: np.ndarray, second: np.ndarray, ks: tuple[int, ...]) -> list[dict[str, Any]]:
    weights = torch.from_numpy(first), torch.from_numpy(second)
    return compare_two_updates(
        [lambda: weights[0], lambda: weights[1]], [decompose(weight) for weight in weights], ks
    )


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(14, 14), (30, 12), (12, 30)]),
    shared=st.floats(-1, 1),
    scale=st.sampled_from([1e-7, 1.0]),
    seed=st.integers(0, 2**32 - 2),
)
def test_two_updates_by_the_formulas(shape: tuple[int, int], shared: float, scale: float, seed: int) -> None:
    first = scale * gaussian(*shape, seed)
    second = shared * first + scale * gaussian(*shape, seed + 1)
    (U_1, _, Vh_1), (U_2, _, Vh_2) = (np.linalg.svd(delta) for delta in (first, second))
    for row in updates(first, second, (1, 6, 12, 20)):
        k = row["k"]
        expected = {
            "cosine": np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second),
            "angle_u_mean": subspace_angles(U_1[:, :k], U_2[:, :k]).mean(),
            "angle_v_max": subspace_angles(Vh_1[:k].T, Vh_2[:k].T).max(),
            "delta_norm_1": np.linalg.norm(first),
            "delta_norm_2": np.linalg.norm(second),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6 if "norm" not in name else 0), name


def test_an_update_that_is_undone_lies_in_the_same_subspaces_and_points_back() -> None:
    delta = gaussian(20, 10)
    for row in updates(delta, -0.5 * delta, (2, 10)):
        assert row["cosine"] == pytest.approx(-1)
        assert max(row["angle_u_max"], row["angle_v_max"]) < 1e-6
        assert row["effective_rank_1"] == pytest.approx(row["effective_rank_2"])
        assert row["null_angle_u"] > 0.3


def test_unrelated_updates_are_as_far_apart_as_chance_has_it() -> None:
    (row,) = updates(gaussian(60, 50, 1), gaussian(60, 50, 2), (12,))
    assert abs(row["cosine"]) < 4 / math.sqrt(60 * 50)
    assert row["angle_u_mean"] == pytest.approx(row["null_angle_u"], abs=0.06)
    assert row["angle_v_mean"] == pytest.approx(row["null_angle_v"], abs=0.06)


def test_an_update_that_is_zero_has_no_direction() -> None:
    (row,) = updates(gaussian(6, 5), np.zeros((6, 5)), (3,))
    assert (row["cosine"], row["angle_u_mean"], row["delta_norm_2"]) == (None, None, 0)
