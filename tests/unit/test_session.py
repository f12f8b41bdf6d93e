"""A study's connection to Ray."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import ray

from rlheals_ray.config import load_study
from rlheals_ray.grid.session import Session
from rlheals_ray.storage import StudyFiles


def test_ray_is_never_started_from_a_thread_whose_end_would_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have started
    session = Session(load_study("tiny"), StudyFiles(tmp_path))
    raised: list[BaseException] = []

    def connect() -> None:
        try:
            session.connect()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


@pytest.mark.parametrize(
    ("cpus", "labels", "tasks"),
    [(8, {}, 6), (8, {"cores": "2"}, 2), (8, {"cores": "16"}, 6), (3, {"cores": "2"}, 1)],
)
def test_tasks_take_what_engines_and_learners_leave_and_no_more_than_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: float, labels: dict[str, str], tasks: int
) -> None:
    node = {"Alive": True, "Resources": {"CPU": cpus}, "Labels": labels}
    gone = {"Alive": False, "Resources": {"CPU": 64.0}, "Labels": {}}
    monkeypatch.setattr(ray, "nodes", lambda: [node, gone])
    monkeypatch.setattr(ray, "cluster_resources", lambda: node["Resources"])
    session = Session(load_study("tiny"), StudyFiles(tmp_path), address="127.0.0.1:1")
    assert session.resources.cpus == 3, "a generator, a group of one worker, and one task"
    assert session.task_slots == tasks
