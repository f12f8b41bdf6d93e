"""The user's data through Ray Data: what a loop in one process would give, in the same order."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from rlheals_ray.config import load_study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.nano import tokenizer
from rlheals_ray.sft import user_data
from rlheals_ray.sft.user_data import UserExamples, prepare
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import get_task

pytestmark = pytest.mark.slow

TARGETS = [18, 24]


def test_streams_of_two_workers_are_the_parts_of_one_and_can_begin_anywhere(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = get_task("general_points", cards=3, targets=TARGETS, wording="compact")
    problems = task.problems("id", "train", task.available("id", "train"))
    rows = [{"prompt": task.prompt(p), "answer": task.demonstration(p)} for p in problems] * 2
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (data := tmp_path / "data").mkdir()
    for part in range(3):
        (data / f"d{part}.jsonl").write_text(text)
    study = load_study("nano", [f"sft.data.path={data}", f"storage={tmp_path / 'runs'}"])
    files = StudyFiles.at(study.storage, study.name)
    prepare(study, files)
    examples = UserExamples.open(study, files, ChatFormat(tokenizer(TARGETS)), seed=1)
    assert examples.count == 3 * len(rows) and len(examples.rows.names) == 3

    batch, updates = 16, 30
    shares = [
        [p for u in range(updates) for p in range(u * batch + r * 8, u * batch + r * 8 + 8)] for r in (0, 1)
    ]
    streams = [examples.stream(share) for share in shares]  # side by side, as two workers have them
    together = [e for _ in range(updates) for stream in streams for e in islice(stream, 8)]
    later = list(examples.stream(range(7 * batch, updates * batch)))

    monkeypatch.setattr(user_data, "_ray_is_up", lambda: False)
    alone = list(examples.stream(range(updates * batch)))
    assert together == alone
    assert later == alone[7 * batch :]
