"""GRPO and RLOO branches on real Ray and vLLM: on two workers, in every way of dividing the model, one after
the other in the same processes.

What they learn is in test_learning.py, that they survive a kill in test_learner_faults.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.toy_lab import WRAPPED as ALONE
from tests.toy_lab import Lab, check_rows, start_training, toy_study

WRAPPED = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDPLlamaForCausalLM",
    "zero2": "DeepSpeedEngine (ZeRO-2)",
    "zero3": "DeepSpeedEngine (ZeRO-3)",
}
FEW: dict[str, Any] = {"budgets": [0, 3], "episodes": 48, "kl_coefficient": 0.05}


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[Lab]:
    """The laboratory with one group of two workers."""
    training = start_training(lab.storage / "trl-pair", "trl-pair", groups=1, workers=2)
    yield replace(lab, training=training)
    training.close()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_two_workers_make_the_first_update_of_one_however_the_model_is_divided(
    lab: Lab, pair: Lab, algorithm: str
) -> None:
    """The episodes of the first update are the same, and so must be what is measured of them.

    A branch of PPO ends the row: it finds nothing of TRL's or DeepSpeed's in its way.
    """
    study = toy_study(f"one-{algorithm}", lab.model, algorithm=algorithm, **FEW)
    expected = lab.train(lab.spec(study, 0))
    check_rows(expected, study, ALONE[algorithm])
    for sharding, wrapped in WRAPPED.items():
        divided = toy_study(
            f"{sharding}-{algorithm}", pair.model, sharding=sharding, workers=2, algorithm=algorithm, **FEW
        )
        rows = pair.train(pair.spec(divided, 0))
        check_rows(rows, divided, wrapped)
        for name in ("reward_mean", "policy_loss", "grad_norm", "entropy", "approx_kl", "advantage_q95"):
            assert rows[0][name] == pytest.approx(expected[0][name], rel=1e-3, abs=1e-5), (sharding, name)
    ppo = toy_study(f"ppo-{algorithm}", pair.model, workers=2, algorithm="ppo", **FEW)
    check_rows(pair.train(pair.spec(ppo, 0)), ppo, "DistributedDataParallel")
