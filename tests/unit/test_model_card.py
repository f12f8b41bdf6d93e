"""What the card of an exported checkpoint says of the study that recommends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlheals_ray import tables
from rlheals_ray.config import load_study
from rlheals_ray.grid.export import model_card
from rlheals_ray.grid.session import Session
from rlheals_ray.storage import StudyFiles

ROW: dict[str, Any] = dict.fromkeys(tables.RECOMMENDATION.names) | {
    "rule": "ood", "recipe": "plain", "algorithm": "ppo", "sft_step": 4, "rl_step": 2, "seeds": 2, "chosen": True,
    "eligible": True, "p_best": 0.415, "ood": 0.5, "id": 0.9, "id_floor": 0.8, "checkpoint": "rl/seed=4/step=2",
}  # fmt: skip


def card(storage: Path, probed: list[int], **row: Any) -> str:
    """Of a study of seeds 0, 1 and 4, of which those in `probed` have a probed trunk and a branch from step 4."""
    session = Session(load_study("tiny", ["seeds=[0,1,4]"]), StudyFiles(storage))
    blank = dict.fromkeys(tables.SCORES.names)
    places = [("sft", 4, None), ("sft", 12, None), ("rl", 4, 2)]
    scores = [
        blank | {"stage": stage, "recipe": "plain", "seed": seed, "sft_step": sft_step, "rl_step": rl_step,
                 "rule": rule, "checkpoint": f"{stage}/seed={seed}/sft_step={sft_step}/rl_step={rl_step}"}
        for seed in probed
        for stage, sft_step, rl_step in places
        for rule in ("ood", "id")
    ]  # fmt: skip
    session.files.write_table("scores", tables.table("scores", scores))
    return model_card(session, ROW | row)


@pytest.mark.parametrize(
    ("probed", "told"),
    [
        ([0, 1, 4], "`tiny`, seeds 0, 1, 4, recommends"),
        ([0, 4], "`tiny`, seeds 0, 4 (without seed 1, which did not get there), recommends"),
        ([4], "`tiny`, seed 4 (without seeds 0, 1, which did not get there), recommends"),
    ],
)
def test_it_names_the_seeds_that_the_accuracies_are_of(tmp_path: Path, probed: list[int], told: str) -> None:
    assert told in card(tmp_path, probed)


def test_how_sure_it_is_is_that_of_the_problems_that_did_not_choose(tmp_path: Path) -> None:
    assert (
        "In 42 % of the bootstrap draws of the problems that had no say in it, the same rule, ID floor included, takes "
        "this cell." in card(tmp_path, [0])
    )
    assert "How sure that is was not computed." in card(tmp_path, [0], p_best=None)
