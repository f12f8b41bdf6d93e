"""What each kind of process asks of the cluster. It decides where things run, never what comes out."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from rlheals_ray.config.fields import PositiveFloat, Settings

Gpus = Annotated[float, Field(ge=0, le=1)]

_KEY = re.compile(r"([a-z0-9A-Z.-]+/)?[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?")
_VALUE = re.compile(r"!?[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?|!?in\([a-zA-Z0-9._,-]+\)")


class ProcessSettings(Settings):
    """One process: a worker of the learner, a generator, or a task."""

    cpus: PositiveFloat = 1.0
    gpus: Gpus | None = None
    """A fraction lets several share one GPU (not learners of one group, nor vLLM with another). null: 1 each if the
    cluster has, when the study starts, a GPU for every worker and generator that names none, else 0. Name it where the
    nodes come later."""
    memory_gib: PositiveFloat | None = None
    """What Ray reserves on a node, so that no more start there than fit; null: nothing."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Only on nodes with these labels (`ray start --labels`); a value may be `!x` or `in(x,y)`, as Ray selects them.
    Generators without labels start beside their learner where there is room."""

    @field_validator("labels")
    @classmethod
    def _as_ray_has_them(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
                raise ValueError(
                    f"{key!r}: {value!r} is no node label; write key: value of letters, digits, dots, dashes and "
                    "underscores, up to 63 of them, for example {role: learner}"
                )
        return labels


class TaskProcessSettings(ProcessSettings):
    """A task: losses, spectra, edits, hidden states. One at a time is reserved; more run where there is room."""

    gpus: Gpus = 0.0


class ResourceSettings(Settings):
    """What the study asks for. The driver asks for nothing: it runs on the head, with the queue and the pool's desk."""

    learner: ProcessSettings = ProcessSettings()
    """Of each worker of sft.workers and rl.workers."""
    generator: ProcessSettings = ProcessSettings()
    tasks: TaskProcessSettings = TaskProcessSettings()
    nodes_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for nodes that an autoscaler brings; 0: a cluster that is too small is refused at once."""
