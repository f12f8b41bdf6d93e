"""The record of what a training worker was given, written by the worker itself.

It is the evidence for the first rule of the science: the OOD rule never reaches SFT or RL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from rlheals_ray.storage import write_parquet
from rlheals_ray.tasks import Problem, Task


def record_received(path: Path, task: Task, problems: Iterable[Problem]) -> None:
    """Write one row per distinct problem: its id, rule, group, prompt, and how often it came."""
    counts = Counter(problems)
    rows = [
        {"problem_id": p.id, "rule": p.rule, "group": p.group, "prompt": task.prompt(p), "count": count}
        for p, count in sorted(counts.items(), key=lambda item: item[0].id)
    ]
    write_parquet(path, pa.Table.from_pylist(rows))
