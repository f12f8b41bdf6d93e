"""Settings of stage 1: the trunk, its data, its optimiser, and the recipes that may be compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlheals_ray.config.fields import (
    LocalPath,
    PositiveFloat,
    PositiveInt,
    Recipe,
    Role,
    Settings,
    Sharding,
    Steps,
    strictly_increasing,
)

Roles = Annotated[tuple[Role, ...], Field(min_length=1)]


class LoraSettings(Settings):
    """Recipe `lora`: low-rank adapters, merged into every published checkpoint."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    roles: Roles = ("q", "k", "v", "o", "gate", "up", "down")

    @field_validator("roles")
    @classmethod
    def _roles(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        if whole := sorted({"embed", "head"} & set(roles)):
            raise ValueError(f"roles (got {list(roles)}): {whole} cannot have adapters; leave them out")
        return roles


class FlowSettings(Settings):
    """Recipe `flow` (arXiv 2502.02797): samples that the base finds easy weigh more, w = exp(-loss / temperature)."""

    temperature: PositiveFloat | None = None
    """Nats; null: the median of the base's losses, as published."""


class RotationSettings(Settings):
    """Recipe `rotation` (RPSFT, arXiv 2605.10973): weight · Σ_W ‖U_kᵀ (W − W₀) V_k‖²_F is added to the loss."""

    k: PositiveInt = 32
    """Leading singular directions of the base's matrices that are held (published: 768)."""
    weight: PositiveFloat = 1.0
    roles: Roles = ("q", "k", "v", "o", "gate", "up", "down")


class DataSettings(Settings):
    """The user's own prompts and answers instead of the task's demonstrations."""

    path: LocalPath
    """A parquet or JSON Lines file, a directory of either, a Hugging Face dataset directory, or a JSON file of LLaVA
    `conversations`."""
    prompt: str = "prompt"
    answer: str = "answer"
    """The fields (columns) that hold them; ignored where rows have `conversations`."""


class SFTSettings(Settings):
    """Stage 1. `steps` are the checkpoints of the trunk; the last one is where SFT ends."""

    steps: Steps = (0, 2, 4, 6, 8, 10, 15, 30, 60, 120, 200, 400)
    checkpoints: dict[int, LocalPath] | None = None
    """A trunk that exists already: SFT step to Hugging Face directory, in which {seed} stands for the seed. Nothing is
    trained, and `steps` are these."""
    learning_rate: PositiveFloat = 7e-4
    batch_size: PositiveInt = 48
    """Examples per update over all workers."""
    micro_batch: PositiveInt | None = None
    """Examples that a worker holds in one forward pass (null: its whole share); changes memory, not results."""
    sharding: Sharding = "ddp"
    """How a model is spread over the workers of its group, in SFT and in RL: not at all (one worker),
    replicated (ddp), parameters too (fsdp2, zero3), or optimiser state and gradients (zero2)."""
    offload: bool = False
    """Keep what fsdp2, zero2 or zero3 divide in the memory of the CPU; for GPU machines."""
    workers: PositiveInt = 1
    recipe: Recipe | Annotated[tuple[Recipe, ...], Field(min_length=1)] = "plain"
    """How the trunk is trained; several recipes are an axis of the study, each with its own trunks and branches."""
    lora: LoraSettings = LoraSettings()
    flow: FlowSettings = FlowSettings()
    rotation: RotationSettings = RotationSettings()
    lr_schedule: Literal["constant", "cosine", "linear", "warmup_log"] = "constant"
    """Over the whole trunk. warmup_log: the logarithmic warm-up, then constant, of DeepSpeed's WarmupLR, which the
    published run had though it asked for cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Warm-up as a share of the trunk's updates, where warmup_steps is 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of forward and backward passes; weights and optimiser stay float32."""
    gradient_checkpointing: bool = False
    packing: bool = False
    """Put several examples into one sequence; the loss stays that of the responses alone."""
    max_length: PositiveInt | None = None
    """Longest example in tokens; a longer one is refused before training (null: what the model can read)."""
    state_every: PositiveInt | None = None
    """Updates between two saves of the resumable state (null: at `steps` only)."""
    examples: PositiveInt | None = None
    """Training problems of the ID rule (null: all there are); each epoch demonstrates every one afresh."""
    data: DataSettings | None = None

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The study's recipes, whether one was named or several."""
        return (self.recipe,) if isinstance(self.recipe, str) else self.recipe

    @model_validator(mode="before")
    @classmethod
    def _steps_of_checkpoints(cls, values: Any) -> Any:
        # A preset's own steps give way: the checkpoints say which there are.
        if isinstance(values, dict) and isinstance(found := values.get("checkpoints"), dict) and found:
            try:
                return {**values, "steps": sorted(int(step) for step in found)}
            except (TypeError, ValueError):
                return values  # the field itself says what is wrong
        return values

    @field_validator("checkpoints")
    @classmethod
    def _checkpoints(cls, found: dict[int, str] | None) -> dict[int, str] | None:
        if found is not None and (not found or min(found) < 0):
            raise ValueError(
                "write SFT step: directory, steps counted from 0, for example {120: /models/sft-120}"
            )
        return found

    @field_validator("recipe")
    @classmethod
    def _recipes(cls, recipe: Recipe | tuple[Recipe, ...]) -> Recipe | tuple[Recipe, ...]:
        if not isinstance(recipe, str) and len(set(recipe)) != len(recipe):
            raise ValueError(f"recipes must be distinct; write {list(dict.fromkeys(recipe))}")
        return recipe

    @field_validator("steps")
    @classmethod
    def _steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return strictly_increasing(steps, "SFT steps")

    @model_validator(mode="after")
    def _trains(self) -> SFTSettings:
        if self.checkpoints is None and self.steps[-1] == 0:
            raise ValueError(
                f"steps (got {list(self.steps)}): the trunk must train; end with a step above 0, for example [0, 100]"
            )
        if self.checkpoints is not None and len(self.recipes) > 1:
            raise ValueError(
                f"recipe (got {list(self.recipes)}): sft.checkpoints are the trunk of one recipe; name that one"
            )
        if "lora" in self.recipes and self.sharding not in ("none", "ddp"):
            raise ValueError(
                f"sharding (got {self.sharding!r}): sft.recipe=lora trains adapters on a whole model; use "
                "sft.sharding=ddp, or leave lora out of sft.recipe"
            )
        if self.offload and self.sharding not in ("fsdp2", "zero2", "zero3"):
            raise ValueError(
                f"offload (got true): sharding {self.sharding!r} divides nothing that could be kept in the CPU's "
                "memory; use sft.sharding=fsdp2, zero2 or zero3, or sft.offload=false"
            )
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"warmup_ratio (got {self.warmup_ratio}): sft.warmup_steps={self.warmup_steps} says the same; set one "
                "of them to 0"
            )
        return self
