"""The resumable state of an SFT run: what is saved when, what of it is published, and where a restart goes on.

The trainer's own checkpoint directories hold model, optimiser, schedule, random state and log. One counts only
when every worker has written its part, which rank 0 notes in it.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlheals_ray.config import Sharding
from rlheals_ray.preemption import Notice
from rlheals_ray.sharding import effective
from rlheals_ray.training import Hopeless, Report

KEPT = 2
"""States on the disk: the newest, and the one before it while the newest is being written."""

_COMPLETE = "COMPLETE"
"""In a complete state: who can read it."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins."""

    update: int = 0
    """Updates that are done."""
    directory: str | None = None
    note: str | None = None
    """Why it begins again although something was saved."""

    @property
    def told(self) -> str | None:
        """For the user; None where it begins at the beginning."""
        return self.note or (f"goes on after update {self.update}" if self.update else None)


def find_resume_point(state: Path, sharding: Sharding) -> ResumePoint:
    """The newest complete state that these workers can read; called on every worker, decided on rank 0.

    DeepSpeed's states (zero2, zero3) can be read by as many workers as wrote them; those of fsdp2 by any number;
    those of one worker, and of ddp, by any number that does not divide the model. What is left of a state that
    nobody finished is removed: it would be taken for the newest.
    """
    found = [_look_for_one(state, sharding) if _rank() == 0 else ResumePoint()]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def _look_for_one(state: Path, sharding: Sharding) -> ResumePoint:
    complete: dict[int, tuple[Path, str]] = {}
    for directory in state.glob("checkpoint-*"):
        if (directory / _COMPLETE).exists():
            layout = (directory / _COMPLETE).read_text()
            complete[int(directory.name.split("-")[1])] = (directory, layout)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    wanted = layout_of(sharding)
    readable = [
        update for update, (_, layout) in complete.items() if layout in (wanted, _READABLE.get(wanted))
    ]
    if readable:
        newest = max(readable)
        for update in complete.keys() - {newest}:
            if update > newest:  # written by another number of workers
                shutil.rmtree(complete[update][0], ignore_errors=True)
        return ResumePoint(newest, str(complete[newest][0]))
    shutil.rmtree(state, ignore_errors=True)
    if not complete:
        return ResumePoint()
    layout = complete[max(complete)][1]
    return ResumePoint(
        note=f"the saved state of update {max(complete)} is {layout}, these workers read {wanted}: beginning again"
    )


_WHOLE, _FSDP2 = "of a whole model", "of a model divided by fsdp2"
_READABLE = {_WHOLE: _FSDP2}
"""What can be read beside the own layout: StreamTrainer makes a whole state of FSDP2's."""


def layout_of(sharding: Sharding) -> str:
    """What the states that these workers write are."""
    mode = effective(sharding)
    if mode in ("zero2", "zero3"):
        return f"of a model divided by {mode} among {dist.get_world_size()} workers"
    return _FSDP2 if mode == "fsdp2" else _WHOLE


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


class RunState(TrainerCallback):
    """Saves states, publishes checkpoints and keeps the log; the trainer calls it on every worker."""

    def __init__(
        self,
        report: Report,
        sharding: Sharding,
        state: Path,
        publish: Callable[[int, Path], None],
        published: frozenset[int],
        every: int | None,
        notice: Notice,
    ) -> None:
        """publish(update, directory of the saved state): called on rank 0 at each update of `published`."""
        self._report, self._sharding, self._directory, self._notice = report, sharding, state, notice
        self._publish, self._published, self._every = publish, published, every
        self._is_main = _rank() == 0
        self._start = time.perf_counter()
        self.tokens: Callable[[], int] = lambda: 0
        """Gives the last update's tokens; set by who knows them."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        is_due = step in self._published or bool(self._every and step % self._every == 0)
        control.should_save = is_due or self._notice.given(step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(float(logs["loss"])):
            # The mean over the workers: all of them stop here.
            raise Hopeless(
                f"the loss of update {state.global_step} is {logs['loss']}: SFT diverged; lower sft.learning_rate or "
                "sft.max_grad_norm, or use sft.precision=float32"
            )
        # The trainer's own history survives a restart with the rest of its state.
        state.log_history[-1]["seconds"] = time.perf_counter() - self._start
        state.log_history[-1]["tokens"] = self.tokens()
        if self._is_main:
            self._report({"step": state.global_step, "of": state.max_steps, "loss": float(logs["loss"])})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if dist.is_initialized():
            dist.barrier()  # a state counts only when every worker has written its part
        if self._is_main:
            saved = self._directory / f"checkpoint-{state.global_step}"
            if state.global_step in self._published:
                self._publish(state.global_step, saved)
            (saved / _COMPLETE).write_text(layout_of(self._sharding))
        self._notice.saved(state.global_step)


def durations(history: list[dict[str, Any]]) -> list[float]:
    """Seconds of each update; a restarted clock counts from its own start."""
    out, before = [], 0.0
    for entry in history:
        elapsed = entry["seconds"] - before
        out.append(elapsed if elapsed > 0 else entry["seconds"])
        before = entry["seconds"]
    return out
