"""`jobs/spectra.py --a --b [--c]` as a user runs it: killed, resumed, and refusing wrong input."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import save_file

from rlheals_ray import tables
from rlheals_ray.spectra.command_compare import main
from rlheals_ray.spectra.compare import compare_one

REPOSITORY = Path(__file__).parents[2]
KS = (4, 32)
LAYERS = 12


def matrices(size: int) -> dict[str, tuple[int, int]]:
    parts = {"self_attn.q": (size, size), "self_attn.k": (size // 2, size), "mlp.down": (size, 2 * size)}
    return {
        f"model.layers.{layer}.{part}_proj.weight": shape
        for layer in range(LAYERS)
        for part, shape in parts.items()
    }


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three checkpoints of a drifting model, big enough for a kill to hit something."""
    root = tmp_path_factory.mktemp("trunk")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator).bfloat16() for name, shape in matrices(288).items()
    }
    directories = []
    for step in range(3):
        (root / f"step={step}").mkdir()
        save_file(weights, root / f"step={step}" / "model.safetensors")
        directories.append(str(root / f"step={step}"))
        weights = {
            name: weight + 0.05 * torch.randn(weight.shape, generator=generator).bfloat16()
            for name, weight in weights.items()
        }
    return directories


def command(*arguments: str) -> list[str]:
    return [sys.executable, "jobs/spectra.py", *arguments, "--workers", "2", "--k", "4,32"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )  # fmt: skip


def modified(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_at_a_random_moment_it_resumes_matrix_by_matrix(trunk: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--a", trunk[0], "--b", trunk[1], "--c", trunk[2], "--out", str(out))
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command(*arguments), cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
        while not any(out.glob("factors/*/*.safetensors")) and driver.poll() is None:
            time.sleep(0.02)
        delay = random.uniform(0, 4)
        time.sleep(delay)
        ended = driver.poll()
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    time.sleep(1)  # Ray's processes end with their driver, a moment later
    factors, parts = modified(out / "factors"), modified(out / "parts")
    whole = {path: at for path, at in (factors | parts).items() if not path.name.startswith(".")}
    print(
        f"killed {delay:.2f} s after the first factors, driver {'ran' if ended is None else ended}; "
        f"{len(factors)} factors, {len(parts)} results were there"
    )
    assert factors, (tmp_path / "log").read_text()
    resumed = run(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in whole} == whole, "a stored result was made again"

    spectra, updates = (pq.read_table(out / "tables" / f"{name}.parquet") for name in ("spectra", "updates"))
    assert (spectra.schema.names, updates.schema.names) == (tables.SPECTRA.names, tables.UPDATES.names)
    rows = spectra.to_pylist()
    pairs = [("step=0", "step=1"), ("step=1", "step=2"), ("step=0", "step=2")]
    assert [(row["a"], row["b"], row["matrix"], row["k"]) for row in rows] == [
        (a, b, name, k)
        for a, b in pairs
        for name in sorted(
            matrices(288), key=lambda n: (int(n.split(".")[2]), "qkd".index(n.split(".")[4][0]))
        )
        for k in KS
    ], "rows are missing, double or out of order"
    for row in random.sample(rows, 3):
        one = {**row, "a_directory": trunk[int(row["a"][-1])], "b_directory": trunk[int(row["b"][-1])]}
        (alone,) = compare_one(one, (row["k"],), tmp_path / "factors")
        for column, value in alone.items():
            assert row[column] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (
                column
            )
    assert len(updates) == len(matrices(288)) * len(KS)
    assert all(row["cosine"] == pytest.approx(0, abs=0.1) for row in updates.to_pylist())


def test_three_checkpoints_as_a_user_compares_them(
    ray_cluster: None, trunk: list[str], tmp_path: Path
) -> None:
    out, address = tmp_path / "out", ray.get_runtime_context().gcs_address
    models = ("--a", trunk[0], "--b", trunk[1], "--c", trunk[2])
    ended = run(*models, "--out", str(out), "--roles", "k", "--address", address)
    assert ended.returncode == 0, ended.stderr
    spectra, updates = (pq.read_table(out / "tables" / f"{name}.parquet") for name in ("spectra", "updates"))
    assert (spectra.schema, updates.schema) == (tables.SPECTRA, tables.UPDATES)
    assert (len(spectra), len(updates)) == (3 * LAYERS * len(KS), LAYERS * len(KS))
    for words in ("step=0 → step=1", "step=0 → step=2", "role", "looks random", "12 of 12", "ΔW₁ beside ΔW₂"):
        assert words in ended.stdout, ended.stdout


def test_wrong_input_is_one_paragraph_and_leaves_nothing(
    ray_cluster: None, trunk: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, diverged = tmp_path / "out", tmp_path / "diverged"
    diverged.mkdir()
    weights = {name: torch.ones(shape) for name, shape in matrices(16).items()}
    name = "model.layers.3.mlp.down_proj.weight"
    save_file(weights, tmp_path / "model.safetensors")
    weights[name][2, 3] = float("nan")
    save_file(weights, diverged / "model.safetensors")
    good, bad = str(tmp_path), str(diverged)
    for arguments, words in [
        (["--b", bad], [name, "NaN", "earlier checkpoint"]),
        (["--b", trunk[0]], ["layers.0.mlp.down_proj", "(16, 32)", "one architecture"]),
        (["--b", f"{good}/absent"], ["absent", "no such directory"]),
        (["--b", good], ["--b", "must differ"]),
        (["--b", bad, "--roles", "q,x"], ["--roles", "['x']", "choose from"]),
        (["--b", bad, "--roles", "head"], ["head", "no such matrix"]),
        (["--b", bad, "--k", "8,0"], ["--k", "'0'"]),
        (["--b", bad, "--workers", "0"], ["--workers", "at least 1"]),
        (["--b", bad, "--out", bad], ["--out", "another directory"]),
        (["--b", bad, "--out", f"{good}/model.safetensors/x"], ["--out", "no writable directory"]),
    ]:
        assert main(["--a", good, "--out", str(out), *arguments]) == 2
        err = capsys.readouterr().err
        told = err.splitlines()[-1]  # before it, at most what progress was made
        assert told.startswith("spectra: ") and all(word in told for word in words), err
        assert not out.exists(), arguments


def test_help_tells_of_both_uses() -> None:
    ended = subprocess.run(
        [sys.executable, "jobs/spectra.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert ended.returncode == 0
    assert "--a DIR" in ended.stdout and "STUDY [field=value ...]" in ended.stdout
