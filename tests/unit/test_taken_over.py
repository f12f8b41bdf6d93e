"""A trunk that exists already: refused where it is not the base's, else linked into the study as it stands."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlheals_ray import tables
from rlheals_ray.config import InputError, Study
from rlheals_ray.evaluation.predictors import predictor_rows
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import BASE, trunks
from rlheals_ray.models.base import write_taken_over
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.report import build_report
from rlheals_ray.sft.losses import held_out_losses
from rlheals_ray.sft.taken_over import ENGINE, take_over
from rlheals_ray.storage import StudyFiles, new_directory
from rlheals_ray.tasks import get_task
from tests.report_outcomes import complete
from tests.report_tables import write_study
from tests.tiny_mllama import tiny_mllama
from tests.toy_lab import toy_study
from tests.toy_model import write_toy_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_toy_model(tmp_path / "base")


def trunk_of(base: Path, *, seed: int, step: int) -> Path:
    """A checkpoint as training leaves it: other weights, no tokenizer."""
    directory = base.parent / f"trunk-{seed}" / f"step-{step}"
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(1000 * seed + step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return directory


def mapped(base: Path, checkpoints: dict[int, str], **more: Any) -> Study:
    values = toy_study("mapped", base).model_dump()
    values["sft"] |= {"checkpoints": checkpoints}
    values["rl"] |= {"from_steps": sorted(checkpoints)}
    return Study.model_validate(values | {"storage": str(base.parent / "runs"), "seeds": [0]} | more)


def made(study: Study, base: Path) -> StudyFiles:
    """The study's files after its base stage and this one."""
    files, units = StudyFiles.at(study.storage, study.name), StudyUnits(study)
    with new_directory(files.checkpoint(BASE)) as target:
        write_taken_over(str(base), target)
    for trunk in trunks(study):
        take_over(study, files, trunk, units.trunk(trunk))
    return files


