"""The engines that a study may name in `rollout.engine`: one line each. Light: imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rlheals_ray.config import RolloutSettings
from rlheals_ray.rollout.vllm_environment import ENVIRONMENT

if TYPE_CHECKING:
    from rlheals_ray.rollout.engine import Engine


class EngineKind(NamedTuple):
    """An engine before it is imported."""

    module: str
    """Below rlheals_ray.rollout."""
    name: str
    """Of the class; called with (architecture, settings, stop_ids)."""
    environment: Mapping[str, str]
    """What its process needs before the module is imported."""


ENGINES: Mapping[str, EngineKind] = {
    "vllm": EngineKind("vllm_engine", "VllmEngine", ENVIRONMENT),
    "transformers": EngineKind("transformers_engine", "TransformersEngine", {"HF_HUB_OFFLINE": "1"}),
}


def make_engine(directory: Path, settings: RolloutSettings, stop_ids: Iterable[int]) -> Engine:
    """The engine that `settings` names, for the architecture in `directory`, without weights yet."""
    kind = ENGINES[settings.engine]
    module = importlib.import_module(f"rlheals_ray.rollout.{kind.module}")
    engine: Engine = getattr(module, kind.name)(directory, settings, stop_ids)
    return engine
