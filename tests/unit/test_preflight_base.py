"""A base model that could not be loaded is found out before anything starts, and a whole one passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.tasks import get_task
from tests.tiny_mllama import tiny_mllama
from tests.tiny_qwen import write_tiny_qwen
from tests.toy_lab import toy_study
from tests.toy_model import write_toy_model


def of(model: Path) -> Study:
    return toy_study("own", model).model_copy(update={"storage": str(model.parent / "runs")})


def test_a_qwen2_with_its_own_tokenizer_passes(tmp_path: Path) -> None:
    task = get_task("general_points", cards=3, targets=[18, 24], wording="paper")
    model = write_tiny_qwen(tmp_path / "qwen", task)
    few = [
        f"base.model={model}",
        f"storage={tmp_path / 'runs'}",
        "task.wording=paper",
        "rollout.max_model_len=512",
    ]
    assert preflight(load_study("tiny", few)).root.name == "tiny"
    with pytest.raises(InputError, match=r"edits\.0\.k .*the k matrices.* at most 32"):
        preflight(load_study("tiny", [*few, "spectra.roles=[q, k]", "edits=[{k: 33}]"]))


@pytest.mark.parametrize("template", ["tokenizer's", "image processor's"])
def test_an_mllama_is_judged_by_its_language_model(tmp_path: Path, template: str) -> None:
    toy = write_toy_model(tmp_path / "toy")
    model = tmp_path / "mllama"
    tiny_mllama(model)
    for file in [*toy.glob("*token*"), toy / "chat_template.jinja"]:
        (model / file.name).write_bytes(file.read_bytes())
    if template == "image processor's":
        text = (model / "chat_template.jinja").read_text()
        (model / "chat_template.jinja").unlink()
        (model / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    files = preflight(of(model))
    assert not files.root.parent.exists()
    long = of(model)
    long = long.model_copy(update={"rollout": long.rollout.model_copy(update={"max_model_len": 300})})
    with pytest.raises(InputError, match=r"rollout\.max_model_len .*256 positions"):
        preflight(long)


def test_a_model_that_is_not_there_is_refused_with_how_to_get_it(tmp_path: Path) -> None:
    for preset in ("qwen2.5-7b", "llama3.2-11b"):
        study = load_study(preset, [f"base.model={tmp_path / 'Some-Model'}"])
        with pytest.raises(InputError, match=r"hf download OWNER/Some-Model --local-dir"):
            preflight(study)


def cut(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def rename_type(directory: Path) -> None:
    file = directory / "config.json"
    file.write_text(file.read_text().replace('"model_type": "llama"', '"model_type": "vit"'))


def unknown_type(directory: Path) -> None:
    file = directory / "config.json"
    file.write_text(file.read_text().replace('"model_type": "llama"', '"model_type": "marvel"'))


def link_out(directory: Path) -> None:
    token = directory.parent / "auth_token"
    token.write_text("s3cr3t")
    (directory / "vocab.txt").symlink_to(token)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, "base.model .*model.safetensors.* is damaged"),
        (rename_type, "base.model .*no causal language model for its model_type 'vit'"),
        (unknown_type, "base.model .*no causal language model for its model_type 'marvel'"),
        (link_out, "base.model .*'vocab.txt' is a link that leads out of the directory"),
    ],
)
def test_weights_that_could_not_be_loaded_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    model = write_toy_model(tmp_path / "model")
    spoil(model)
    with pytest.raises(InputError, match=told):
        preflight(of(model))
    assert not (tmp_path / "runs").exists()
