"""What of the NCCL transport can run without a GPU: it refuses, or goes through the object store and says so.

Nothing here shows that NCCL works; that needs two GPUs.
"""

from __future__ import annotations

import logging

import pytest
import torch

from rlheals_ray.config import InputError, RolloutSettings
from rlheals_ray.models import nano
from rlheals_ray.rollout.episode import WrongWeights
from rlheals_ray.rollout.load import ObjectStoreLoad
from rlheals_ray.rollout.nccl_sync import NcclLoad, NcclSync, TransferFailed
from rlheals_ray.rollout.transformers_engine import TransformersEngine
from rlheals_ray.rollout.verification import expected_of
from rlheals_ray.rollout.weight_sync import ObjectStoreSync, named_tensors, weight_sync

TARGETS = [18, 24]
SETTINGS = RolloutSettings(engine="transformers")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    directory = tmp_path_factory.mktemp("nano")
    nano.save(nano.untrained(TARGETS, 0), TARGETS, directory)
    return TransformersEngine(directory, SETTINGS, ())


def test_auto_is_the_object_store_where_there_is_no_gpu_and_nccl_is_refused() -> None:
    assert weight_sync(RolloutSettings()).name == "object_store"
    with pytest.raises(InputError, match=r"rollout\.weight_sync \(got 'nccl'\)"):
        weight_sync(RolloutSettings(weight_sync="nccl"))


def test_weights_that_cannot_go_by_nccl_go_through_the_store_with_one_warning(
    ray_cluster: None, engine: TransformersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    sync = NcclSync(ObjectStoreSync(30.0), 30.0, may_fall_back=True)
    old, new = (nano.untrained(TARGETS, seed).eval() for seed in (1, 2))
    expected = {model: expected_of(model, SETTINGS) for model in (old, new)}
    with caplog.at_level(logging.WARNING):
        load = sync.publish(named_tensors(old), expected[old])
        assert isinstance(load, NcclLoad)
        for index in range(2):
            load.into(engine, index)  # each generator of the team, or one that replaces it
        expected[old].check(engine)
        after = sync.publish(named_tensors(new), expected[new])
        assert isinstance(after, ObjectStoreLoad) and sync.name == "object_store"
        after.into(engine, 0)
    [warning] = [record.getMessage() for record in caplog.records if "NCCL" in record.getMessage()]
    assert "the generator's transformers engine has no GPU to receive with" in warning
    with pytest.raises(WrongWeights):
        expected[old].check(engine)


def test_a_study_that_insists_on_nccl_fails_with_the_reason(
    ray_cluster: None, engine: TransformersEngine
) -> None:
    sync = NcclSync(ObjectStoreSync(30.0), 30.0, may_fall_back=False)
    load = sync.publish(named_tensors(nano.untrained(TARGETS, 1)))
    with pytest.raises(TransferFailed, match="has no GPU to receive with"):
        load.into(engine, 0)


def test_a_load_of_weights_that_the_learner_has_left_behind_is_refused(
    ray_cluster: None, engine: TransformersEngine
) -> None:
    sync = NcclSync(ObjectStoreSync(30.0), 30.0, may_fall_back=True)
    load = sync.publish(named_tensors(nano.untrained(TARGETS, 1)))
    sync.publish(named_tensors(nano.untrained(TARGETS, 2)))
    with pytest.raises(ValueError, match="version 1 is gone: the learner is at 2"):
        load.into(engine, 0)