def test_every_seed_has_its_own_trunk_and_the_steps_are_those_given(base: Path) -> None:
    for seed in (0, 1):
        for step in (5, 20):
            trunk_of(base, seed=seed, step=step)
    pattern = str(base.parent / "trunk-{seed}" / "step-")
    study = mapped(base, {20: pattern + "20", 5: pattern + "5"}, seeds=[0, 1])
    preflight(study)
    files, units = made(study, base), StudyUnits(study)
    assert study.sft.steps == (5, 20)
    for trunk in trunks(study):
        unit = units.trunk(trunk)
        assert files.is_done(unit)
        for step in study.sft.steps:
            source = base.parent / f"trunk-{trunk.seed}" / f"step-{step}"
            there = files.checkpoint(trunk.checkpoint(step))
            assert files.holds(trunk.checkpoint(step), unit.fingerprint)
            assert Checkpoint(there).fingerprint() == Checkpoint(source).fingerprint()
            # The study prompts all its checkpoints by the base's tokenizer, though these came without one.
            assert (there / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
            AutoModelForCausalLM.from_pretrained(there)
        rows = files.read_part("sft", unit).to_pylist()
        assert [(row["seed"], row["step"], row["engine"]) for row in rows] == [
            (trunk.seed, step, "taken over") for step in study.sft.steps
        ]
        assert all(row["train_loss"] is None for row in rows)


def test_weights_are_linked_and_the_users_directory_stays_as_it_was(base: Path) -> None:
    source = trunk_of(base, seed=0, step=5)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    study = mapped(base, {5: str(source)})
    files = made(study, base)
    there = files.checkpoint(trunks(study)[0].checkpoint(5))
    assert (there / "model.safetensors").samefile(source / "model.safetensors")
    shutil.rmtree(there)  # what retention and a changed setting do
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_another_file_at_the_same_path_is_another_trunk(base: Path) -> None:
    source = trunk_of(base, seed=0, step=5)
    study = mapped(base, {5: str(source)})
    before = StudyUnits(study).trunk(trunks(study)[0]).fingerprint
    shutil.copytree(trunk_of(base, seed=0, step=6), source, dirs_exist_ok=True)
    assert StudyUnits(study).trunk(trunks(study)[0]).fingerprint != before


def test_checkpoints_of_mllama_lose_their_images_like_their_base(tmp_path: Path) -> None:
    toy = write_toy_model(tmp_path / "toy")
    for name in ("base", "tuned"):
        tiny_mllama(tmp_path / name)
        for file in toy.glob("*token*"):
            shutil.copy(file, tmp_path / name)
        shutil.copy(toy / "chat_template.jinja", tmp_path / name)
    study = mapped(tmp_path / "base", {5: str(tmp_path / "tuned")})
    preflight(study)
    files = made(study, tmp_path / "base")
    names = Checkpoint(files.checkpoint(trunks(study)[0].checkpoint(5))).names()
    assert names == Checkpoint(files.checkpoint(BASE)).names()
    assert not any("vision" in name or "cross_attn" in name for name in names)


def drop(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def widen(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def edit_config(old: str, new: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        text = (directory / "config.json").read_text()
        assert old in text
        (directory / "config.json").write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, ["no such directory"]),
        (lambda d: (d / "config.json").unlink(), ["config.json"]),
        (lambda d: (d / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), ["damaged"]),
        (drop, ["lacks the tensor", "model.layers.0.mlp.up_proj.weight"]),
        (widen, ["model.norm.weight", "[65]", "[64]"]),
        (edit_config('"num_attention_heads": 2', '"num_attention_heads": 4'), ["num_attention_heads 4"]),
        (edit_config('"rope_theta": 10000.0', '"rope_theta": 500000.0'), ["rope_parameters", "500000.0"]),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_of_the_base_is_refused_before_anything_starts(
    base: Path, spoil: Callable[[Path], None], told: list[str]
) -> None:
    good, bad = trunk_of(base, seed=0, step=5), trunk_of(base, seed=0, step=20)
    spoil(bad)
    study = mapped(base, {5: str(good), 20: str(bad)})
    with pytest.raises(InputError) as error:
        preflight(study)
    assert all(part in str(error.value) for part in ["sft.checkpoints.20", str(bad), *told])
    assert not Path(study.storage).exists(), "something was written"


def test_a_trunk_of_ones_own_without_its_base_is_refused_with_the_remedy(base: Path) -> None:
    study = mapped(base, {5: str(trunk_of(base, seed=0, step=5))})
    compact = {"name": "general_points", "wording": "compact", "cards": 3, "targets": [18, 24]}
    forgotten = Study.model_validate(study.model_dump() | {"base": {"model": "nano"}, "task": compact})
    with pytest.raises(
        InputError, match=r"sft\.checkpoints\.5 .*base\.model is still 'nano'; set base\.model to"
    ):
        preflight(forgotten)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("{step}/trunk", r"only \{seed\} is filled in"),
        ("{seed/trunk", r"sft\.checkpoints\.5 .*\{seed\} stands for the seed"),
        ("/models/trunk", r"seeds \[0, 1\].*put \{seed\} into the path"),
    ],
)
def test_where_the_seed_stands_in_a_path_is_checked(base: Path, path: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        preflight(mapped(base, {5: path}, seeds=[0, 1]))


@pytest.mark.slow
def test_its_report_and_its_predictors_do_without_a_train_loss(tmp_path: Path) -> None:
    found = complete((0,))
    unknown = ("train_loss", "learning_rate", "grad_norm", "tokens", "seconds", "wrapped_model", "train_run")
    rows = [
        {**row, **dict.fromkeys(unknown), "engine": ENGINE, "parameter_bytes": None}
        for row in found["sft"].to_pylist()
    ]
    found = {**found, "sft": tables.table("sft", rows)}
    quantities = {row["quantity"] for row in predictor_rows(found, draws=10)}
    assert {"id_loss", "ood_loss"} <= quantities and "train_loss" not in quantities
    page = build_report(write_study(tmp_path / "study", found)).read_text()
    words = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "OOD" in words and not re.search(r"\b(nan|None)\b", words)


def test_its_held_out_losses_are_those_of_the_users_checkpoints(base: Path) -> None:
    study = mapped(base, {5: str(trunk_of(base, seed=0, step=5))})
    task = get_task(study.task.name)
    problems = task.problems("id", "eval", 8, seed=0)
    files = made(study, base)
    taken = files.checkpoint(trunks(study)[0].checkpoint(5))
    with_tokenizer = base.parent / "tuned"
    shutil.copytree(base, with_tokenizer)
    shutil.copy(base.parent / "trunk-0" / "step-5" / "model.safetensors", with_tokenizer)
    (loss,), (expected,) = (held_out_losses([d], study.task, problems) for d in (taken, with_tokenizer))
    (of_base,) = held_out_losses([base], study.task, problems)
    assert loss == expected != of_base
