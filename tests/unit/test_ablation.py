"""Checkpoints put together from pieces: what loads them, which bytes stay, and what a kill or a failure costs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra import decompose, recombination, recombine
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.edit import KINDS, Edit, EditReport
from rlheals_ray.spectra.matrices import Matrices

LAYERS = 4
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(LAYERS)
    for name, shape in {
        "self_attn.qkv_proj.weight": (16, 8), "self_attn.qkv_proj.bias": (16,), "mlp.down_proj.weight": (8, 12),
        "input_layernorm.weight": (8,),
    }.items()
} | {"model.embed_tokens.weight": (20, 8)}  # fmt: skip
CONFIG = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}


def write_model(directory: Path, seed: int) -> str:
    """A model in two shards, with fused q, k and v, biases, and an embedding that serves as the head."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}
    directory.mkdir()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i >= 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, directory / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return str(directory)


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    return Edit(
        write_model(tmp_path / "donor", 1), write_model(tmp_path / "recipient", 2), k=2, roles=("q", "down")
    )


def run(tmp_path: Path, *orders: Order, sharding: str = "linked") -> list[EditReport | str]:
    factors, pieces = str(tmp_path / "factors"), str(tmp_path / "pieces")
    return run_edits(orders, factors, pieces, 0, sharding=sharding)  # type: ignore[arg-type]


