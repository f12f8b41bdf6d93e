"""A tiny random Mllama (Llama-3.2-Vision), the real class, in both layouts of names, with a tokenizer."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import MllamaConfig, MllamaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from rlheals_ray.models.mllama import language_config, llama_shapes, write_language_model
from tests.checkpoints import M_MMAP_THRESHOLD, memory_status

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


def blank_mllama(directory: Path, tiny: Path, *, layers: int, hidden: int) -> Path:
    """Zeros in the published layout, of so many layers and such a width, configured like `tiny` else."""
    directory.mkdir()
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"] |= {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "cross_attention_layers": [0],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    shapes = llama_shapes(language_config(directory))
    tensors = {published_name(name): torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


def published_name(name: str) -> str:
    """The published name of a Llama's tensor, the layers after a first one that reads images."""
    parts = name.split(".")
    if parts[1] == "layers":
        parts[2] = str(int(parts[2]) + 1)
    return "language_model." + ".".join(parts)


def peak_memory_of_converting(source: str, target: str, result: Connection) -> None:
    """Sends by how many bytes the memory of this process peaked while it converted."""
    torch.set_num_threads(1)
    # What is freed goes back to the system at once, as in tests/checkpoints.py.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_status("VmRSS")
    write_language_model(Path(source), Path(target))
    result.send(memory_status("VmHWM") - before)
