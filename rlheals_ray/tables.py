"""The parquet tables a study leaves: their columns, their parts, and how parts become one table.

Every unit of work (a trunk, a branch, a probe, ...) writes one *part* file, atomically; a table is
the concatenation of the parts that the present study declares. Rerunning a unit replaces its part,
so a table can have neither missing nor double rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

_f, _i, _s, _b = pa.float64(), pa.int64(), pa.string(), pa.bool_()


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


SFT = _schema(
    recipe=_s, seed=_i, step=_i, train_loss=_f, id_loss=_f, ood_loss=_f, learning_rate=_f,
    grad_norm=_f, tokens=_i, seconds=_f, parameter_bytes=_i, engine=_s, wrapped_model=_s, train_run=_s,
)  # fmt: skip
"""`parameter_bytes`: of the model's parameters, held by one worker between two updates."""
RL = _schema(
    recipe=_s, algorithm=_s, seed=_i, sft_step=_i, rl_step=_i, reward_mean=_f, solved_at_1=_f,
    solved_at_k=_f, malformed=_f, entropy=_f, approx_kl=_f, clip_fraction=_f,
    explained_variance=_f, grad_norm=_f, advantage_q05=_f, advantage_q25=_f, advantage_q50=_f,
    advantage_q75=_f, advantage_q95=_f, advantage_skew=_f, logprob_mismatch_mean=_f,
    logprob_mismatch_max=_f, logprob_mismatch_kl=_f, weight_lag=_i, learning_rate=_f,
    policy_loss=_f, value_loss=_f, reference_kl=_f, tokens=_i, episode_tokens=_i, tokens_per_second=_f,
    seconds_generate=_f, seconds_judge=_f, seconds_learn=_f, seconds_sync=_f, idle_share=_f,
    engine=_s, wrapped_model=_s, train_run=_s,
)  # fmt: skip
"""`tokens`: that the model wrote; `episode_tokens`: of the whole conversations, prompts and replies included. A control
has one row per budget, with what it trained on since the budget before."""
EPISODES = _schema(
    checkpoint=_s, rule=_s, problem_id=_s, attempts=_i, solved_at=_i, well_formed=pa.list_(_b),
    rewards=pa.list_(_f), answers=pa.list_(_s),
)  # fmt: skip
SCORES = _schema(
    checkpoint=_s, stage=_s, recipe=_s, seed=_i, sft_step=_i, rl_step=_i, rule=_s, n=_i, acc_1=_f,
    acc_1_low=_f, acc_1_high=_f, acc_k=_f, acc_k_low=_f, acc_k_high=_f, malformed=_f, engine=_s,
)  # fmt: skip
BOUNDARY = _schema(
    scope=_s, recipe=_s, algorithm=_s, seed=_i, seeds=_i, sft_step=_i, rl_step=_i, rule=_s, ood_sft=_f,
    ood_rl=_f, healing=_f, healing_low=_f, healing_high=_f, healing_seed_low=_f,
    healing_seed_high=_f, p=_f, q=_f, forgetting=_f, recovery=_f, recovery_low=_f,
    recovery_high=_f, verdict=_s,
)  # fmt: skip
"""`seeds`, here and below: how many seeds a row is over, in a pooled row those that reached its cell."""
CONTROLS = _schema(
    scope=_s, recipe=_s, algorithm=_s, control=_s, seed=_i, seeds=_i, sft_step=_i, rl_step=_i, rule=_s, acc_rl=_f,
    acc_control=_f, difference=_f, difference_low=_f, difference_high=_f, difference_seed_low=_f,
    difference_seed_high=_f, p=_f, q=_f, verdict=_s,
)  # fmt: skip
"""RL against a control of equal compute from the same checkpoint: acc_rl − acc_control on the same problems, as the
boundary's healing. verdict: better | worse | unclear, of RL."""
EDGES = _schema(
    rule=_s, recipe=_s, algorithm=_s, rl_step=_i, seeds=_i, edge=_s, step=_i, next_step=_i, step_low=_i, step_high=_i,
    absent=_f, seeds_low=_i, seeds_high=_i,
)  # fmt: skip
"""The boundary's edges. edge: lower | upper; step: the outermost SFT step that heals (null: none does), next_step: the
next tested beyond it, where RL does not heal; step_low, _high: 95 % over problems (bootstrap of the verdicts);
absent: share of the draws in which nothing heals; seeds: the fewest of any cell at the budget; seeds_low, _high: the
range of the seeds' own edges."""
BRANCHES = _schema(
    recipe=_s, algorithm=_s, seed=_i, sft_step=_i, status=_s, rl_step=_i, compute=_f, sft_updates=_i, cause=_s,
)  # fmt: skip
"""What became of every branch and control. status: done | stopped (early, cause says why) | failed | waiting; rl_step:
the last update made; compute: FLOPs per parameter that training and generation took; sft_updates: of a control."""
RECOMMENDATION = _schema(
    rule=_s, recipe=_s, algorithm=_s, sft_step=_i, rl_step=_i, seeds=_i, chosen=_b, eligible=_b, p_best=_f, ood=_f,
    ood_low=_f, ood_high=_f, ood_seed_low=_f, ood_seed_high=_f, id=_f, id_low=_f, id_high=_f, id_floor=_f,
    checkpoint=_s,
)  # fmt: skip
"""Every cell as a place to stop, the best first, rule by rule: chosen on one half of the problems, accuracies of the
other; p_best: share of bootstrap draws of that other half in which the same rule, floor included, takes the cell;
checkpoint: of the seed with the best OOD."""
SPECTRA = _schema(
    recipe=_s, seed=_i, a=_s, b=_s, matrix=_s, layer=_i, role=_s, k=_i, drift_mean=_f, drift_max=_f,
    angle_u_mean=_f, angle_u_max=_f, angle_v_mean=_f, angle_v_max=_f, null_angle=_f, stretch=_f,
    turn=_f, delta_norm=_f, effective_rank_a=_f, effective_rank_b=_f, looks_random=_b,
    drift_abs_mean=_f, drift_abs_max=_f, alignment_u=_f, alignment_v=_f, chordal_u=_f, chordal_v=_f,
    null_angle_v=_f, noise_angle_u=_f, noise_angle_v=_f, effective_rank_delta=_f,
    random_power=_f,
)  # fmt: skip
UPDATES = _schema(
    recipe=_s, seed=_i, a=_s, b=_s, c=_s, matrix=_s, layer=_i, role=_s, k=_i, cosine=_f, angle_u_mean=_f,
    angle_u_max=_f, angle_v_mean=_f, angle_v_max=_f, null_angle_u=_f, null_angle_v=_f,
    delta_norm_1=_f, delta_norm_2=_f, effective_rank_1=_f, effective_rank_2=_f,
)  # fmt: skip
"""Two updates of one matrix, ΔW₁ = b − a (say of SFT) and ΔW₂ = c − b (of RL from there)."""
SINGULAR_VALUES = _schema(
    recipe=_s, seed=_i, checkpoint=_s, matrix=_s, layer=_i, role=_s, index=_i, sigma=_f,
)  # fmt: skip
"""σ_index of a checkpoint's matrix, index from 1, thinned on a log grid that holds the first and the last."""
EDITS = _schema(
    edit=_s, group=_s, recipe=_s, seed=_i, donor=_s, recipient=_s, kind=_s, mode=_s, factors=_s, part=_s, k=_i,
    k_fraction=_f, t=_f, layers=pa.list_(_i), roles=pa.list_(_s), projection=_f, residual=_f, smallest=_f,
    delta_norm=_f, rule=_s, n=_i, acc_1=_f, acc_1_low=_f, acc_1_high=_f, acc_k=_f,
)  # fmt: skip
"""`group`: the edit that a row belongs to, as itself or as its control; a control shared by several edits has a row
in each group."""
HIDDEN = _schema(
    checkpoint=_s, stage=_s, recipe=_s, seed=_i, sft_step=_i, rl_step=_i, rule=_s, layer=_i, n=_i,
    pca_1=_f, pca_2=_f, pca_share_1=_f, pca_share_2=_f, tsne_1=_f, tsne_2=_f,
)  # fmt: skip
"""Where a checkpoint's mean hidden state lies, per layer (0: the embeddings)."""
SIMILARITY = _schema(
    recipe=_s, seed=_i, a=_s, b=_s, rule=_s, layer=_i, n=_i, cka=_f, mmd2=_f, cosine=_f,
)  # fmt: skip
"""Hidden states of two checkpoints on the same prompts; one MMD bandwidth for all pairs of a rule and layer."""
SHIFT = _schema(
    checkpoint=_s, stage=_s, recipe=_s, seed=_i, sft_step=_i, rl_step=_i, rule=_s, n=_i, entropy=_f,
    margin=_f, forward_kl=_f, forward_kl_low=_f, forward_kl_high=_f, forward_kl_token=_f, tokens=_i,
)  # fmt: skip
"""What a checkpoint's output distribution is, and how far it is from the base's."""
PREDICTORS = _schema(
    quantity=_s, rule=_s, n=_i, checkpoints=_i, rho=_f, rho_low=_f, rho_high=_f,
)  # fmt: skip
"""Spearman's rank correlation of a quantity of a checkpoint with its accuracy@1 under `rule`."""

SCHEMAS: Mapping[str, pa.Schema] = {
    "sft": SFT, "rl": RL, "episodes": EPISODES, "scores": SCORES, "boundary": BOUNDARY,
    "controls": CONTROLS, "edges": EDGES, "branches": BRANCHES, "recommendation": RECOMMENDATION,
    "spectra": SPECTRA, "updates": UPDATES, "singular_values": SINGULAR_VALUES, "edits": EDITS,
    "hidden": HIDDEN, "similarity": SIMILARITY, "shift": SHIFT, "predictors": PREDICTORS,
}  # fmt: skip


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as the binding table `name`; raises KeyError for a row that lacks or adds a column."""
    schema = SCHEMAS[name]
    rows = list(rows)
    for row in rows:
        if set(row) != set(schema.names):
            raise KeyError(f"{name}: columns differ: {sorted(set(row) ^ set(schema.names))}")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def concatenate(name: str, parts: Sequence[pa.Table]) -> pa.Table:
    """Parts of one table joined in the order given; an empty sequence gives an empty table."""
    return (
        pa.concat_tables([part.select(SCHEMAS[name].names) for part in parts])
        if parts
        else SCHEMAS[name].empty_table()
    )