def tensors(where: str | Path | Folder) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(where)
    checkpoint.check()  # no tensor in two shards, none that the index does not know
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def files(directory: Path) -> dict[Path, tuple[int, int]]:
    """Every file below, with what changes when it is written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in directory.rglob("*") if p.is_file()}


# --- what is in a checkpoint


def test_of_a_fused_matrix_only_the_rows_of_the_role_change(edit: Edit, tmp_path: Path) -> None:
    (report,) = run(tmp_path, Order(edit, str(tmp_path / "out")))
    assert isinstance(report, EditReport) and report.matrices == 2 * LAYERS
    before, after = tensors(edit.recipient_directory), tensors(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in SHAPES if name.endswith("_proj.weight")
    }
    own, donor = Matrices.of(edit.recipient_directory), Matrices.of(edit.donor_directory)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.qkv_proj.weight"
        assert torch.equal(before[name][8:], after[name][8:]), "k and v are not edited"
        expected = recombine(decompose(own.tensor(f"{name}[q]")), decompose(donor.tensor(f"{name}[q]")), k=2)
        torch.testing.assert_close(after[name][:8], expected.bfloat16())


def test_both_ways_of_sharding_hold_the_same(edit: Edit, tmp_path: Path) -> None:
    edits = [
        edit,
        replace(edit, roles=("down",), layers=(0,)),
        replace(edit, roles=("head",), kind="weight_swap"),
    ]
    for sharding in ("linked", "recipient"):
        run(
            tmp_path,
            *(Order(e, str(tmp_path / sharding / str(i))) for i, e in enumerate(edits)),
            sharding=sharding,
        )
    for i in range(len(edits)):
        linked, own = tensors(tmp_path / "linked" / str(i)), tensors(tmp_path / "recipient" / str(i))
        assert linked.keys() == own.keys() == SHAPES.keys()
        assert all(torch.equal(linked[name], own[name]) for name in linked)
    swapped, donor = tensors(tmp_path / "linked" / "2"), tensors(edit.donor_directory)
    assert torch.equal(swapped["model.embed_tokens.weight"], donor["model.embed_tokens.weight"])


def test_shards_without_an_edited_matrix_are_the_recipient_s_byte_for_byte(
    edit: Edit, tmp_path: Path
) -> None:
    run(tmp_path, Order(replace(edit, layers=(0,)), str(tmp_path / "out")), sharding="recipient")
    own, out = Path(edit.recipient_directory), tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {p.name for p in own.iterdir()}
    same = [
        p.name for p in sorted(own.glob("*.safetensors")) if p.read_bytes() == (out / p.name).read_bytes()
    ]
    assert same == ["model-00002-of-00002.safetensors"]


def test_linked_checkpoints_share_their_pieces(edit: Edit, tmp_path: Path) -> None:
    """Layers and roles are composed of the same files; only what is fused of parts is written anew."""
    edits = [
        replace(edit, layers=(layer,), roles=roles)
        for layer in range(2)
        for roles in (("down",), ("q", "down"))
    ]
    orders = [Order(e, str(tmp_path / "out" / str(i))) for i, e in enumerate(edits)]
    run(tmp_path, *orders)
    pieces = {os.stat(p).st_ino for p in (tmp_path / "pieces").rglob("*.safetensors")}
    for order in orders:
        own = [p.name for p in Path(order.out).glob("*.safetensors") if os.stat(p).st_ino not in pieces]
        assert all("qkv_proj" in name for name in own)
        assert len(own) == ("q" in order.edit.roles)


def test_a_checkpoint_can_be_written_to_another_filesystem(edit: Edit, tmp_path: Path) -> None:
    """Any that pyarrow or fsspec knows; its own memory stands for a bucket. Pieces go there as well."""
    out = Folder.of(f"memory://{tmp_path.name}")
    first = run(tmp_path, Order(edit, out.child("linked").uri), Order(edit, str(tmp_path / "local")))
    second = run_edits(
        [Order(edit, out.child("own").uri)],
        str(tmp_path / "factors"),
        out.child("pieces").uri,
        0,
        sharding="recipient",
    )
    assert first == second * 2
    expected = tensors(tmp_path / "local")
    for name in ("linked", "own"):
        found = tensors(out.child(name))
        assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


def test_transformers_loads_what_is_linked(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from tests.toy_model import write_toy_model

    donor, recipient = (write_toy_model(tmp_path / str(seed), seed=seed, layers=2) for seed in (1, 2))
    edit = Edit(str(donor), str(recipient), k=8)
    run(tmp_path, Order(edit, str(tmp_path / "linked")))
    run(tmp_path, Order(edit, str(tmp_path / "own")), sharding="recipient")
    ids = torch.arange(2, 12)[None]
    linked, own, before = (
        LlamaForCausalLM.from_pretrained(directory)(ids).logits
        for directory in (tmp_path / "linked", tmp_path / "own", recipient)
    )
    assert torch.equal(linked, own) and not torch.allclose(linked, before, atol=1e-3)


# --- resuming, and failures


def test_what_is_there_is_neither_made_nor_written_again(edit: Edit, tmp_path: Path) -> None:
    orders = [
        Order(replace(edit, kind=kind), str(tmp_path / "out" / kind), {"stamp": b"1"}) for kind in KINDS
    ]
    first = run(tmp_path, *orders)
    before = files(tmp_path)
    assert run(tmp_path, *orders) == first
    assert files(tmp_path) == before
    changed = Order(replace(edit, k=3), orders[0].out, {"stamp": b"2"})
    assert run(tmp_path, changed) != first[:1], "another stamp is another checkpoint"
    assert (Path(orders[0].out) / "stamp").read_bytes() == b"2"


def test_a_damaged_piece_is_made_again(edit: Edit, tmp_path: Path) -> None:
    run(tmp_path, Order(edit, str(tmp_path / "first")))
    for number, piece in enumerate(sorted((tmp_path / "pieces").rglob("*down_proj.weight.safetensors"))):
        data = piece.read_bytes()
        piece.unlink()  # the checkpoint keeps its own link
        piece.write_bytes((b"", data[:4], data[:-1], b"\xff" * len(data))[number % 4])
    run(tmp_path, Order(edit, str(tmp_path / "second")))
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_failure_of_one_order_stands_in_its_place(
    edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[object]:
        raise MemoryError("no room")

    monkeypatch.setitem(recombination.MODES, "orthonormal", broken)
    orthonormal = replace(edit, mode="orthonormal")
    edits = [
        edit,
        orthonormal,
        replace(orthonormal, kind="interpolation"),
        replace(orthonormal, kind="weight_swap"),
    ]
    reports = run(tmp_path, *(Order(e, str(tmp_path / "out" / str(i))) for i, e in enumerate(edits)))
    assert [isinstance(report, str) for report in reports] == [False, True, True, False]
    assert "qkv_proj.weight[q]" in str(reports[1]) and "MemoryError: no room" in str(reports[1])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0", "3"]
    (taken := tmp_path / "taken").write_text("a file where a directory is to be")
    reports = run(tmp_path, Order(edit, str(taken / "out")), Order(edit, str(tmp_path / "fine")))
    assert isinstance(reports[0], str) and isinstance(reports[1], EditReport)


WORK = """
import sys
from dataclasses import replace
from pathlib import Path
from rlheals_ray.spectra.ablation import Order, run_edits
from rlheals_ray.spectra.edit import KINDS, Edit
donor, recipient, out = sys.argv[1:]
edit = Edit(donor, recipient, roles=("q", "k", "v", "down"))
edits = [
    replace(edit, k=k, layers=layers, kind=kind) for k in (1, 2, 4) for layers in ((0, 1), (2, 3)) for kind in KINDS
]
orders = [Order(edit, f"{out}/checkpoints/{number}", {"stamp": b"1"}) for number, edit in enumerate(edits)]
print("ready", flush=True)
reports = run_edits(orders, f"{out}/factors", f"{out}/pieces", 0)
assert not any(isinstance(report, str) for report in reports), reports
"""


def test_killed_at_any_moment_it_resumes_and_shows_no_half_checkpoint(edit: Edit, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", WORK, edit.donor_directory, edit.recipient_directory, str(out)]
    checkpoints = 0
    kept: dict[Path, tuple[int, int]] = {}
    for stage, waited in (("pieces", 120), ("checkpoints", 20), ("", 0)):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        seen, delay = random.randrange(waited + 1), random.uniform(0, 0.02)
        while stage and process.poll() is None and len(visible(out / stage)) < seen:
            time.sleep(0.001)
        if stage:
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
        found = visible(out / "checkpoints")
        print(
            f"killed {delay:.3f} s after {seen} {stage} were seen: exit {code}; {len(found)} checkpoints stand"
        )
        for checkpoint in found:
            assert tensors(checkpoint).keys() == SHAPES.keys() and (checkpoint / "stamp").read_bytes() == b"1"
        for piece in visible(out / "pieces"):
            with safe_open(piece, framework="pt") as opened:
                assert all(torch.isfinite(opened.get_tensor(name)).all() for name in opened.keys())  # noqa: SIM118
        # Linking a piece changes neither; writing it again would.
        now = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (*visible(out / "pieces"), *found)}
        assert {p: now.get(p) for p in kept} == kept, "what was there was made again"
        kept, checkpoints = now, len(found)
    assert code == 0 and checkpoints == 6 * len(KINDS)
    left = [path for path in out.rglob(".*tmp*")]
    print(f"{len(left)} unfinished files left, all hidden")


def visible(directory: Path) -> list[Path]:
    """Finished checkpoints or pieces: what is being written has a hidden name."""
    if directory.name == "checkpoints":
        return [path for path in sorted(directory.glob("*")) if not path.name.startswith(".")]
    return [path for path in sorted(directory.rglob("*.safetensors")) if not path.name.startswith(".")]
