"""The whole study, and what its parts must satisfy together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rlheals_ray.config.edits import EditSettings
from rlheals_ray.config.fields import Settings
from rlheals_ray.config.resources import ResourceSettings
from rlheals_ray.config.rl import ControlSettings, RLSettings, RolloutSettings
from rlheals_ray.config.settings import (
    BaseSettings,
    EvaluationSettings,
    HiddenSettings,
    RecommendationSettings,
    SpectraSettings,
    TaskSettings,
    TrackingSettings,
)
from rlheals_ray.config.sft import SFTSettings


class Study(Settings):
    """One study, complete. Everything a run writes stands under `<storage>/<name>/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "nano"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    task: TaskSettings = TaskSettings()
    base: BaseSettings = BaseSettings()
    sft: SFTSettings = SFTSettings()
    rl: RLSettings = RLSettings()
    controls: ControlSettings = ControlSettings()
    rollout: RolloutSettings = RolloutSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    spectra: SpectraSettings = SpectraSettings()
    edits: tuple[EditSettings, ...] = (EditSettings(),)
    hidden: HiddenSettings | None = HiddenSettings()
    recommendation: RecommendationSettings = RecommendationSettings()
    tracking: TrackingSettings = TrackingSettings()
    resources: ResourceSettings = ResourceSettings()
    keep: Literal["all", "boundary", "best"] = "all"
    """Checkpoints that stay when the study is done: all; those where RL starts and ends, the peaks and the recommended
    one; or base and the recommended one. Tables and report always stay."""
    storage: str = "./runs"
    """A local or shared directory, or the URI of one that pyarrow or fsspec knows, such as s3://bucket/runs."""
    work: str | None = None
    """Where a study whose storage is a URI is worked on, while it is mirrored there; every node must see it. By
    default a directory of the URI's own in ~/.cache/rlheals_ray. Ignored where storage is a directory."""

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
        share, micro = self.sft.batch_size // workers, self.sft.micro_batch
        if micro is not None and micro < share and share % micro:
            fitting = [count for count in range(1, share + 1) if share % count == 0]
            raise ValueError(
                f"sft.micro_batch (got {micro}) does not divide the {share} examples of an update that each worker "
                f"takes; use one of {fitting}"
            )
        self._check_minibatches(self.rl.episodes // workers)
        return self

    @model_validator(mode="after")
    def _ranks_have_gpus_of_their_own(self) -> Study:
        workers, gpus = max(self.sft.workers, self.rl.workers), self.resources.learner.gpus
        if workers > 1 and gpus is not None and 0 < gpus < 1:
            raise ValueError(
                f"resources.learner.gpus (got {gpus:g}): NCCL takes no two of a group's {workers} workers on one GPU; "
                "use 1, or one worker"
            )
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
    def _edits_name_checkpoints(self) -> Study:
        for index, edit in enumerate(self.edits):
            for field, name in (("donor", edit.donor), ("recipient", edit.recipient)):
                kind, *steps = name.split("-")
                sft, rl = self.sft.steps, (self.rl.from_steps, [b for b in self.rl.budgets if b])
                known = {"sft": (sft,), "rl": rl}.get(kind, ())
                if any(int(step) not in choices for step, choices in zip(steps, known, strict=True)):
                    raise ValueError(
                        f"edits.{index}.{field} (got {name!r}) is no checkpoint of this study; use sft-STEP with a "
                        f"step of {list(sft)}, or rl-SFT_STEP-RL_STEP with steps of {list(rl[0])} and {rl[1]}"
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
        alone = sorted(set(self.controls.from_steps or ()) - set(self.rl.from_steps))
        if alone:
            raise ValueError(
                f"controls.from_steps has {alone}, where no RL branch starts: a control stands beside a branch; choose "
                f"from {list(self.rl.from_steps)}"
            )
        return self
