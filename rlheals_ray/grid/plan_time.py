"""How long a study takes, stage by stage: its counts times recorded rates."""

from __future__ import annotations

from rlheals_ray.config import Study
from rlheals_ray.storage import StudyFiles


def time_lines(study: Study, files: StudyFiles) -> list[str]:
    """For the plan."""
    return []
