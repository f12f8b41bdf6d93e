"""A tiny random Mllama (Llama-3.2-Vision), the real class, in both layouts of names, with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import MllamaConfig, MllamaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

VOCABULARY, LAYERS, CROSSED = 48, 5, [1, 3]


def tiny_mllama(
    directory: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> MllamaForConditionalGeneration:
    """Write one in the published layout (`language_model.model.*`), and return it.

    RoPE is scaled as in Llama-3.2, with so few original positions that the scaling shows.
    """
    torch.manual_seed(0)
    text = MllamaTextConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=96, cross_attention_layers=CROSSED, max_position_embeddings=256, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, rms_norm_eps=2e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    )  # fmt: skip
    vision = MllamaVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_global_layers=1, attention_heads=2, intermediate_size=16,
        vision_output_dim=32, image_size=28, patch_size=14, intermediate_layers_indices=[0],
    )  # fmt: skip
    model = MllamaForConditionalGeneration(
        MllamaConfig(text_config=text, vision_config=vision, image_token_index=VOCABULARY)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones, as a fresh model has, would hide a norm that was lost
                parameter.uniform_(0.5, 1.5)
    model.eval().save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return model


def renamed(source: Path, target: Path, name: Callable[[str], str | None]) -> Path:
    """The same directory with other tensor names; None drops a tensor."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({new: t for old, t in tensors.items() if (new := name(old))}, target / "model.safetensors")
    return target


def in_memory_name(name: str) -> str:
    """transformers 5's own name of a tensor of the published layout."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")
