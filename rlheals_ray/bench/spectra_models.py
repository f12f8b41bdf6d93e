"""Two checkpoints of SmolLM2-135M's architecture to measure on: a peak, and a late one a small change away.

Nothing is downloaded. Published weights have heavy-tailed spectra and are bfloat16; so are these, since the
time of an exact decomposition depends on shape and condition, and not on what was learnt.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

CHANGE = 0.05
"""‖ΔW‖_F ÷ ‖W‖_F between the two checkpoints."""
SPREAD = 0.5
"""Of the log-normal scales of rows and columns, which make the spectrum heavy-tailed."""
SPIKES = 8
"""Directions that stand out of the bulk, as those of the largest singular values do in trained weights."""


@dataclass(frozen=True)
class Shape:
    """What sets a model's matrices; the defaults are SmolLM2-135M's."""

    layers: int = 30
    hidden: int = 576
    intermediate: int = 1536
    vocabulary: int = 49152

    @property
    def heads(self) -> int:
        """Of 64 each."""
        return self.hidden // 64

    @property
    def key_heads(self) -> int:
        """A third of the heads, or a quarter where that is no whole number."""
        return self.heads // 3 if self.heads % 3 == 0 else self.heads // 4

    @property
    def largest(self) -> int:
        """Elements of the largest matrix of a layer."""
        return self.hidden * max(self.hidden, self.intermediate)

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=64,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            tie_word_embeddings=True,
            dtype="bfloat16",
        )


@dataclass(frozen=True)
class Checkpoints:
    """Hugging Face directories of one architecture."""

    peak: str
    late: str


def write_checkpoints(directory: Path, shape: Shape) -> Checkpoints:
    """Write both, bfloat16, one shard each (269 MB at SmolLM2-135M's size), the same whenever written."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config)
    peak: dict[str, torch.Tensor] = {}
    late: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            peak[name], late[name] = _weights(name, tuple(tensor.shape))
    paths = []
    for name, tensors in (("peak", peak), ("late", late)):
        path = directory / name
        path.mkdir(parents=True)
        shape.config.save_pretrained(path)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        paths.append(str(path))
    return Checkpoints(*paths)


def _weights(name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """One tensor in both checkpoints; norms' weights, which are vectors, in ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    rows, columns = (torch.randn(size, generator=generator).mul(SPREAD).exp() for size in shape)
    weight = torch.randn(shape, generator=generator) * rows[:, None] * columns
    norm = torch.linalg.vector_norm(weight)
    left, right = (torch.randn(size, SPIKES, generator=generator) for size in shape)
    weight += (left / left.norm(dim=0) * norm * 0.4 / torch.arange(1, SPIKES + 1)) @ (
        right / right.norm(dim=0)
    ).T
    change = torch.randn(shape, generator=generator)
    change *= CHANGE * torch.linalg.vector_norm(weight) / torch.linalg.vector_norm(change)
    scale = 0.02 / float(weight.std())
    return (weight * scale).bfloat16(), ((weight + change) * scale).bfloat16()
