"""jobs/edit.py outside a study: its grid of edits, and wrong input, which ends with 2 and writes nothing."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlheals_ray.spectra import command_edit

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    for seed, name in enumerate(("donor", "recipient")):
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / name).mkdir()
        save_file(
            {Q: torch.randn(8, 8, generator=generator), K: torch.randn(4, 8, generator=generator)},
            tmp_path / name / "model.safetensors",
        )
    return {name: tmp_path / name for name in ("donor", "recipient")}


@pytest.fixture(autouse=True)
def keeps_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def arguments(models: dict[str, Path], out: Path, *more: str) -> list[str]:
    return [
        "--donor",
        str(models["donor"]),
        "--recipient",
        str(models["recipient"]),
        "--out",
        str(out),
        *more,
    ]


def test_a_checkpoint_is_not_its_own_donor(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models["donor"], tmp_path / "copy")
    assert command_edit.main(arguments(models, tmp_path / "out", "--recipient", str(tmp_path / "copy"))) == 2
    assert "two that differ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--k", "5"], "exceeds the 4 singular directions"),
        (["--k", "many"], "--k .*'many'"),
        (["--k", "1.5"], "k .*1.5"),
        (["--mode", "blend"], "mode .*'blend'"),
        (["--mode", "rotate"], "give a k"),
        (["--t", "0.5", "--k", "2"], "needs mode: rotate"),
        (["--roles", "q,query"], "roles .*query"),
        (["--roles", "down"], "no matrix .*down"),
        (["--layers", "first"], "--layers .*'first'"),
        (["--layers", "7"], r"no matrix .*\[7\]"),
        (["--workers", "0"], "--workers .*0"),
        (["--donor", "/nowhere"], "/nowhere.*no such directory"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], problem: str
) -> None:
    assert command_edit.main(arguments(models, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("edit: ") and error.count("\n") == 1
    assert re.search(problem, error), error
    assert not (tmp_path / "out").exists()


def test_the_directory_of_a_checkpoint_is_no_place_for_its_edits(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_edit.main(arguments(models, models["recipient"])) == 2
    assert "--recipient" in capsys.readouterr().err
    assert sorted(p.name for p in models["recipient"].iterdir()) == ["model.safetensors"]


def test_every_edit_of_the_grid_has_its_controls(models: dict[str, Path], tmp_path: Path) -> None:
    def groups(*more: str) -> dict[str, list[str]]:
        parsed = command_edit._parser().parse_args(arguments(models, tmp_path, *more))
        return {group: list(members) for group, members in command_edit._groups(parsed).items()}

    assert groups("--k", "2,0.5", "--layers", "0-1,3", "--roles", "q,k") == {
        f"UV_concatenate_k={k}_layers=0-1,3_roles=q+k": [
            f"UV_concatenate_k={k}_layers=0-1,3_roles=q+k_edit",
            "weight_swap_layers=0-1,3_roles=q+k",
            *(
                f"UV_concatenate_k={k}_layers=0-1,3_roles=q+k_{kind}"
                for kind in ("interpolation", "random_angle", "random_norm")
            ),
        ]
        for k in ("2", "0.5")
    }
    turned = groups("--mode", "rotate", "--k", "2", "--t", "0.25,1", "--part", "tail")
    assert list(turned) == ["UV_rotate_k=2_tail_t=0.25", "UV_rotate_k=2_tail"]
    assert [len(members) for members in groups("--factors", "S").values()] == [4], "values alone turn nothing"
