"""The study: every setting of a run in one typed, validated, immutable model.

Light on purpose: importing this package loads neither torch, ray, vllm nor transformers, so that a
wrong setting is found in milliseconds and before anything is allocated.

A study comes from a preset's name or a YAML file, then dotted overrides: `sft.learning_rate=2e-4`,
`seeds=[0]`, `task.targets=[24]`. Every mistake is an `InputError` naming field, value and remedy.
"""

from rlheals_ray.config.edits import EditSettings, EditVariant, edit_kinds
from rlheals_ray.config.fields import (
    NAMED_MODELS,
    Algorithm,
    Control,
    InputError,
    PositiveFloat,
    PositiveInt,
    Recipe,
    Role,
    Schedule,
    Sharding,
    Steps,
)
from rlheals_ray.config.load import STUDIES, dump_study, load_study, presets
from rlheals_ray.config.resources import ProcessSettings, ResourceSettings
from rlheals_ray.config.rl import ControlSettings, EarlyStopSettings, RLSettings, RolloutSettings
from rlheals_ray.config.settings import (
    BaseSettings,
    EvaluationSettings,
    HiddenSettings,
    MLflowSettings,
    RecommendationSettings,
    SpectraSettings,
    TaskSettings,
    TrackingSettings,
    WandbSettings,
)
from rlheals_ray.config.sft import DataSettings, FlowSettings, LoraSettings, RotationSettings, SFTSettings
from rlheals_ray.config.study import Study

__all__ = [
    "NAMED_MODELS",
    "STUDIES",
    "Algorithm",
    "BaseSettings",
    "Control",
    "ControlSettings",
    "DataSettings",
    "EarlyStopSettings",
    "EditSettings",
    "EditVariant",
    "EvaluationSettings",
    "FlowSettings",
    "HiddenSettings",
    "InputError",
    "LoraSettings",
    "MLflowSettings",
    "PositiveFloat",
    "PositiveInt",
    "ProcessSettings",
    "RLSettings",
    "Recipe",
    "RecommendationSettings",
    "ResourceSettings",
    "Role",
    "RolloutSettings",
    "RotationSettings",
    "SFTSettings",
    "Schedule",
    "Sharding",
    "SpectraSettings",
    "Steps",
    "Study",
    "TaskSettings",
    "TrackingSettings",
    "WandbSettings",
    "dump_study",
    "edit_kinds",
    "load_study",
    "presets",
]
