"""Invented tables of the mechanism, for tests of the report: spectra, edits as grids, hidden states, outputs.

They go with the studies of tests/report_tables.py. No number here was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, sqrt
from typing import Any

import pyarrow as pa

from rlheals_ray.evaluation.predictors import predictor_rows
from rlheals_ray.spectra.overlay import kept_indices
from rlheals_ray.tables import table
from tests.report_tables import BUDGETS, NANO, SFT_STEPS, STARTS, nano_like, rows_of

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MODES = ("concatenate", "orthonormal", "rotate")
KINDS = ("edit", "weight_swap", "interpolation", "random_angle", "random_norm")


def whole(
    seeds: Iterable[int] = (0, 1, 2), layers: int = 4, ks: Sequence[int] = (8, 16, 32)
) -> dict[str, pa.Table]:
    """`nano_like` with every table of the mechanism."""
    seeds = tuple(seeds)
    peak, latest, budget = 6, SFT_STEPS[-1], BUDGETS[-1]
    found = nano_like(seeds)
    found["spectra"] = spectra(
        seeds, peak, STARTS, latest, budget, drift=NANO.drift, angle=NANO.angle, layers=layers, ks=ks
    )
    found["updates"] = updates(seeds, peak, STARTS, budget, cosine=-0.3)
    found["singular_values"] = singular_values(found["spectra"])
    found["edits"] = edit_grid(seeds, peak, latest, swap=NANO.swap, edit=NANO.edit)
    found |= hidden_states(seeds, SFT_STEPS, STARTS, budget, peak, layers)
    found["predictors"] = predictors(found)
    return found


def trunk(seed: int, step: int) -> str:
    return f"sft/seed={seed}/step={step:06d}"


def branch(seed: int, step: int, budget: int) -> str:
    return f"rl/seed={seed}/sft_step={step:06d}/rl_step={budget:06d}"


def compared(
    seed: int, peak: int, starts: Sequence[int], latest: int, budget: int
) -> list[tuple[str, str, float]]:
    """Pairs as the grid compares them, each with how much training lies between, in SFT steps."""
    top = trunk(seed, peak)
    found = {
        ("base", top): peak,
        ("base", trunk(seed, latest)): latest,
        (top, trunk(seed, latest)): latest - peak,
    }
    for step in starts:
        end, start = branch(seed, step, budget), trunk(seed, step)
        found |= {("base", start): step, (top, start): abs(step - peak)}
        found |= {(start, end): 12, ("base", end): step + 6, (top, end): abs(step - peak) + 9}
    return [(a, b, float(distance)) for (a, b), distance in found.items() if a != b]


def spectra(
    seeds: Sequence[int],
    peak: int,
    starts: Sequence[int],
    latest: int,
    budget: int,
    *,
    drift: float,
    angle: float,
    layers: int = 4,
    ks: Sequence[int] = (8, 16, 32),
) -> pa.Table:
    """Angles grow with the root of the steps between, shrink with k, and are larger in later layers."""
    found = []
    for seed in seeds:
        for a, b, distance in compared(seed, peak, starts, latest, budget):
            far = sqrt(distance / 400)
            for layer in range(layers):
                for number, role in enumerate(ROLES):
                    own = 1 + 0.1 * layer + 0.05 * number + 0.02 * seed
                    for k in ks:
                        turned = angle * far * own * (8 / k) ** 0.5
                        found.append(
                            {
                                "seed": seed, "a": a, "b": b, "layer": layer, "role": role, "k": k,
                                "matrix": f"model.layers.{layer}.{role}", "drift_mean": drift * far * own,
                                "drift_max": 3 * drift * far, "angle_u_mean": turned, "angle_v_mean": 0.9 * turned,
                                "angle_u_max": 2 * turned, "angle_v_max": 2 * turned,
                                "null_angle": 1.3 - k / 100, "null_angle_v": 1.25 - k / 110,
                                "noise_angle_u": turned / 2, "noise_angle_v": turned / 2.5, "stretch": 0.03,
                                "turn": 0.4, "delta_norm": 3 * far * own, "looks_random": False,
                                "random_power": 0.9, "chordal_u": turned * sqrt(k), "chordal_v": turned * sqrt(k),
                            }
                        )  # fmt: skip
    return rows_of("spectra", found)


def updates(seeds: Sequence[int], peak: int, starts: Sequence[int], budget: int, cosine: float) -> pa.Table:
    return rows_of(
        "updates",
        [
            {
                "seed": seed, "a": a, "b": trunk(seed, step), "c": branch(seed, step, budget), "layer": layer,
                "matrix": f"model.layers.{layer}.{role}", "role": role, "k": k,
                "cosine": (cosine if a != "base" else 0.05) + 0.02 * seed,
                "angle_u_mean": 1.1 - k / 80, "angle_v_mean": 1.0 - k / 80, "null_angle_u": 1.3 - k / 100,
                "null_angle_v": 1.2 - k / 100, "delta_norm_1": 3.0, "delta_norm_2": 1.0,
            }
            for seed in seeds
            for step in starts
            for a in dict.fromkeys(("base", trunk(seed, peak)))
            if a != trunk(seed, step)
            for layer in range(2)
            for role in ("q", "down")
            for k in (8, 16, 32)
        ],
    )  # fmt: skip


def singular_values(of: pa.Table, rank: int = 256) -> pa.Table:
    """Spectra of every checkpoint that `of` (a table spectra) compares, some thousandths apart."""
    named = sorted({(r["seed"], r[side]) for r in of.select(["seed", "a", "b"]).to_pylist() for side in "ab"})
    found = []
    for seed, checkpoint in named:
        for number, role in enumerate(ROLES):
            for index in kept_indices(rank):
                sigma = (4 - number / 3) * index**-0.4 * (1 + 1e-3 * (len(checkpoint) + seed) * index / rank)
                found.append(
                    {
                        "seed": seed, "checkpoint": checkpoint, "matrix": f"model.layers.0.{role}", "layer": 0,
                        "role": role, "index": int(index), "sigma": sigma,
                    }
                )  # fmt: skip
    return rows_of("singular_values", found)


def _bounds(value: float, n: int) -> dict[str, Any]:
    half = 1.96 * sqrt(value * (1 - value) / n + 1 / n**2)
    return {"n": n, "acc_1": value, "acc_1_low": max(0.0, value - half), "acc_1_high": min(1.0, value + half)}


def edit_grid(seeds: Sequence[int], peak: int, latest: int, *, swap: float, edit: float) -> pa.Table:
    """A dose-response in t, and k by mode and by blocks of layers, each point with its controls.

    One weight swap serves all edits of the same layers: it has a row in every group.
    """
    grid: list[dict[str, Any]] = [
        {"mode": "rotate", "k": 16, "t": t, "layers": None, "dose": t} for t in (0.25, 0.5, 0.75, 1.0)
    ]
    for mode in MODES:
        for k in (8, 16, 32, None):
            if (mode, k) not in (("rotate", 16), ("rotate", None)):
                dose = 1.0 if k is None else k / 40
                grid.append({"mode": mode, "k": k, "t": 1.0, "layers": None, "dose": dose})
    for block in range(2):
        layers = [2 * block, 2 * block + 1]
        grid.append({"mode": "concatenate", "k": None, "t": 1.0, "layers": layers, "dose": 0.3 + 0.3 * block})
    reach = {
        "edit": edit,
        "weight_swap": swap,
        "interpolation": 0.9 * edit,
        "random_angle": 0.03,
        "random_norm": 0.02,
    }
    found = []
    for seed in seeds:
        for point in grid:
            dose = point.pop("dose") if "dose" in point else 1.0
            layers = "" if point["layers"] is None else f"_layers={1 + point['layers'][0] // 2}of2"
            what = f"UV_{point['mode']}_k={point['k'] or 'all'}_t={point['t']}{layers}"
            group = f"seed={seed}_peak-into-latest_{what}"
            point["dose"] = dose
            for kind in KINDS:
                shared = f"seed={seed}_peak-into-latest{layers}_{kind}"
                for rule in ("ood", "id"):
                    far = reach[kind] * (1.0 if kind == "weight_swap" else dose)
                    value = max(0.0, min(1.0, far + 0.01 * seed)) if rule == "ood" else 0.93 - 0.2 * far
                    found.append(
                        {
                            "edit": shared if kind == "weight_swap" else f"{group}_{kind}", "group": group,
                            "seed": seed, "donor": trunk(seed, peak), "recipient": trunk(seed, latest), "kind": kind,
                            "mode": point["mode"], "factors": "UV", "part": "top", "k": point["k"], "t": point["t"],
                            "layers": point["layers"], "roles": list(ROLES),
                            "projection": dose if kind in ("edit", "interpolation") else 0.02,
                            "residual": 0.1 + 0.2 * (kind == "edit"), "smallest": 0.8, "delta_norm": 3 * dose,
                            "rule": rule, **_bounds(value, 450),
                        }
                    )  # fmt: skip
    return rows_of("edits", found)


def _hidden_spot(step: int, budget: int, seed: int) -> tuple[float, float]:
    far = sqrt(step / 400)
    return far * 4 + 0.3 * seed * far, far * (1 - far) * 5 + 0.06 * budget * (1 - far / 2)


def hidden_states(
    seeds: Sequence[int], steps: Sequence[int], starts: Sequence[int], budget: int, peak: int, layers: int = 4
) -> dict[str, pa.Table]:
    """Tables hidden, similarity and shift of base, trunks and branches."""
    hidden, similarity, shift = [], [], []
    places = [("base", "base", None, 0, 0)]
    for seed in seeds:
        places += [(trunk(seed, step), "sft", seed, step, 0) for step in steps if step]
        places += [(branch(seed, step, budget), "rl", seed, step, budget) for step in starts]
    for checkpoint, stage, seed, step, done in places:
        own = {"checkpoint": checkpoint, "stage": stage, "recipe": "plain", "seed": seed, "sft_step": step}
        own["rl_step"] = done
        far = sqrt(step / 400)
        for rule in ("id", "ood"):
            x, y = _hidden_spot(step, done, seed or 0)
            for layer in range(layers + 1):
                scale = layer / layers
                hidden.append(
                    {**own, "rule": rule, "layer": layer, "n": 64, "pca_1": x * scale, "pca_2": y * scale,
                     "pca_share_1": 0.7 - 0.01 * layer, "pca_share_2": 0.2, "tsne_1": 9 * y, "tsne_2": -5 * x}
                )  # fmt: skip
                for a, apart in (("base", far), (trunk(seed or 0, peak), abs(far - sqrt(peak / 400)))):
                    if stage != "base" and a != checkpoint:
                        alike = exp(-apart * scale)
                        similarity.append(
                            {"seed": seed, "a": a, "b": checkpoint, "rule": rule, "layer": layer, "n": 64,
                             "cka": alike, "mmd2": 0.4 * (1 - alike), "cosine": 0.5 + alike / 2}
                        )  # fmt: skip
            kl = 8 * far * (1.2 if rule == "ood" else 1.0) - 0.02 * done + 0.1 * (seed or 0) * far
            shift.append(
                {**own, "rule": rule, "n": 64, "entropy": 2 * exp(-far), "margin": 0.3 + 0.5 * far,
                 "forward_kl": max(0.0, kl), "forward_kl_low": max(0.0, kl - 0.4), "forward_kl_high": kl + 0.4,
                 "forward_kl_token": max(0.0, kl) / 20, "tokens": 1280}
            )  # fmt: skip
    return {
        "hidden": rows_of("hidden", hidden),
        "similarity": rows_of("similarity", similarity),
        "shift": rows_of("shift", shift),
    }


def predictors(of: Mapping[str, pa.Table]) -> pa.Table:
    return table("predictors", predictor_rows(of, draws=200))
