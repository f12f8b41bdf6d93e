"""The policy's learning rate at each update."""

from __future__ import annotations

import torch
from transformers import get_scheduler

from rlheals_ray.config import RLSettings


def learning_rate(settings: RLSettings, update: int) -> float:
    """Learning rate of `update`, counted from 1; that of transformers' schedules over budgets[-1] updates.

    All optimiser steps of an update share it. With a warm-up the first update has the rate 0.
    """
    name = settings.lr_schedule
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    schedule = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=settings.budgets[-1],
    )
    return float(settings.learning_rate * schedule.lr_lambdas[0](update - 1))
