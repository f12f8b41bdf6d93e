"""Invented tables of a study, for tests of the report. No number here was measured.

`nano_like()` has the shape that the small laboratory shows: OOD peaks early and is lost while ID climbs,
RL heals inside a window, weights rotate, and an edit does no more than a plain weight swap. `opposite()`
contradicts it claim by claim. `empty()` is a study that has only begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlheals_ray.tables import SCHEMAS, table

SFT_STEPS = (0, 2, 4, 6, 8, 10, 15, 30, 60, 120, 200, 400)
STARTS = (0, 4, 15, 30, 60, 120, 400)
BUDGETS = (15, 30)
PROBLEMS = {"ood": 552, "id": 450}
TINY = 60
"""Problems in the episodes table: enough for two halves."""


@dataclass(frozen=True)
class World:
    """What an invented study found, at each SFT step; RL values are after the largest budget."""

    ood: Sequence[float]
    id: Sequence[float]
    ood_after: Mapping[int, float]
    id_after: float
    id_loss_lowest: int
    ood_loss_lowest: int
    drift: float
    angle: float
    angle_after: float
    swap: float
    edit: float


NANO = World(
    ood=(0, 0, 0, 0.80, 0.72, 0.64, 0.42, 0.28, 0.20, 0.16, 0.05, 0.01),
    id=(0, 0, 0.03, 0.82, 0.76, 0.68, 0.69, 0.75, 0.82, 0.89, 0.89, 0.93),
    ood_after={0: 0, 4: 0.93, 15: 0.84, 30: 0.69, 60: 0.41, 120: 0.27, 400: 0.01},
    id_after=0.96,
    id_loss_lowest=400,
    ood_loss_lowest=2,
    drift=0.023,
    angle=0.125,
    angle_after=0.126,
    swap=0.61,
    edit=0.60,
)
OPPOSITE = World(
    ood=(0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.80),
    id=(0, 0.9, 0.9, 0.88, 0.87, 0.86, 0.85, 0.84, 0.83, 0.82, 0.81, 0.80),
    ood_after={0: 0, 4: 0.02, 15: 0.2, 30: 0.3, 60: 0.4, 120: 0.95, 400: 0.5},
    id_after=0.4,
    id_loss_lowest=400,
    ood_loss_lowest=400,
    drift=0.20,
    angle=0.125,
    angle_after=0.06,
    swap=0.10,
    edit=0.70,
)


def nano_like(seeds: Iterable[int] = (0, 1, 2)) -> dict[str, pa.Table]:
    return tables(NANO, tuple(seeds), verdict=lambda change: "heals" if change > 0.15 else "unclear")


def opposite(seeds: Iterable[int] = (0, 1, 2)) -> dict[str, pa.Table]:
    return tables(OPPOSITE, tuple(seeds), verdict=lambda change: "harms" if change < -0.05 else "unclear")


def empty() -> dict[str, pa.Table]:
    return {name: schema.empty_table() for name, schema in SCHEMAS.items()}


def rows_of(name: str, values: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of rows that name only the columns that matter; the others are null."""
    blank = dict.fromkeys(SCHEMAS[name].names)
    return table(name, [{**blank, **row} for row in values])


def tables(world: World, seeds: tuple[int, ...], verdict: Any) -> dict[str, pa.Table]:
    """Every table of an invented study; `verdict` maps healing to a verdict."""
    scores, episodes = [], []
    for rule in ("ood", "id"):
        for seed in seeds:
            for step, accuracy in zip(SFT_STEPS, getattr(world, rule), strict=True):
                name = f"sft/seed={seed}/step={step:06d}"
                value = _wobble(accuracy, seed, step)
                scores.append(_score(name, "sft", seed, step, 0, rule, value))
                episodes += _episodes(name, rule, value)
            for step in STARTS:
                for budget in BUDGETS:
                    name = f"rl/seed={seed}/sft_step={step:06d}/rl_step={budget:06d}"
                    scores.append(
                        _score(name, "rl", seed, step, budget, rule, _after(world, rule, seed, step, budget))
                    )
    return {
        "sft": rows_of("sft", _sft_rows(world, seeds)),
        "rl": rows_of("rl", _rl_rows(seeds)),
        "episodes": rows_of("episodes", episodes),
        "scores": rows_of("scores", scores),
        "boundary": rows_of("boundary", _boundary_rows(world, seeds, verdict)),
        "spectra": rows_of("spectra", _spectra_rows(world, seeds)),
        "edits": rows_of("edits", _edit_rows(world, seeds)),
    }


