"""The base checkpoint of a study: trained here (nano), or taken over from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from rlheals_ray.config import Study
from rlheals_ray.models import nano
from rlheals_ray.models.checkpoint_writer import copy_companions, copy_model
from rlheals_ray.models.nano_base import train_nano_base
from rlheals_ray.storage import StudyFiles, Unit, new_directory


def write_architecture(study: Study, directory: Path) -> None:
    """What an engine needs to start before the base is there: configuration and tokenizer."""
    with new_directory(directory) as target:
        if study.base.model == "nano":
            targets = _targets(study)
            nano.architecture(targets).save_pretrained(target)
            nano.tokenizer(targets).save_pretrained(target)
        else:
            copy_companions(Path(study.base.model).expanduser(), target)


def make_base(
    study: Study, files: StudyFiles, name: str, unit: Unit, threads: int
) -> Iterator[tuple[int, float]]:
    """Make the base checkpoint `name`; yields (step, smoothed loss) as nano's training goes on."""
    with new_directory(files.checkpoint(name)) as target:
        if study.base.model == "nano":
            torch.set_num_threads(threads)
            cards = int(study.task.options.get("cards", 4))
            base = study.base
            yield from train_nano_base(
                target, cards=cards, targets=_targets(study), seed=base.seed, steps=base.steps
            )
        else:
            copy_model(Path(study.base.model).expanduser(), target)
        files.stamp(target, unit)


def _targets(study: Study) -> list[int]:
    return [int(target) for target in study.task.options.get("targets", [24])]
