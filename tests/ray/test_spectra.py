"""The comparison and the edits on Ray give what a plain loop gives, and reuse what is stored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import subspace_angles

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.compare import Pair, compare, compare_one
from rlheals_ray.spectra.stock import Workers, stocked
from rlheals_ray.spectra.updates import Chain, compare_updates

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
KS = (4, 16, 20)
SHAPES = {
    f"model.layers.{layer}.{part}_proj.weight": shape
    for layer in range(2)
    for part, shape in {
        "self_attn.q": (32, 32), "self_attn.k": (16, 32), "self_attn.v": (16, 32), "self_attn.o": (32, 32),
        "mlp.gate": (48, 32), "mlp.up": (48, 32), "mlp.down": (32, 48),
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four checkpoints of a drifting model; its first k matrix never changes."""
    root = tmp_path_factory.mktemp("trunk")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    directories = []
    for step in range(4):
        directory = root / f"step={step}"
        directory.mkdir()
        save_file(weights, directory / "model.safetensors")
        directories.append(str(directory))
        frozen = "model.layers.0.self_attn.k_proj.weight"
        weights = {
            name: weight if name == frozen else weight + 0.05 * torch.randn(weight.shape, generator=generator)
            for name, weight in weights.items()
        }
    return directories


@pytest.fixture(scope="module")
def pairs(trunk: list[str]) -> list[Pair]:
    return [Pair(0, "step=0", f"step={step}", trunk[0], trunk[step]) for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def factors_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("factors")


@pytest.fixture(scope="module")
def compared(ray_cluster: None, pairs: list[Pair], factors_directory: Path) -> pa.Table:
    return compare(pairs, ROLES, KS, factors_directory, concurrency=2, num_cpus=0.25)


def test_ray_gives_what_a_loop_gives_in_its_order(
    compared: pa.Table, pairs: list[Pair], tmp_path: Path
) -> None:
    parts = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    names = [f"model.layers.{layer}.{part}_proj.weight" for layer in range(2) for part in parts]
    rows = [
        row
        for pair in pairs
        for name in names
        for row in compare_one({**vars(pair), "matrix": name}, KS, tmp_path)
    ]
    assert compared.schema == tables.SPECTRA
    expected = tables.table("spectra", rows)
    assert compared.select(["b", "matrix", "k", "layer", "role"]) == expected.select(
        ["b", "matrix", "k", "layer", "role"]
    )
    for column in compared.column_names[7:-1]:
        for found, wanted in zip(compared[column].to_pylist(), expected[column].to_pylist(), strict=True):
            assert found == (wanted if wanted is None else pytest.approx(wanted, rel=1e-4, abs=1e-6)), column
    assert compared["looks_random"] == expected["looks_random"]


def test_measures_agree_with_lapack_and_scipy(compared: pa.Table, trunk: list[str]) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    (row,) = (r for r in compared.to_pylist() if (r["b"], r["matrix"], r["k"]) == ("step=2", name, 16))
    W_a, W_b = (Checkpoint(Path(trunk[step])).tensor(name).double().numpy() for step in (0, 2))
    (U_a, S_a, Vh_a), (U_b, S_b, Vh_b) = (np.linalg.svd(W, full_matrices=False) for W in (W_a, W_b))
    change = np.abs(S_b - S_a)[:16] / S_a[:16]
    angles_u, angles_v = subspace_angles(U_a[:, :16], U_b[:, :16]), subspace_angles(Vh_a[:16].T, Vh_b[:16].T)
    C = U_a[:, :16].T @ (W_b - W_a) @ Vh_a[:16].T
    total = np.linalg.norm(W_b - W_a) ** 2
    expected = {
        "layer": 1, "role": "down", "drift_mean": change.mean(), "drift_max": change.max(),
        "angle_u_mean": angles_u.mean(), "angle_u_max": angles_u.max(), "angle_v_mean": angles_v.mean(),
        "angle_v_max": angles_v.max(), "stretch": np.sum(np.diag(C) ** 2) / total,
        "turn": (np.sum(C**2) - np.sum(np.diag(C) ** 2)) / total, "delta_norm": np.sqrt(total),
    }  # fmt: skip
    assert {key: row[key] for key in expected} == {
        key: pytest.approx(value, rel=1e-4) if not isinstance(value, str) else value
        for key, value in expected.items()
    }
    assert 0 < row["angle_u_mean"] < row["null_angle"]


def test_a_k_beyond_the_matrix_is_skipped_and_a_frozen_matrix_has_no_ratios(compared: pa.Table) -> None:
    frozen = [
        row for row in compared.to_pylist() if row["matrix"] == "model.layers.0.self_attn.k_proj.weight"
    ]
    assert [row["k"] for row in frozen] == [4, 16] * 3
    assert {(row["stretch"], row["turn"], row["delta_norm"], row["drift_max"]) for row in frozen} == {
        (None, None, 0, 0)
    }
    assert max(row["angle_v_max"] for row in frozen) < 1e-12
    assert sum(compared["looks_random"].to_pylist()) > 0.9 * compared.num_rows, "they are Gaussian"


def test_each_distinct_matrix_is_stored_once_and_reused(
    compared: pa.Table, ray_cluster: None, pairs: list[Pair], factors_directory: Path, tmp_path: Path
) -> None:
    stored = modified(factors_directory)
    factors = [path for path in stored if path.suffix == ".safetensors"]
    assert len(factors) == 4 * len(SHAPES) - 3, "three copies of the frozen matrix share one file"
    told: list[int] = []
    directories = [directory for pair in pairs for directory in (pair.a_directory, pair.b_directory)]
    stock = stocked(directories, ROLES, factors_directory, Workers(2, 0.25))
    again = compare(
        pairs, ROLES, KS, factors_directory, 2, 0.25, results=tmp_path, stock=stock, progress=told.append
    )
    assert again == compared
    assert modified(factors_directory) == stored
    assert sum(told) == len(pairs) * len(SHAPES)
    parts = modified(tmp_path)
    assert compare(pairs, ROLES, KS, factors_directory, 2, 0.25, results=tmp_path, stock=stock) == compared
    assert modified(tmp_path) == parts and len(parts) == len(pairs) * len(SHAPES) - 2, (
        "frozen thrice, found once"
    )

    values = stock.singular_values([(0, "step=2", pairs[1].b_directory)])
    name = "model.layers.1.mlp.down_proj.weight"
    expected = torch.linalg.svdvals(Checkpoint(pairs[1].b_directory).tensor(name).double())
    found = [row for row in values.to_pylist() if row["matrix"] == name]
    assert [row["sigma"] for row in found] == pytest.approx(
        [float(expected[row["index"] - 1]) for row in found], rel=1e-6
    )


def test_updates_of_a_chain_of_checkpoints(
    ray_cluster: None, trunk: list[str], factors_directory: Path
) -> None:
    chains = [
        Chain(0, "step=0", "step=1", "step=3", trunk[0], trunk[1], trunk[3]),
        Chain(0, "step=0", "step=1", "step=0", trunk[0], trunk[1], trunk[0]),
    ]
    table = compare_updates(chains, ("q", "k"), (4, 20), factors_directory, 2, 0.25)
    assert table.schema == tables.UPDATES
    rows = table.to_pylist()
    assert [(row["c"], row["role"], row["k"]) for row in rows[:4]] == [
        ("step=3", "q", 4), ("step=3", "q", 20), ("step=3", "k", 4), ("step=3", "q", 4)
    ], "k has 16 directions"  # fmt: skip
    frozen = [row for row in rows if row["matrix"] == "model.layers.0.self_attn.k_proj.weight"]
    assert {(row["cosine"], row["angle_u_mean"], row["delta_norm_1"]) for row in frozen} == {(None, None, 0)}
    moved = [row for row in rows if row["cosine"] is not None]
    onwards, back = ([row for row in moved if row["c"] == c] for c in ("step=3", "step=0"))
    assert all(abs(row["cosine"]) < 0.2 for row in onwards), "each step is fresh noise"
    assert all(row["cosine"] == pytest.approx(-1) and row["angle_v_max"] < 1e-6 for row in back)


def modified(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_wrong_input_is_named(
    ray_cluster: None, trunk: list[str], factors_directory: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    diverged, other = tmp_path / "diverged", tmp_path / "other"
    for directory, weight in ((diverged, torch.full((48, 32), float("nan"))), (other, torch.ones(32, 48))):
        directory.mkdir()
        source = Checkpoint(Path(trunk[1]))
        weights = {n: source.tensor(n) for n in source.names()}
        save_file({**weights, name: weight}, directory / "model.safetensors")

    def against(directory: Path, roles: tuple[str, ...] = ROLES) -> None:
        compare([Pair(0, "a", "b", trunk[0], str(directory))], roles, KS, factors_directory, 2, 0.25)

    with pytest.raises(InputError, match=f"'{name}' holds NaN or Inf") as caught:
        against(diverged)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="one architecture"):
        against(other)
    with pytest.raises(InputError, match="no such directory"):
        against(tmp_path / "absent")
    with pytest.raises(InputError, match="no such matrix"):
        against(Path(trunk[1]), roles=("head",))


def test_no_pair_is_an_empty_table(tmp_path: Path) -> None:
    assert compare([], ROLES, KS, tmp_path) == tables.SPECTRA.empty_table()
