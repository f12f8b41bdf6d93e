"""Rows of the scores table from the episodes of one checkpoint."""

from typing import Any

import pyarrow as pa
import pytest
from statsmodels.stats.proportion import proportion_confint

from rlheals_ray import tables
from rlheals_ray.evaluation.scores import score_rows

WHERE: dict[str, Any] = {
    "stage": "sft", "recipe": "plain", "seed": 1, "sft_step": 30, "rl_step": None, "engine": "vllm",
}  # fmt: skip


def episode(problem: str, solved_at: int | None, well_formed: list[bool], rule: str = "id") -> dict[str, Any]:
    return {
        "checkpoint": "sft/seed=1/step=000030", "rule": rule, "problem_id": problem,
        "attempts": len(well_formed), "solved_at": solved_at, "well_formed": well_formed,
        "rewards": [0.0] * len(well_formed), "answers": [""] * len(well_formed),
    }  # fmt: skip


def episodes(*rows: dict[str, Any]) -> pa.Table:
    return tables.table("episodes", rows)


def test_shares_and_intervals_per_rule() -> None:
    rows = score_rows(
        episodes(
            episode("a", 1, [True]),
            episode("b", 3, [False, True, True]),
            episode("c", None, [True, False, False]),
            episode("d", 1, [True]),
            episode("e", None, [False, False, False], rule="ood"),
        ),
        **WHERE,
    )
    assert tables.table("scores", rows).num_rows == 2
    trained, unseen = rows
    assert (trained["rule"], trained["n"]) == ("id", 4)
    assert (trained["acc_1"], trained["acc_k"], trained["malformed"]) == (0.5, 0.75, 0.25)
    assert (trained["acc_1_low"], trained["acc_1_high"]) == pytest.approx(
        proportion_confint(2, 4, method="wilson")
    )
    assert (trained["acc_k_low"], trained["acc_k_high"]) == pytest.approx(
        proportion_confint(3, 4, method="wilson")
    )
    assert (unseen["rule"], unseen["acc_1"], unseen["acc_k"], unseen["malformed"]) == ("ood", 0.0, 0.0, 1.0)
    assert {key: trained[key] for key in WHERE} == WHERE
    assert trained["checkpoint"] == "sft/seed=1/step=000030"


def test_one_checkpoint_each_problem_once() -> None:
    other = episode("b", 1, [True]) | {"checkpoint": "elsewhere"}
    with pytest.raises(ValueError, match="one checkpoint"):
        score_rows(episodes(episode("a", 1, [True]), other), **WHERE)
    with pytest.raises(ValueError, match="one checkpoint"):
        score_rows(episodes(), **WHERE)
    with pytest.raises(ValueError, match="more than once"):
        score_rows(episodes(episode("a", 1, [True]), episode("a", None, [True])), **WHERE)
    both_rules = episodes(episode("a", 1, [True]), episode("a", None, [True], rule="ood"))
    assert len(score_rows(both_rules, **WHERE)) == 2
