"""What is said of a model without loading it is true of models whose sizes are published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlheals_ray.config import InputError, load_study
from rlheals_ray.grid.preflight import _check_directions
from rlheals_ray.grid.preflight_base import check_cache, positions, ranks
from rlheals_ray.models.architecture import SMOLLM2, configuration, parameters

QWEN = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Of Qwen2.5-7B-Instruct."""
LLAMA = {
    "model_type": "mllama",
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38], "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Of Llama-3.2-11B-Vision-Instruct."""


def described(directory: Path, config: dict[str, Any]) -> str:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_the_published_numbers_of_parameters_come_out(tmp_path: Path) -> None:
    """7.61 billion (Qwen2.5 report, table 1), Llama-3.1-8B's 8.03 billion, and SmolLM2's 135 million."""
    qwen, llama = described(tmp_path / "qwen", QWEN), described(tmp_path / "llama", LLAMA)
    assert parameters(configuration(qwen)) == pytest.approx(7.61e9, rel=0.005)
    assert parameters(configuration(llama)) == pytest.approx(8.03e9, rel=0.005)
    assert configuration(llama)["num_hidden_layers"] == 32
    assert parameters(configuration(SMOLLM2)) == pytest.approx(135e6, rel=0.005)


@pytest.mark.parametrize(("preset", "config"), [("qwen2.5-7b", QWEN), ("llama3.2-11b", LLAMA)])
def test_the_presets_ask_for_nothing_that_their_models_lack(
    tmp_path: Path, preset: str, config: dict[str, Any]
) -> None:
    model = described(tmp_path / "model", config)
    study = load_study(preset, [f"base.model={model}"])
    _check_directions(study)
    check_cache(study)
    assert study.rollout.max_model_len <= (positions(model) or 0)
    assert max(study.spectra.k) <= min(ranks(model)[role] for role in study.spectra.roles)


def test_a_configuration_that_does_not_tell_its_size_is_not_guessed() -> None:
    assert parameters({"hidden_size": 8}) is None


@pytest.mark.parametrize("preset", ["tiny", "nano", "smollm2-135m"])
def test_the_presets_caches_hold_a_sequence(preset: str) -> None:
    check_cache(load_study(preset))


def test_a_cache_that_holds_no_whole_sequence_is_refused_with_one_that_does(tmp_path: Path) -> None:
    """Keys and values of Qwen2.5-7B: 2 × 28 layers × 4 heads × 128 numbers a token, 4 bytes each."""
    model = described(tmp_path / "model", QWEN)
    own = [f"base.model={model}", "rollout.max_model_len=2048"]
    with pytest.raises(
        InputError, match=r"rollout\.kv_cache_mib \(got 128\): .*2048 tokens takes 224 MiB"
    ) as told:
        check_cache(load_study("nano", own))
    remedy = re.findall(r"use (rollout\.kv_cache_mib=\d+)", str(told.value))[0]
    assert (
        remedy == "rollout.kv_cache_mib=252"
    )  # and two blocks of 128 tokens: one begun, one that vLLM keeps
    check_cache(load_study("nano", [*own, remedy]))
    check_cache(load_study("nano", [*own, "rollout.engine=transformers"]))


def test_a_model_with_windows_may_need_less_and_is_not_judged(tmp_path: Path) -> None:
    model = described(tmp_path / "model", {**QWEN, "sliding_window": 512, "use_sliding_window": True})
    check_cache(load_study("nano", [f"base.model={model}", "rollout.max_model_len=2048"]))
