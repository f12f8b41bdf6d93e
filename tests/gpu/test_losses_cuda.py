"""Held-out losses on CUDA are those of the CPU. UNTESTED: written without a GPU at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlheals_ray.config import load_study
from rlheals_ray.models import nano
from rlheals_ray.sft import losses
from rlheals_ray.tasks import get_task

pytestmark = pytest.mark.gpu


def test_losses_are_scored_on_the_gpu_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nano.save(nano.untrained([18, 24], seed=0), [18, 24], tmp_path)
    settings = load_study("nano").task
    problems = get_task(settings.name, **settings.options).problems("ood", "eval", 50)
    torch.cuda.reset_peak_memory_stats()
    found = losses.held_out_losses([tmp_path], settings, problems)
    assert torch.cuda.max_memory_allocated() > 0
    monkeypatch.setattr(losses, "local_device", lambda: torch.device("cpu"))
    assert found == pytest.approx(losses.held_out_losses([tmp_path], settings, problems), rel=1e-4)
