"""Many edits on Ray: what one process writes, every matrix made once, found again after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.edit import KINDS, Edit, EditReport

SHAPES = {
    f"model.layers.{layer}.{part}_proj.weight": shape
    for layer in range(4)
    for part, shape in {"self_attn.q": (32, 32), "self_attn.k": (16, 32), "mlp.down": (32, 48)}.items()
} | {"model.norm.weight": (32,), "model.embed_tokens.weight": (40, 32)}
ROLES = ("q", "k", "down")


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Edit:
    """An edit of two checkpoints that have one matrix in common."""
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for directory in ("donor", "recipient"):
        (root / directory).mkdir()
        save_file(weights, root / directory / "model.safetensors")
        (root / directory / "config.json").write_text("{}")
        for name, weight in weights.items():
            if name != "model.layers.0.self_attn.k_proj.weight":
                weights[name] = weight + 0.1 * torch.randn(weight.shape, generator=generator)
    return Edit(str(root / "donor"), str(root / "recipient"), roles=ROLES, k=8)


def grid(edit: Edit, out: Path) -> list[Order]:
    """Two k × two blocks of layers × every kind, and two more modes."""
    edits = [
        replace(edit, k=k, layers=layers, kind=kind)
        for k in (4, 8)
        for layers in ((0, 1), (2, 3))
        for kind in KINDS
    ] + [replace(edit, mode="orthonormal"), replace(edit, mode="rotate", t=0.5)]
    return [
        Order(edit, str(out / str(number)), {"provenance.json": b"{}"}) for number, edit in enumerate(edits)
    ]


def contents(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(directory)
    checkpoint.check()
    return {name: checkpoint.tensor(name).clone() for name in checkpoint.names()}


def files(directory: Path) -> dict[Path, tuple[int, int]]:
    """Every file below, with what changes when it is written again."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()
    }


def test_ray_writes_what_one_process_writes_and_each_matrix_once(
    ray_cluster: None, edit: Edit, tmp_path: Path
) -> None:
    alone, together = grid(edit, tmp_path / "alone"), grid(edit, tmp_path / "together")
    factors = str(tmp_path / "factors")
    expected = run_edits(alone, factors, str(tmp_path / "pieces-alone"), 0)
    pieces = tmp_path / "pieces"
    assert run_edits(together, factors, str(pieces), concurrency=2, num_cpus=0.25) == expected
    assert all(isinstance(report, EditReport) for report in expected)
    for one, other in zip(alone, together, strict=True):
        first, second = contents(Path(one.out)), contents(Path(other.out))
        assert first.keys() == second.keys() == SHAPES.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (Path(other.out) / "provenance.json").read_bytes() == b"{}"
    made = files(pieces)
    linked = {path for order in together for path in Path(order.out).glob("*.safetensors")}
    assert {os.stat(path).st_ino for path in linked} <= {os.stat(path).st_ino for path in made}
    # 11 matrices that differ: 2 k × 4 kinds, the swap, two modes, the recipient's own; one that does not; the rest.
    assert len(made) == 11 * 12 + 1 + 1
    again = run_edits(grid(edit, tmp_path / "again"), factors, str(pieces), concurrency=2, num_cpus=0.25)
    assert again == expected
    assert files(pieces) == made


def test_wrong_input_is_named_before_anything_is_written(
    ray_cluster: None, edit: Edit, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = contents(Path(edit.donor_directory))
    tensors[name] = torch.full((32, 48), float("nan"))
    (tmp_path / "diverged").mkdir()
    save_file(tensors, tmp_path / "diverged" / "model.safetensors")
    good = Order(edit, str(tmp_path / "good"))
    for bad, problem in (
        (replace(edit, donor_directory=str(tmp_path / "diverged")), f"'{name}' holds NaN or Inf"),
        (replace(edit, k=33), "exceeds the 32 singular directions"),
    ):
        with pytest.raises(InputError, match=problem) as caught:
            run_edits(
                [good, Order(bad, str(tmp_path / "bad"))], str(tmp_path / "f"), str(tmp_path / "p"), 1, 0.25
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "bad").exists() and not (tmp_path / "good").exists()


def command(edit: Edit, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    job = Path(__file__).parents[2] / "jobs" / "edit.py"
    paths = ("--donor", edit.donor_directory, "--recipient", edit.recipient_directory, "--out", str(out))
    how = ("--roles", "q,k,down", "--layers", "0-1", "--workers", "2")
    # What Ray sets for the cluster of these tests is not meant for another one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, str(job), *paths, *how, *more],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow  # whole studies edit in every run
def test_the_command_writes_edits_with_their_controls_and_a_table(edit: Edit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = command(edit, out, "--k", "4,0.25")
    assert first.returncode == 0, first.stderr
    table = pq.read_table(out / "tables" / "edits.parquet")
    assert table.schema == tables.EDITS
    rows = table.to_pylist()
    assert [row["kind"] for row in rows] == list(KINDS) * 2
    assert len({row["group"] for row in rows}) == 2 and len({row["edit"] for row in rows}) == 9
    assert {(row["k"], row["k_fraction"]) for row in rows} == {(4, None), (None, 0.25)}
    assert {row["acc_1"] for row in rows} == {None} and rows[0]["layers"] == [0, 1]
    (expected,) = run_edits(
        [Order(replace(edit, k=4, layers=(0, 1)), str(tmp_path / "alone"))],
        str(tmp_path / "f"),
        str(tmp_path / "p"),
        0,
    )
    assert isinstance(expected, EditReport)
    assert (rows[0]["projection"], rows[0]["smallest"]) == (expected.projection, expected.smallest)
    assert rows[0]["edit"] in first.stdout and f"{expected.projection:.4f}" in first.stdout
    written, alone = contents(out / rows[0]["edit"]), contents(tmp_path / "alone")
    assert all(torch.equal(written[name], alone[name]) for name in alone)
    assert sorted(p.name for p in out.iterdir() if p.is_dir() and not (p / "config.json").exists()) == [
        "factors",
        "tables",
    ]
    before = files(out)
    again = command(edit, out, "--k", "4,0.25")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    table_file = out / "tables" / "edits.parquet"
    assert {p: w for p, w in files(out).items() if p != table_file} == {
        p: w for p, w in before.items() if p != table_file
    }


@pytest.mark.slow
def test_the_command_leaves_nothing_of_a_diverged_checkpoint(edit: Edit, tmp_path: Path) -> None:
    tensors = contents(Path(edit.donor_directory))
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("inf")
    (tmp_path / "diverged").mkdir()
    save_file(tensors, tmp_path / "diverged" / "model.safetensors")
    failed = command(replace(edit, donor_directory=str(tmp_path / "diverged")), tmp_path / "out", "--k", "4")
    assert failed.returncode == 2 and "holds NaN or Inf" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
