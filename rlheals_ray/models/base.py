"""The base checkpoint of a study: trained here (nano), converted (SmolLM2's package, Mllama), or taken over from a
Hugging Face directory.

What is converted is written straight into the study's own checkpoints/base: it takes less than a minute and is done
once a study, so that a second copy in a cache would only take room and could go stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from rlheals_ray.config import Study
from rlheals_ray.models.architecture import NANO, SMOLLM2, directory_of
from rlheals_ray.models.checkpoint_writer import copy_companions, copy_model
from rlheals_ray.models.mllama import is_mllama, write_language_model
from rlheals_ray.models.nano_base import train_nano_base
from rlheals_ray.models.plain_prompt import write_plain_template
from rlheals_ray.storage import StudyFiles, Unit, new_directory


def write_architecture(base: Path, directory: Path) -> None:
    """What an engine starts from: the configuration and tokenizer of checkpoint `base`, which every other shares."""
    with new_directory(directory) as target:
        copy_companions(base, target)


def make_base(
    study: Study, files: StudyFiles, name: str, unit: Unit, threads: int
) -> Iterator[tuple[int, float]]:
    """Make the base checkpoint `name`; yields (step, smoothed loss) as nano's training goes on.

    Raises InputError for a directory or package that turns out to be no whole model.
    """
    with new_directory(files.checkpoint(name)) as target:
        if study.base.model == NANO:
            torch.set_num_threads(threads)
            cards = int(study.task.options.get("cards", 4))
            base = study.base
            yield from train_nano_base(
                target, cards=cards, targets=nano_targets(study), seed=base.seed, steps=base.steps
            )
        else:
            write_taken_over(study.base.model, target)
            if study.base.prompt == "plain":
                write_plain_template(target)
        files.stamp(target, unit)


def write_taken_over(model: str, target: Path) -> None:
    """Write a model that exists already (any base.model but nano) into the directory `target`, as a Hugging Face
    directory of a causal language model. Raises InputError."""
    directory = directory_of(model)
    if model == SMOLLM2:
        from rlheals_ray.models.smollm2 import write_smollm2  # loads the reader of its format

        write_smollm2(target)
    elif directory is not None and is_mllama(directory):
        write_language_model(directory, target)
    elif directory is not None:
        copy_model(directory, target)


def nano_targets(study: Study) -> list[int]:
    """The targets whose words the nano model knows."""
    return [int(target) for target in study.task.options.get("targets", [24])]