def write_study(directory: Path, of: Mapping[str, pa.Table], **study: Any) -> Path:
    """A study directory with these tables and an invented study.yaml."""
    (directory / "tables").mkdir(parents=True)
    for name, content in of.items():
        pq.write_table(content, directory / "tables" / f"{name}.parquet")
    settings = {
        "name": "invented",
        "seeds": [0, 1, 2],
        "task": {"name": "general_points", "cards": 3, "targets": [18, 24]},
        "base": {"model": "nano", "seed": 0},
        "sft": {"recipe": "plain"},
        "rl": {"algorithm": "ppo"},
        "versions": {"ray": "2.60.0", "vllm": "0.32.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
    }
    (directory / "study.yaml").write_text(yaml.safe_dump({**settings, **study}, sort_keys=False))
    (directory / "timings.json").write_text(json.dumps({"base": 190.0, "sft": 28.5, "rl": 141.2}))
    return directory


def _wobble(accuracy: float, seed: int, step: int) -> float:
    """Seeds differ a little, and nothing leaves [0, 1]."""
    if accuracy in (0, 1):
        return float(accuracy)
    return min(1.0, max(0.0, accuracy + 0.06 * ((seed * 7 + step) % 3 - 1) * accuracy))


def _after(world: World, rule: str, seed: int, step: int, budget: int) -> float:
    before = dict(zip(SFT_STEPS, getattr(world, rule), strict=True))[step]
    end = world.ood_after[step] if rule == "ood" else world.id_after if step else 0.0
    part = 1.2 if step == 60 else 0.7 if budget == BUDGETS[0] else 1.0
    part = min(part, 1.0) if budget == BUDGETS[-1] else part
    return _wobble(before + part * (end - before), seed, step)


def _wilson(share: float, n: int) -> tuple[float, float]:
    z2 = 1.96**2
    centre, half = (share + z2 / (2 * n)), 1.96 * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


def _score(
    name: str, stage: str, seed: int, sft_step: int, rl_step: int, rule: str, value: float
) -> dict[str, Any]:
    n = PROBLEMS[rule]
    more = value + 0.3 * (1 - value) * (value > 0)
    low, high = _wilson(value, n)
    k_low, k_high = _wilson(more, n)
    return {
        "checkpoint": name, "stage": stage, "recipe": "plain", "seed": seed, "sft_step": sft_step,
        "rl_step": rl_step, "rule": rule, "n": n, "acc_1": value, "acc_1_low": low, "acc_1_high": high,
        "acc_k": more, "acc_k_low": k_low, "acc_k_high": k_high, "engine": "vllm",
        "malformed": 1.0 if sft_step < 4 and not rl_step else 0.04 + 0.12 * (rule == "ood" and sft_step > 30),
    }  # fmt: skip


def _episodes(name: str, rule: str, accuracy: float) -> list[dict[str, Any]]:
    """The first `accuracy` share of a fixed shuffle is solved; ids are deals, so permutations share words."""
    return [
        {
            "checkpoint": name,
            "rule": rule,
            "problem_id": f"T24:{i}-{i + 1}-{i + 2}",
            "solved_at": 1 if (i * 37) % TINY < round(accuracy * TINY) else None,
        }
        for i in range(TINY)
    ]


def _sft_rows(world: World, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    def loss(step: int, lowest: int) -> float:
        away = abs((step + 1) / (lowest + 1) - 1) if step > lowest else 1 - (step + 1) / (lowest + 1)
        return 0.05 + 0.4 * min(4.0, away)

    return [
        {
            "recipe": "plain", "seed": seed, "step": step,
            "train_loss": 0.04 + 2 / (1 + step) + 0.01 * (step % 3),
            "id_loss": loss(step, world.id_loss_lowest) if step in SFT_STEPS else None,
            "ood_loss": 0.3 + loss(step, world.ood_loss_lowest) if step in SFT_STEPS else None,
            "wrapped_model": "DistributedDataParallel", "engine": "torch", "train_run": f"sft-seed{seed}",
        }
        for seed in seeds
        for step in range(0, 401)
    ]  # fmt: skip


def _rl_rows(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {
            "recipe": "plain", "algorithm": "ppo", "seed": seed, "sft_step": start, "rl_step": update,
            "reward_mean": -3 + 7 * (start > 0) * update / 30 + 0.3 * ((update + seed) % 3) - start / 400,
            "solved_at_1": 0.9 * (start > 0) * update / 30, "entropy": 0.4 - 0.01 * update - start / 2000,
            "approx_kl": 0.004 + 0.001 * (update % 4), "explained_variance": update / 40,
            "logprob_mismatch_max": 3.1e-4, "logprob_mismatch_mean": 1e-6,
            "logprob_mismatch_kl": 2e-9 * (1 + update % 3), "tokens_per_second": 4000 + 20 * update - start,
            "seconds_generate": 2.0 + start / 400, "seconds_judge": 0.2, "seconds_learn": 1.1,
            "seconds_sync": 0.05, "idle_share": 0.4 - 0.002 * update, "engine": "vllm",
            "wrapped_model": "DistributedDataParallel", "train_run": f"rl-seed{seed}-{start}",
        }
        for seed in seeds
        for start in STARTS
        for update in range(1, 31)
    ]  # fmt: skip


def _boundary_rows(world: World, seeds: tuple[int, ...], verdict: Any) -> list[dict[str, Any]]:
    found = []
    trunk = dict(zip(SFT_STEPS, world.ood, strict=True))
    for seed in (None, *seeds):
        for start in STARTS:
            for budget in BUDGETS:
                mine = (seed,) if seed is not None else seeds
                before = sum(_wobble(trunk[start], s, start) for s in mine) / len(mine)
                after = sum(_after(world, "ood", s, start, budget) for s in mine) / len(mine)
                change, several = after - before, seed is None and len(seeds) > 1
                found.append(
                    {
                        "scope": "pooled" if seed is None else "seed", "recipe": "plain", "algorithm": "ppo",
                        "seed": seed, "seeds": len(mine), "sft_step": start, "rl_step": budget, "rule": "ood",
                        "ood_sft": before, "ood_rl": after, "healing": change, "healing_low": change - 0.05,
                        "healing_high": change + 0.05,
                        "healing_seed_low": change - 0.14 if several else None,
                        "healing_seed_high": change + 0.14 if several else None,
                        "p": 0.001, "q": 0.002, "verdict": verdict(change),
                        "forgetting": 0.8 - before if start > 6 else None,
                        "recovery": change / (0.8 - before) if start > 6 and change > 0.1 else None,
                    }
                )  # fmt: skip
    return found


def _spectra_rows(world: World, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Pairs (peak, SFT), (peak, RL from it) and (SFT, RL from it) for two starts."""
    peak = max(zip(world.ood, SFT_STEPS, strict=True))[1]
    found = []
    for seed in seeds:
        top = f"sft/seed={seed}/step={peak:06d}"
        for start in (60, 120):
            sft = f"sft/seed={seed}/step={start:06d}"
            rl = f"rl/seed={seed}/sft_step={start:06d}/rl_step={BUDGETS[-1]:06d}"
            for a, b, angle in ((top, sft, world.angle), (top, rl, world.angle_after), (sft, rl, 0.04)):
                for layer in (0, 1):
                    for role in ("q", "down"):
                        for k in (8, 16):
                            found.append(
                                {
                                    "seed": seed, "a": a, "b": b, "matrix": f"layers.{layer}.{role}",
                                    "layer": layer, "role": role, "k": k, "drift_mean": world.drift,
                                    "angle_u_mean": angle, "angle_v_mean": angle,
                                    "null_angle": 0.95 if k == 8 else 0.8, "stretch": 0.03, "turn": 0.97,
                                    "looks_random": False,
                                }
                            )  # fmt: skip
    return found


def _edit_rows(world: World, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    peak = max(zip(world.ood, SFT_STEPS, strict=True))[1]
    values = {
        "edit": (world.edit, 0.90), "weight_swap": (world.swap, 0.91), "interpolation": (0.30, 0.90),
        "random_angle": (0.02, 0.40), "random_norm": (0.01, 0.60),
    }  # fmt: skip
    found = []
    for seed in seeds:
        for kind, accuracies in values.items():
            for rule, value in zip(("ood", "id"), accuracies, strict=True):
                low, high = _wilson(value, PROBLEMS[rule])
                found.append(
                    {
                        "edit": f"{kind}-{seed}", "seed": seed, "kind": kind, "mode": "top",
                        "donor": f"sft/seed={seed}/step={peak:06d}",
                        "recipient": f"sft/seed={seed}/step={400 if peak != 400 else 200:06d}",
                        "factors": "UV" if kind == "edit" else None, "roles": ["q", "down"],
                        "layers": [0, 1], "projection": 0.98, "residual": 0.05, "rule": rule,
                        "n": PROBLEMS[rule], "acc_1": value, "acc_1_low": low, "acc_1_high": high,
                    }
                )  # fmt: skip
    return found
