"""The base checkpoint of a study: trained here (nano), or taken over from a Hugging Face directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rlheals_ray.config import Study
from rlheals_ray.models import nano
from rlheals_ray.models.nano_base import train_nano_base
from rlheals_ray.storage import new_directory

_TAKEN_OVER = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


def write_architecture(study: Study, directory: Path) -> None:
    """What an engine needs to start before the base is there: configuration and tokenizer."""
    with new_directory(directory) as target:
        if study.base.model == "nano":
            targets = _targets(study)
            nano.architecture(targets).save_pretrained(target)
            nano.tokenizer(targets).save_pretrained(target)
        else:
            _take_over(Path(study.base.model).expanduser(), target, _TAKEN_OVER[1:])


def make_base(study: Study, directory: Path, threads: int) -> Iterator[tuple[int, float]]:
    """Make the base checkpoint; yields (step, smoothed loss) as nano's training goes on."""
    with new_directory(directory) as target:
        if study.base.model == "nano":
            torch.set_num_threads(threads)
            cards = int(study.task.options.get("cards", 4))
            base = study.base
            yield from train_nano_base(
                target, cards=cards, targets=_targets(study), seed=base.seed, steps=base.steps
            )
        else:
            _take_over(Path(study.base.model).expanduser(), target, _TAKEN_OVER)


def _targets(study: Study) -> list[int]:
    return [int(target) for target in study.task.options.get("targets", [24])]


def _take_over(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            shutil.copy2(file, target / file.name)
