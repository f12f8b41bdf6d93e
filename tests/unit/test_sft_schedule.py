"""The learning rate of every update, against the libraries whose schedules it states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from deepspeed.runtime.lr_schedules import WarmupLR

from rlheals_ray.config import SFTSettings
from rlheals_ray.sft.schedule import Kind, Schedule

UPDATES = 40


def rates(schedule: Callable[[torch.optim.Optimizer], object], highest: float) -> list[float]:
    """What an optimiser's updates are made with when the schedule steps after each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=highest)
    stepper = schedule(optimizer)
    out = []
    for _ in range(UPDATES):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        stepper.step()  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize("warmup", [0, 1, 7, UPDATES])
@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_the_usual_schedules_are_those_of_transformers(kind: Kind, warmup: int) -> None:
    name = {"constant": "constant_with_warmup"}.get(kind, kind)
    expected = rates(
        lambda o: transformers.get_scheduler(name, o, num_warmup_steps=warmup, num_training_steps=UPDATES),
        3e-4,
    )
    ours = Schedule(kind, 3e-4, UPDATES, warmup)
    assert [ours.rate(update) for update in range(UPDATES)] == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("warmup", [1, 2, 9, 100])
def test_warmup_log_is_the_warm_up_of_deepspeed(warmup: int) -> None:
    expected = rates(lambda o: WarmupLR(o, warmup_max_lr=1e-6, warmup_num_steps=warmup), 1e-6)
    ours = Schedule("warmup_log", 1e-6, UPDATES, warmup)
    assert [ours.rate(update) for update in range(UPDATES)] == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_given_as_a_share_is_rounded_as_transformers_rounds_it() -> None:
    settings = SFTSettings(steps=(0, 111), warmup_ratio=0.03, lr_schedule="cosine")
    arguments = transformers.TrainingArguments(warmup_steps=0.03, use_cpu=True)
    assert Schedule.of(settings, 111).warmup == arguments.get_warmup_steps(111)


def test_it_says_what_is_really_done() -> None:
    assert str(Schedule("warmup_log", 1e-6, 400, 12)) == (
        "learning rate 1e-06, constant, after a logarithmic warm-up of 12 updates, 400 updates"
    )
