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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

STUDIES = Path(__file__).parent / "studies"

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "embed", "head"]
Sharding = Literal["ddp"]
Recipe = Literal["plain"]
Algorithm = Literal["ppo"]
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
    workers: PositiveInt = 1
    recipe: Recipe = "plain"
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
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
    from_steps: Steps = (0, 4, 15, 30, 60, 120, 400)
    budgets: Steps = (0, 15, 30)
    """RL updates after which a checkpoint is kept and probed; 0 is the SFT checkpoint itself."""
    learning_rate: PositiveFloat = 3e-4
    episodes: PositiveInt = 160
    """Episodes per update."""
    max_attempts: PositiveInt = 3
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 40
    """Longest answer, in tokens, of one attempt."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    value_learning_rate: PositiveFloat = 3e-3
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    epochs: PositiveInt = 1
    max_grad_norm: PositiveFloat = 1.0
    advantage_floor: PositiveFloat = 1.5
    """Advantages are divided by max(their standard deviation, this): a nearly settled batch must not
    be blown up into a large update."""
    workers: PositiveInt = 1

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

    engine: Literal["vllm"] = "vllm"
    generators: PositiveInt = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: PositiveInt = 256
    max_num_seqs: PositiveInt = 256
    """Sequences that one engine decodes side by side."""
    kv_cache_mib: PositiveInt = 128


class EvaluationSettings(_Settings):
    """Probes: every checkpoint answers the same problems of both rules."""

    problems: PositiveInt = 450
    """Per rule."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
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
        return self

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
