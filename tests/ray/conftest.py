"""One small Ray cluster for all tests that need one, and one laboratory in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import ray

if TYPE_CHECKING:
    from tests.toy_lab import Lab


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four logical CPUs, whatever the machine has."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def lab(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two warm groups of one learner each and one warm generator, for branches on the toy task."""
    from tests.toy_lab import Lab, start_pool, start_training, toy_study
    from tests.toy_model import write_toy_model

    model = write_toy_model(tmp_path_factory.mktemp("toy") / "model")
    storage = tmp_path_factory.mktemp("lab")
    training = start_training(storage / "train", "lab", groups=2, workers=1)
    yield Lab(model, storage, start_pool(toy_study("lab", model), model), training)
    training.close()
