"""The study: every setting of a run in one typed, validated, immutable model.

Light on purpose: importing this module loads neither torch, ray, vllm nor transformers, so that a
wrong setting is found in milliseconds and before anything is allocated.

A study comes from a preset's name or a YAML file, then dotted overrides: `sft.learning_rate=2e-4`,
`seeds=[0]`, `task.targets=[24]`. Every mistake is an `InputError` naming field, value and remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

STUDIES = Path(__file__).parent / "studies"

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "embed", "head"]
Sharding = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]
Recipe = Literal["plain"]
Algorithm = Literal["ppo", "grpo", "rloo"]
Schedule = Literal["constant", "cosine", "linear"]
Steps = Annotated[tuple[int, ...], Field(min_length=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class InputError(ValueError):
    """The input is wrong. The message is one paragraph: field, value, remedy. Jobs exit with code 2."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSettings(BaseModel):
    """The task's name; every other key is an option that the task itself validates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "general_points"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BaseSettings(_Settings):
    """The model before SFT: `nano` (trained here, see models/nano.py) or a Hugging Face directory."""

    model: str = "nano"
    seed: int = 0
    steps: PositiveInt = 1200
    """Updates that train the nano base; ignored for any other model."""


def _strictly_increasing(steps: tuple[int, ...], what: str) -> tuple[int, ...]:
    if any(step < 0 for step in steps):
        raise ValueError(f"{what} are counted from 0; remove the negative ones")
    if list(steps) != sorted(set(steps)):
        remedy = sorted(set(steps))
        raise ValueError(f"{what} must be strictly increasing; write {remedy}")
    return steps


class SFTSettings(_Settings):
    """Stage 1. `steps` are the checkpoints of the trunk; the last one is where SFT ends."""

    steps: Steps = (0, 2, 4, 6, 8, 10, 15, 30, 60, 120, 200, 400)
    learning_rate: PositiveFloat = 7e-4
    batch_size: PositiveInt = 48
    """Examples per update over all workers."""
    sharding: Sharding = "ddp"
    """How a model is spread over the workers of its group, in SFT and in RL: not at all (one worker),
    replicated (ddp), parameters too (fsdp2, zero3), or optimiser state and gradients (zero2)."""
    workers: PositiveInt = 1
    recipe: Recipe = "plain"
    lr_schedule: Schedule = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    examples: PositiveInt | None = None
    """Training problems of the ID rule (null: all there are); each epoch demonstrates every one afresh."""

    @field_validator("steps")
    @classmethod
    def _steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if steps[-1:] == (0,):
            raise ValueError("the trunk must train: end with a step above 0, for example [0, 100]")
        return _strictly_increasing(steps, "SFT steps")


class RLSettings(_Settings):
    """Stage 2: one branch per (seed, from_step); its budgets are read off along the way."""

    algorithm: Algorithm = "ppo"
    level: Literal["turn", "token"] = "turn"
    """PPO: what one action is. A turn, as in the paper, or a token."""
    from_steps: Steps = (0, 4, 15, 30, 60, 120, 400)
    budgets: Steps = (0, 15, 30)
    """RL updates after which a checkpoint is kept and probed; 0 is the SFT checkpoint itself."""
    learning_rate: PositiveFloat = 3e-4
    lr_schedule: Schedule = "constant"
    """Over the updates of the largest budget."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises from 0."""
    episodes: PositiveInt = 160
    """Episodes per update, over all workers."""
    group_size: PositiveInt = 8
    """GRPO and RLOO: episodes of each problem, whose mean reward is the baseline."""
    max_attempts: PositiveInt = 3
    temperature: PositiveFloat = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: PositiveInt = 40
    """Longest answer, in tokens, of one attempt."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Discount per turn (of turn-level PPO, and of the episode's return in GRPO and RLOO)."""
    token_gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token within a turn, token-level PPO."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    value_learning_rate: PositiveFloat = 3e-3
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """First updates in which only the critic learns, after its fit in closed form."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence from the SFT checkpoint that the branch began from."""
    epochs: PositiveInt = 1
    """Passes over the episodes of one update."""
    minibatches: PositiveInt = 1
    """Optimiser steps per pass."""
    micro_batch: PositiveInt | None = None
    """Episodes that a worker holds in one forward pass (null: a whole minibatch); changes memory, not results."""
    max_grad_norm: PositiveFloat = 1.0
    advantage_floor: PositiveFloat = 1.5
    """Advantages are divided by max(their standard deviation, this): a nearly settled batch must not
    be blown up into a large update."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the learner's forward and backward passes; its weights and optimiser stay float32."""
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 1
    """Updates between two saves of a branch's state; a branch that dies repeats at most this many."""
    workers: PositiveInt = 1

    @field_validator("top_p", "top_k", "repetition_penalty")
    @classmethod
    def _plain_sampling(cls, value: float, info: ValidationInfo) -> float:
        neutral = cls.model_fields[str(info.field_name)].default
        if value != neutral:
            raise ValueError(
                f"learning needs the log-probabilities of the sampling distribution itself, which this setting "
                f"changes; leave it at {neutral} (probes may use evaluation.{info.field_name})"
            )
        return value

    @model_validator(mode="after")
    def _groups(self) -> RLSettings:
        if self.algorithm == "ppo":
            return self
        if self.group_size < 2:
            raise ValueError(
                f"group_size (got {self.group_size}): {self.algorithm} compares the episodes of one problem with each "
                "other; use at least 2"
            )
        if self.episodes % self.group_size:
            fitting = max(self.episodes - self.episodes % self.group_size, self.group_size)
            raise ValueError(
                f"episodes (got {self.episodes}) does not divide into groups of group_size={self.group_size}; "
                f"use episodes={fitting}"
            )
        return self

    @field_validator("from_steps")
    @classmethod
    def _from_steps(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return _strictly_increasing(steps, "the SFT steps RL starts from")

    @field_validator("budgets")
    @classmethod
    def _budgets(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        return _strictly_increasing(steps, "RL budgets")


class RolloutSettings(_Settings):
    """The pool of generators: warm inference engines that serve RL and every probe."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """transformers is the slow one, for platforms without vLLM and as a reference."""
    generators: PositiveInt = 1
    generators_per_branch: PositiveInt = 1
    """Generators that one consumer (a branch's update, a probe) is lent together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: PositiveInt = 256
    max_num_seqs: PositiveInt = 256
    """Sequences that one engine decodes side by side."""
    kv_cache_mib: PositiveInt = 128
    weight_sync: Literal["auto", "object_store", "nccl"] = "auto"
    """How a learner's weights reach the engines; auto takes nccl where both sides have a GPU."""
    verify_weights: bool = False
    """Compare what the engines serve with what the learner holds, at every sync."""
    start_seconds: PositiveFloat = 900.0
    """Deadline of an engine's start."""
    sync_seconds: PositiveFloat = 300.0
    """Deadline of a weight sync."""
    stall_seconds: PositiveFloat = 180.0
    """A generator that makes no progress for this long counts as hung: it is killed and replaced."""
    max_failures: Annotated[int, Field(ge=0)] = 20
    """Generators that a study may lose (killed, hung, out of memory) before it gives up, naming the causes."""

    @model_validator(mode="after")
    def _teams(self) -> RolloutSettings:
        if self.generators % self.generators_per_branch:
            raise ValueError(
                f"generators_per_branch (got {self.generators_per_branch}) does not divide generators="
                f"{self.generators}; use generators={self.generators_per_branch} or a multiple"
            )
        return self


class EvaluationSettings(_Settings):
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


class SpectraSettings(_Settings):
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("q", "k", "v", "o", "gate", "up", "down")
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32)

    @field_validator("roles", "k")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"the values must be distinct; write {list(dict.fromkeys(values))}")
        return values


class EditSettings(_Settings):
    """Which factors of which checkpoint replace those of another; its plain weight swap always runs too."""

    donor: Literal["peak", "latest"] = "peak"
    recipient: Literal["peak", "latest"] = "latest"
    factors: Literal["UV", "S", "USV"] = "UV"
    k: PositiveInt | None = None
    """How many leading singular directions; null is all of them."""

    @model_validator(mode="after")
    def _distinct(self) -> EditSettings:
        if self.donor == self.recipient:
            raise ValueError(f"donor and recipient are both {self.donor!r}; name two different checkpoints")
        return self


class WandbSettings(_Settings):
    """Weights & Biases; the key comes from its own environment variable or login, never from here."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"


class MLflowSettings(_Settings):
    """MLflow; credentials come from its own environment variables, never from here."""

    tracking_uri: str
    experiment: str


class TrackingSettings(_Settings):
    """Where the metrics of every update go beside tables/rl.parquet."""

    tensorboard: bool = True
    wandb: WandbSettings | None = None
    mlflow: MLflowSettings | None = None


class Study(_Settings):
    """One study, complete. Everything a run writes stands under `<storage>/<name>/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "nano"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    task: TaskSettings = TaskSettings()
    base: BaseSettings = BaseSettings()
    sft: SFTSettings = SFTSettings()
    rl: RLSettings = RLSettings()
    rollout: RolloutSettings = RolloutSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    spectra: SpectraSettings = SpectraSettings()
    edits: tuple[EditSettings, ...] = (EditSettings(),)
    tracking: TrackingSettings = TrackingSettings()
    storage: str = "./runs"

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or min(seeds) < 0:
            raise ValueError(
                f"seeds must be distinct and not negative; write {sorted({abs(s) for s in seeds})}"
            )
        return seeds

    @field_validator("edits")
    @classmethod
    def _edits(cls, edits: tuple[EditSettings, ...]) -> tuple[EditSettings, ...]:
        if len(set(edits)) != len(edits):
            raise ValueError("the same edit stands there twice; remove one")
        return edits

    @model_validator(mode="after")
    def _work_divides_over_the_workers(self) -> Study:
        # One group of workers does both stages, so its size is the larger of the two.
        workers = max(self.sft.workers, self.rl.workers)
        for field, count in (("sft.batch_size", self.sft.batch_size), ("rl.episodes", self.rl.episodes)):
            if count % workers:
                raise ValueError(
                    f"{field} (got {count}) does not divide over the {workers} workers that sft.workers and "
                    f"rl.workers ask for; use {field}={max(count - count % workers, workers)}"
                )
        if self.sft.sharding == "none" and workers > 1:
            raise ValueError(
                f"sft.sharding (got 'none') is for one worker, but sft.workers and rl.workers ask for {workers}; use "
                "ddp, fsdp2, zero2 or zero3"
            )
        self._check_minibatches(self.rl.episodes // workers)
        return self

    def _check_minibatches(self, episodes: int) -> None:
        """`episodes` is one worker's share of an update."""
        rl = self.rl
        if episodes % rl.minibatches:
            fitting = [count for count in range(1, episodes + 1) if episodes % count == 0]
            raise ValueError(
                f"rl.minibatches (got {rl.minibatches}) does not divide the {episodes} episodes that each worker "
                f"learns from; use one of {fitting}"
            )
        share = episodes // rl.minibatches
        if rl.micro_batch is not None and share % rl.micro_batch:
            fitting = [count for count in range(1, share + 1) if share % count == 0]
            raise ValueError(
                f"rl.micro_batch (got {rl.micro_batch}) does not divide the {share} episodes of a worker's minibatch; "
                f"use one of {fitting}"
            )

    @model_validator(mode="after")
    def _branches_leave_the_trunk(self) -> Study:
        absent = sorted(set(self.rl.from_steps) - set(self.sft.steps))
        if absent:
            raise ValueError(
                f"rl.from_steps has {absent}, where the trunk saves no checkpoint; add them to sft.steps "
                f"or choose from {list(self.sft.steps)}"
            )
        return self


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(study: str, overrides: Sequence[str] = ()) -> Study:
    """The study named by a preset or a YAML path, with dotted overrides applied.

    Raises InputError (field, value, remedy) for anything that is wrong with it.
    """
    values = _read(study)
    for override in overrides:
        _apply(values, override)
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def dump_study(study: Study) -> dict[str, Any]:
    """The resolved study as plain JSON-like values, in the order of its fields."""
    return study.model_dump(mode="json")


def _read(study: str) -> dict[str, Any]:
    path = STUDIES / f"{study}.yaml" if study in presets() else Path(study)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(study, presets(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"STUDY: there is no preset {study!r}.{hint} Use one of {presets()} or the path of a YAML file."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"STUDY: {study!r} cannot be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"STUDY: {study!r} is not valid YAML ({' '.join(str(error).split())}); mend the file."
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"STUDY: {study!r} holds a {type(values).__name__}; a study is a mapping of fields.")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise InputError(f"override {override!r}: write field=value, for example sft.learning_rate=2e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(
            f"{field}: the value {text!r} is not valid YAML; quote it or mend the brackets."
        ) from None
    *parents, leaf = field.split(".")
    node: Any = values
    for depth, name in enumerate([*parents, leaf]):
        key: Any = name
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            key = int(name)
        elif not isinstance(node, dict):
            raise InputError(
                f"{field}: {'.'.join(field.split('.')[:depth])} has no field {key!r}; check the name."
            )
        if depth == len(parents):
            node[key] = value
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})


def _explain(error: ValidationError) -> str:
    return " ".join(_explain_one(detail) for detail in error.errors())


def _explain_one(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "study"
    if detail["type"] == "extra_forbidden":
        known = _fields(detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: there is no such field.{hint} Known here: {', '.join(known)}."
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict | BaseModel) else f" (got {detail['input']!r})"
    return f"{where}{value}: {message}."


def _fields(location: Iterable[int | str]) -> list[str]:
    model: Any = Study
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", (annotation,))
        model = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
    return list(model.model_fields)
