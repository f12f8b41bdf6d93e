"""Edited checkpoints: which tensors change, how far they go, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra import decompose, recombine
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.edit import Edit, EditReport
from rlheals_ray.spectra.factors import stored_factors
from rlheals_ray.spectra.roles import locate, select

Q0, DOWN0, Q1 = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
)
SHAPES = {
    Q0: (8, 8), DOWN0: (8, 12), Q1: (8, 8), "model.layers.0.input_layernorm.weight": (8,),
    "model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8),
}  # fmt: skip


def checkpoint(directory: Path, seed: int, dtype: torch.dtype = torch.float32) -> str:
    generator = torch.Generator().manual_seed(seed)
    directory.mkdir()
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(f'{{"seed": {seed}}}')
    return str(directory)


def write_edit(edit: Edit, out: Path, factors: Path, **options: Any) -> EditReport:
    """The one engine, for one edit, in this process."""
    (report,) = run_edits([Order(edit, str(out))], str(factors), str(out.parent / "pieces"), 0, **options)
    assert isinstance(report, EditReport), report
    return report


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    return Edit(checkpoint(tmp_path / "donor", 1), checkpoint(tmp_path / "recipient", 2), roles=("q", "down"))


# --- roles


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj.weight", (3, "q")),
        ("model.layers.27.self_attn.o_proj.weight", (27, "o")),
        ("model.language_model.layers.5.mlp.gate_proj.weight", (5, "gate")),
        ("language_model.model.layers.5.mlp.up_proj.weight", (5, "up")),
        ("model.embed_tokens.weight", (None, "embed")),
        ("lm_head.weight", (None, "head")),
        ("model.layers.3.self_attn.q_proj.bias", None),
        ("model.layers.3.self_attn.q_norm.weight", None),
        ("model.layers.3.cross_attn.q_proj.weight", None),
        ("vision_model.transformer.layers.3.self_attn.q_proj.weight", None),
        ("model.norm.weight", None),
    ],
)
def test_names_tell_layer_and_role(name: str, place: tuple[int | None, str] | None) -> None:
    assert locate(name) == place


def test_selection_is_by_role_and_layer_in_the_order_of_layers() -> None:
    names = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in (10, 2) for role in "vq"]
    everything = [*names, "lm_head.weight"]
    assert select(everything, ["q", "head"]) == ["lm_head.weight", names[3], names[1]]
    assert select(everything, ["q", "v", "head"], layers=[10]) == [names[1], names[0]]
    with pytest.raises(ValueError, match="'query'"):
        select(everything, ["query"])


# --- stored factors


def test_a_matrix_is_decomposed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(weight: torch.Tensor) -> object:
        calls.append(weight)
        return decompose(weight)

    monkeypatch.setattr("rlheals_ray.spectra.factors.decompose", counted)
    weight = torch.randn(6, 4)
    for _ in range(3):
        for stored, expected in zip(stored_factors(weight, tmp_path), decompose(weight), strict=True):
            assert torch.equal(stored, expected)
    assert len(calls) == 1
    stored_factors(weight * 2, tmp_path)
    assert len(calls) == 2
    next(tmp_path.glob("*/*.safetensors")).write_bytes(b"damaged")
    stored_factors(weight, tmp_path)
    stored_factors(weight * 2, tmp_path)
    assert len(calls) == 3, "a damaged file is replaced"
    assert len(list(tmp_path.rglob("*.*"))) == 2, "no temporary file is left"


# --- edits


def test_only_the_chosen_matrices_change(edit: Edit, tmp_path: Path) -> None:
    chosen = replace(edit, roles=("q",), layers=(1,), k=3)
    report = write_edit(chosen, tmp_path / "out", tmp_path / "factors")
    out, recipient, donor = (
        Checkpoint(Path(d)) for d in (tmp_path / "out", edit.recipient_directory, edit.donor_directory)
    )
    assert report.matrices == 1
    assert [name for name in out.names() if not torch.equal(out.tensor(name), recipient.tensor(name))] == [Q1]
    expected = recombine(decompose(recipient.tensor(Q1)), decompose(donor.tensor(Q1)), k=3)
    assert torch.equal(out.tensor(Q1), expected)
    assert (tmp_path / "out" / "config.json").read_text() == '{"seed": 2}'


def test_the_weight_swap_goes_all_the_way(edit: Edit, tmp_path: Path) -> None:
    report = write_edit(replace(edit, kind="weight_swap", k=99), tmp_path / "out", tmp_path / "factors")
    out, donor = Checkpoint(tmp_path / "out"), Checkpoint(Path(edit.donor_directory))
    assert all(torch.equal(out.tensor(name), donor.tensor(name)) for name in (Q0, Q1, DOWN0))
    assert not torch.equal(out.tensor("lm_head.weight"), donor.tensor("lm_head.weight"))
    assert (report.projection, report.residual, report.matrices) == (1.0, 0.0, 3)
    assert not (tmp_path / "factors").exists(), "a swap needs no decomposition"


def test_all_factors_are_the_weight_swap_and_none_is_the_recipient(edit: Edit, tmp_path: Path) -> None:
    whole = write_edit(replace(edit, factors="USV"), tmp_path / "whole", tmp_path / "factors")
    assert whole.projection == pytest.approx(1, abs=1e-6) and whole.residual == pytest.approx(0, abs=1e-3)
    none = write_edit(replace(edit, k=0), tmp_path / "none", tmp_path / "factors")
    assert none.projection == pytest.approx(0, abs=1e-6) and none.residual == pytest.approx(0, abs=1e-5)


def written_change(directory: Path, recipient: str) -> np.ndarray:
    after, before = Checkpoint(directory), Checkpoint(Path(recipient))
    return np.concatenate(
        [(after.tensor(n).double() - before.tensor(n).double()).flatten() for n in (Q0, Q1, DOWN0)]
    )


@pytest.mark.parametrize("kind", ["edit", "interpolation", "random_angle", "random_norm"])
def test_projection_and_residual_split_the_change_along_the_way_to_the_donor(
    edit: Edit, tmp_path: Path, kind: str
) -> None:
    report = write_edit(replace(edit, kind=kind, k=4), tmp_path / "out", tmp_path / "factors")
    e = written_change(tmp_path / "out", edit.recipient_directory)
    d = written_change(Path(edit.donor_directory), edit.recipient_directory)
    p = float(e @ d / (d @ d))
    assert report.projection == pytest.approx(p)
    assert report.residual == pytest.approx(np.linalg.norm(e - p * d) / np.linalg.norm(d))
    assert math.hypot(report.projection, report.residual) == pytest.approx(
        np.linalg.norm(e) / np.linalg.norm(d)
    )


def test_interpolation_goes_straight_and_as_far_as_the_edit(edit: Edit, tmp_path: Path) -> None:
    short = replace(edit, k=2, roles=("down",))
    write_edit(short, tmp_path / "edit", tmp_path / "factors")
    write_edit(replace(short, kind="interpolation"), tmp_path / "line", tmp_path / "factors")

    def change(directory: str | Path) -> torch.Tensor:
        before = Checkpoint(Path(edit.recipient_directory)).tensor(DOWN0).double()
        return Checkpoint(Path(directory)).tensor(DOWN0).double() - before

    edited, line, whole = change(tmp_path / "edit"), change(tmp_path / "line"), change(edit.donor_directory)
    assert float(line.norm()) == pytest.approx(float(edited.norm()), rel=1e-5)
    assert float((line * whole).sum() / line.norm() / whole.norm()) == pytest.approx(1, abs=1e-9)


def test_the_random_controls_differ_by_seed_and_matrix_only(edit: Edit, tmp_path: Path) -> None:
    recipient = Checkpoint(Path(edit.recipient_directory))
    for kind in ("random_angle", "random_norm"):
        changes = []
        for index, seed in enumerate((0, 0, 1)):
            out = tmp_path / f"{kind}{index}"
            write_edit(replace(edit, kind=kind, k=3, seed=seed), out, tmp_path / "factors")
            changes.append([Checkpoint(out).tensor(n) - recipient.tensor(n) for n in (Q0, Q1)])
        assert all(torch.equal(a, b) for a, b in zip(changes[0], changes[1], strict=True))
        assert not torch.equal(changes[0][0], changes[2][0])
        assert not torch.equal(changes[0][0], changes[0][1]), "every matrix has the same noise"


def test_the_random_step_is_as_long_as_the_edit(edit: Edit, tmp_path: Path) -> None:
    for kind in ("edit", "random_norm"):
        write_edit(replace(edit, kind=kind, k=3), tmp_path / kind, tmp_path / "factors")
    lengths = [
        np.linalg.norm(written_change(tmp_path / k, edit.recipient_directory))
        for k in ("edit", "random_norm")
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)


def test_a_fraction_of_the_directions_is_rounded_up(edit: Edit, tmp_path: Path) -> None:
    assert replace(edit, k=0.2).directions((8, 12)) == 2 and replace(edit, k=1.0).directions((8, 12)) == 8
    for k in (0.25, 2):
        write_edit(replace(edit, k=k), tmp_path / str(k), tmp_path / "factors")
    assert torch.equal(*(Checkpoint(tmp_path / d).tensor(Q0) for d in ("0.25", "2")))


def test_the_report_says_how_well_the_mixed_bases_stand(edit: Edit, tmp_path: Path) -> None:
    half = write_edit(replace(edit, k=4), tmp_path / "half", tmp_path / "factors")
    assert half.smallest is not None and 0 <= half.smallest < 0.9, "unrelated bases overlap"
    whole = write_edit(edit, tmp_path / "whole", tmp_path / "factors")
    assert whole.smallest == 1.0
    turned = write_edit(replace(edit, k=4, mode="rotate", t=0.5), tmp_path / "turned", tmp_path / "factors")
    assert turned.smallest is None


def test_k_0_and_t_0_copy_the_recipient_bit_for_bit(edit: Edit, tmp_path: Path) -> None:
    recipient = Checkpoint(Path(edit.recipient_directory))
    for index, still in enumerate((replace(edit, k=0), replace(edit, k=2, mode="rotate", t=0.0))):
        write_edit(still, tmp_path / str(index), tmp_path / "factors")
        out = Checkpoint(tmp_path / str(index))
        assert all(torch.equal(out.tensor(n), recipient.tensor(n)) for n in out.names())


def test_the_recipient_s_dtype_is_kept(tmp_path: Path) -> None:
    edit = Edit(
        checkpoint(tmp_path / "donor", 1), checkpoint(tmp_path / "recipient", 2, torch.bfloat16), roles=("q",)
    )
    report = write_edit(edit, tmp_path / "out", tmp_path / "factors")
    assert {Checkpoint(tmp_path / "out").dtype(name) for name in SHAPES} == {torch.bfloat16}
    assert 0 < report.projection < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_edits_of_16_bits_are_the_float32_ones_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    """What is added up from k to k is exact enough that only the last bit may differ, where a value is a tie."""
    ks = (1, 2, 3, 5, 8)
    edit = Edit(
        checkpoint(tmp_path / "donor", 1, dtype), checkpoint(tmp_path / "recipient", 2, dtype), roles=("q",)
    )
    orders = [Order(replace(edit, k=k), str(tmp_path / str(k))) for k in ks]
    run_edits(orders, str(tmp_path / "factors"), str(tmp_path / "pieces"), 0)
    sides = [Checkpoint(d).tensor(Q0) for d in (edit.recipient_directory, edit.donor_directory)]
    for k in ks:
        expected = recombine(decompose(sides[0]), decompose(sides[1]), k)
        found = Checkpoint(tmp_path / str(k)).tensor(Q0)
        assert float((found.double() - expected).abs().max()) <= torch.finfo(dtype).eps * float(
            expected.abs().max()
        )
        assert float((found == expected.to(dtype)).float().mean()) > 0.95


# --- refusals


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda edit: replace(edit, factors="U"), "factors.*'U'"),
        (lambda edit: replace(edit, mode="blend"), "mode.*'blend'"),
        (lambda edit: replace(edit, kind="magic"), "kind.*'magic'"),
        (lambda edit: replace(edit, roles=("query",)), "roles.*'query'"),
        (lambda edit: replace(edit, k=-1), "k .*-1.*negative"),
        (lambda edit: replace(edit, k=1.5), "k .*1.5.*fraction"),
        (lambda edit: replace(edit, t=0.5), "t .*0.5.*rotate"),
        (lambda edit: replace(edit, mode="rotate"), "give a k"),
        (lambda edit: replace(edit, mode="rotate", k=8), "exceeds the 7"),
        (lambda edit: replace(edit, part="middle"), "part.*'middle'"),
        (lambda edit: replace(edit, layers=(7,)), r"no matrix.*\[7\]"),
        (lambda edit: replace(edit, k=9), "k .*9.*exceeds the 8 singular directions"),
        (lambda edit: replace(edit, donor_directory=edit.recipient_directory), "two that differ"),
        (lambda edit: replace(edit, donor_directory="/nowhere"), "no such directory"),
    ],
)
def test_a_wrong_edit_is_named_and_writes_nothing(
    edit: Edit, tmp_path: Path, change: Callable[[Edit], Edit], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        write_edit(change(edit), tmp_path / "out", tmp_path / "factors")
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused(edit: Edit, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tensors = {name: torch.ones(6, 6) for name in (Q0, Q1, DOWN0)}
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    with pytest.raises(InputError, match=r"\(8, 8\).*\(6, 6\).*one architecture"):
        write_edit(
            replace(edit, donor_directory=str(tmp_path / "other")), tmp_path / "out", tmp_path / "factors"
        )
