"""A trunk that exists already (sft.checkpoints): checked against the base model, then taken over without training.

Its weights are linked into the study where the file system allows, else copied, and never modified. Tokenizer, template
and configuration are those of the base checkpoint: a study prompts all its checkpoints alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig

from rlheals_ray import tables
from rlheals_ray.config import InputError, Study
from rlheals_ray.folder import Folder
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.models import nano
from rlheals_ray.models.architecture import NANO, SMOLLM2, SMOLLM2_CONFIGURATION, directory_of
from rlheals_ray.models.base import nano_targets
from rlheals_ray.models.checkpoint import INDEX_FILE, Checkpoint
from rlheals_ray.models.checkpoint_writer import copy_companions
from rlheals_ray.models.mllama import (
    is_mllama,
    language_config,
    language_tensors,
    llama_shapes,
    write_language_model,
)
from rlheals_ray.storage import StudyFiles, Unit, new_directory

ENGINE = "taken over"
"""What tables/sft says of rows whose checkpoints were not trained here."""

_COMPARED = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "tie_word_embeddings", "hidden_act", "rms_norm_eps", "rope_parameters",
    "sliding_window",
)  # fmt: skip
"""What of a configuration decides what the same weights compute."""
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Shape:
    """What checkpoints of one model have in common: configuration, and tensors with their shapes."""

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]


def given(study: Study, seed: int) -> dict[int, Path]:
    """SFT step to directory of a seed's trunk; empty where sft.checkpoints is not set."""
    found = study.sft.checkpoints or {}
    return {step: Path(found[step].format(seed=seed)).expanduser() for step in sorted(found)}


def shape_of_base(study: Study) -> Shape:
    """The shape of base.model, from its headers or from what is known of it. Raises InputError."""
    model = study.base.model
    if model == NANO:
        config = nano.architecture(nano_targets(study))
        return Shape(config.to_dict(), llama_shapes(config))
    if model == SMOLLM2:
        config = LlamaConfig(**{k: v for k, v in SMOLLM2_CONFIGURATION.items() if k != "model_type"})
        return Shape(SMOLLM2_CONFIGURATION, llama_shapes(config))
    return shape_of(Path(directory_of(model) or model))


def shape_of(directory: Path) -> Shape:
    """The shape of a Hugging Face directory by its headers; of Mllama, that of its language model.

    Raises InputError where the directory is no whole checkpoint with safetensors weights.
    """
    checkpoint = Checkpoint(directory)
    checkpoint.check()
    if is_mllama(directory):
        language_tensors(checkpoint, directory)
        config = language_config(directory)
        return Shape(config.to_dict(), llama_shapes(config))
    try:
        known = AutoConfig.from_pretrained(str(directory)).to_dict()
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise InputError(
            f"checkpoint (got {str(directory)!r}): its config.json cannot be used ({cause}); copy it again."
        ) from None
    return Shape(known, {name: checkpoint.shape(name) for name in checkpoint.names()})


def check_checkpoint(study: Study, step: int, directory: Path, base: Shape) -> None:
    """Raises InputError, naming the step and what differs, where a directory is no checkpoint of the base model."""
    field = f"sft.checkpoints.{step} (got {str(directory)!r})"
    if not directory.is_dir():
        raise InputError(f"{field}: there is no such directory; check the path.")
    try:
        found = shape_of(directory)
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    if difference := _difference(base, found):
        remedy = (
            "base.model is still 'nano'; set base.model to the directory of the model that they were trained from"
            if study.base.model == NANO
            else "name checkpoints that were trained from base.model, or set base.model to theirs"
        )
        raise InputError(
            f"{field}: {difference}, so it was not trained from base.model {study.base.model!r}; {remedy}."
        )


def _difference(base: Shape, found: Shape) -> str | None:
    """The first thing that differs, in words; None where nothing does."""
    for key in _COMPARED:
        if key in base.config and key in found.config and not _same(base.config[key], found.config[key]):
            return f"its config.json has {key} {found.config[key]!r}, the base has {base.config[key]!r}"
    # A tied head may be stored or not.
    tied = {_HEAD} if base.config.get("tie_word_embeddings") else set()
    ours, theirs = set(base.tensors) - tied, set(found.tensors) - tied
    if absent := sorted(ours - theirs):
        return f"it lacks the tensor {absent[0]!r} ({len(absent)} are absent)"
    if more := sorted(theirs - ours):
        return f"it has the tensor {more[0]!r}, which the base lacks ({len(more)} such)"
    for name in sorted(ours):
        if found.tensors[name] != base.tensors[name]:
            return f"tensor {name!r} has the shape {list(found.tensors[name])}, the base {list(base.tensors[name])}"
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)  # float32 in one file, decimal in another
    return bool(one == other)


def take_over(study: Study, files: StudyFiles, trunk: Trunk, unit: Unit) -> None:
    """Take over the checkpoints of sft.checkpoints as `trunk`, where the base checkpoint is there already.

    Leaves checkpoints/sft/seed=S/step=N for every N, the trunk's part of tables/sft without losses (what training saw
    is not known; the held-out losses are scored from the checkpoints), and its marker. Only links or copies files: to
    be called in one process, which needs no GPU. Raises InputError where a checkpoint is not whole.
    """
    found = given(study, trunk.seed)
    for step, directory in found.items():
        if not files.holds(trunk.checkpoint(step), unit.fingerprint):
            with new_directory(files.checkpoint(trunk.checkpoint(step))) as target:
                _write(directory, target, files.checkpoint(BASE))
                files.stamp(target, unit)
    rows = [_row(trunk, step) for step in found]
    files.write_part("sft", unit, tables.table("sft", rows))
    files.mark_done(unit, taken_over={str(step): str(directory) for step, directory in found.items()})


def _write(directory: Path, target: Path, base: Path) -> None:
    if is_mllama(directory):
        write_language_model(directory, target)
    else:
        here, there = Folder.of(directory), Folder.of(target)
        for name in Checkpoint(directory).files():
            here.copy(name, there, link=True)
        if here.exists(INDEX_FILE):
            here.copy(INDEX_FILE, there)
    copy_companions(base, target)


def _row(trunk: Trunk, step: int) -> dict[str, Any]:
    known = {"recipe": trunk.recipe, "seed": trunk.seed, "step": step, "engine": ENGINE}
    return {**dict.fromkeys(tables.SFT.names), **known}
