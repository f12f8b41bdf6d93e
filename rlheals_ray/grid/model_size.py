"""How large a study's model is, for the plan: parameters, matrices by role, bytes of checkpoints. Loads nothing."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlheals_ray.config import Study
from rlheals_ray.models.architecture import (
    NANO,
    base_bytes,
    configuration,
    directory_of,
    parameters,
    stored_configuration,
)

FLOAT32 = 4
"""Bytes of one trained parameter: whatever the precision of the passes, weights and optimiser are float32."""

COMPANIONS = 4096
"""Bytes of configuration, tokenizer and provenance beside nano's weights (measured: 3.8 KB)."""

_HEADER_PER_TENSOR, _LONGEST_HEADER = 120, 100 << 20


@dataclass(frozen=True)
class ModelSize:
    """A decoder by its numbers."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    kv_per_token: int
    """Elements of keys and values that one token takes in all layers."""
    matrices: Mapping[str, tuple[int, int]]
    """Role to the shape of its matrix in every layer."""
    companions: int
    """Bytes of a checkpoint's other files."""
    base_bytes: int
    """Of the base checkpoint, which keeps the dtype it comes in."""

    @property
    def checkpoint_bytes(self) -> int:
        """Of one trained checkpoint."""
        header = _HEADER_PER_TENSOR * (self.layers * (len(self.matrices) + 2) + 3)
        return FLOAT32 * self.parameters + header + self.companions

    @property
    def state_bytes(self) -> int:
        """Of weights and AdamW's two moments."""
        return 3 * FLOAT32 * self.parameters

    def matrix_bytes(self, roles: tuple[str, ...], layers: int | None = None) -> int:
        """Of the float32 matrices of these roles, in all layers or in so many."""
        count = self.layers if layers is None else layers
        return (
            FLOAT32 * count * sum(math.prod(self.matrices[role]) for role in roles if role in self.matrices)
        )

    def factor_bytes(self, roles: tuple[str, ...]) -> int:
        """Of the stored float32 factors Uᵀ, S and Vh of one checkpoint's matrices of these roles."""
        shapes = [self.matrices[role] for role in roles if role in self.matrices]
        return FLOAT32 * self.layers * sum(min(m, n) * (m + n + 1) for m, n in shapes)


def model_size(study: Study) -> ModelSize:
    """The size of base.model: by its safetensors headers, or by config.json. InputError where that cannot be read."""
    model = study.base.model
    config = _nano(study) if model == NANO else configuration(model)
    count = _stored_parameters(model) or parameters(config) or 0
    if model == NANO:
        count += _norms(config)
    matrices = _matrices(config)
    layers, (_, kept) = _number(config, "num_hidden_layers"), matrices["k"]
    directory = directory_of(model)
    weights = FLOAT32 * count if model == NANO else base_bytes(model)
    companions = COMPANIONS if directory is None else _companions(directory)
    return ModelSize(
        parameters=count,
        layers=layers,
        hidden=_number(config, "hidden_size"),
        vocabulary=_number(config, "vocab_size"),
        kv_per_token=2 * layers * kept,
        matrices={role: (m, n) for role, (m, n) in matrices.items() if m * n},
        companions=companions,
        base_bytes=weights + companions + _HEADER_PER_TENSOR * layers * 9,
    )


def _nano(study: Study) -> dict[str, Any]:
    """As models/nano.py builds it; a test compares the two."""
    from rlheals_ray.tasks.wording import compact_vocabulary

    specials, styles = 6, ("json", "bare", "steps", "check", "use", "get", "is")
    targets = study.task.options.get("targets", [24])
    words = len(set(compact_vocabulary(targets)) | set(styles)) + specials
    return {
        "vocab_size": words, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False,
    }  # fmt: skip


def _norms(config: Mapping[str, Any]) -> int:
    return int(config["hidden_size"] * (2 * config["num_hidden_layers"] + 1))


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _matrices(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) by role; zeros where the configuration does not tell."""
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    head = _number(config, "head_dim") or (hidden // heads if heads else 0)
    shared = _number(config, "num_key_value_heads") or heads
    inner = _number(config, "intermediate_size")
    return {
        "q": (hidden, heads * head), "k": (hidden, shared * head), "v": (hidden, shared * head),
        "o": (heads * head, hidden), "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden),
    }  # fmt: skip


def _stored_parameters(model: str) -> int | None:
    """What the headers of its safetensors say; None where they do not: no directory, or images beside the text."""
    directory = directory_of(model)
    if directory is None or "text_config" in stored_configuration(directory):
        return None
    return sum(_elements(path) for path in directory.glob("*.safetensors")) or None


def _elements(path: Path) -> int:
    """Elements of all tensors of a safetensors file, by its header; 0 for a file that is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return 0


def _companions(directory: Path) -> int:
    """Bytes of the small files that every checkpoint takes over from the base: tokenizer and configurations."""
    kinds = (".json", ".jinja", ".model", ".txt")
    return sum(
        file.stat().st_size
        for file in directory.iterdir()
        if file.suffix in kinds and not file.name.endswith(".safetensors.index.json")
    )
