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
