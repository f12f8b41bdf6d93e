"""Invented tables of a study's outcome, for tests of the report: controls, edges, branches, recommendation, recipes.

They go with the studies of tests/report_tables.py. No number here was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tests.report_mechanism import whole
from tests.report_tables import BUDGETS, NANO, STARTS, World, nano_like, rows_of, tables

CONTROLS = {"continued_sft": -0.35, "rejection_sft": -0.08}
"""Control -> its OOD accuracy minus that of RL, where RL heals."""
FLOOR = 0.85


def with_outcome(
    of: Mapping[str, pa.Table], seeds: Iterable[int] = (0, 1, 2), controls: Mapping[str, float] = CONTROLS
) -> dict[str, pa.Table]:
    """`of` with controls, edges, branches (all done) and a recommendation that follow from its scores."""
    found = dict(of)
    recipe = found["boundary"]["recipe"][0].as_py()
    pairs, scored = control_rows(found, recipe, controls)
    found["controls"] = rows_of("controls", pairs)
    found["scores"] = pa.concat_tables([found["scores"], rows_of("scores", scored)])
    found["edges"] = rows_of("edges", edge_rows(found["boundary"], recipe))
    found["branches"] = rows_of("branches", branch_rows(tuple(seeds), recipe, ("ppo", *controls)))
    found["recommendation"] = rows_of("recommendation", recommendation_rows(found, recipe))
    return found


def complete(seeds: Iterable[int] = (0, 1, 2)) -> dict[str, pa.Table]:
    """Every table of a study, the mechanism's included."""
    seeds = tuple(seeds)
    return with_outcome(whole(seeds), seeds)


def unfinished(seeds: Iterable[int] = (0, 1, 2)) -> dict[str, pa.Table]:
    """A study whose branches failed, were stopped, or wait: RL from 30 and 120 of seed 1, all from 400."""
    seeds = tuple(seeds)
    found = with_outcome(nano_like(seeds), seeds)
    fates = {
        (30, 1): ("failed", 17, "FloatingPointError: the loss of update 18 is NaN <b>&</b>"),
        (120, 1): ("stopped", 15, "no training problem was solved in 10 updates in a row"),
        **{(400, seed): ("waiting", 0, None) for seed in seeds},
    }

    def fate(row: dict[str, Any]) -> dict[str, Any]:
        status, last, cause = fates.get((row["sft_step"], row["seed"]), ("done", row["rl_step"], None))
        known = row["algorithm"] == "ppo"
        return {**row, "status": status, "rl_step": last, "cause": cause} if known else row

    found["branches"] = rows_of("branches", [fate(row) for row in found["branches"].to_pylist()])
    lost = {(step, seed): last for (step, seed), (_, last, _) in fates.items()}

    def reached(row: dict[str, Any]) -> bool:
        seeds_here = [row["seed"]] if row["seed"] is not None else [0] if row["sft_step"] == 400 else []
        return all((row["rl_step"] or 0) <= lost.get((row["sft_step"], s), 10**6) for s in seeds_here)

    def counted(row: dict[str, Any]) -> dict[str, Any]:
        """A pooled row that some seeds never reached is over the others."""
        if row.get("scope") != "pooled":
            return row
        return {**row, "seeds": sum(row["rl_step"] <= lost.get((row["sft_step"], s), 10**6) for s in seeds)}

    for name in ("boundary", "scores"):
        rows = [counted(r) for r in found[name].to_pylist() if r.get("stage") == "control" or reached(r)]
        found[name] = rows_of(name, rows)
    return found


def two_recipes(seeds: Iterable[int] = (0, 1, 2)) -> dict[str, pa.Table]:
    """`plain` beside `lora`, which forgets later and heals from later steps; no tables of the mechanism."""
    seeds = tuple(seeds)
    plain = with_outcome(invented(NANO, seeds), seeds)
    later = replace(
        NANO,
        ood=(0, 0, 0, 0.62, 0.70, 0.75, 0.74, 0.60, 0.45, 0.30, 0.22, 0.10),
        ood_after={0: 0, 4: 0.50, 15: 0.92, 30: 0.85, 60: 0.80, 120: 0.70, 400: 0.12},
    )
    lora = with_outcome({name: renamed(name, t, "lora") for name, t in invented(later, seeds).items()}, seeds)
    lora["recommendation"] = rows_of(
        "recommendation",
        [{**row, "chosen": False, "p_best": 0.0} for row in lora["recommendation"].to_pylist()],
    )
    plain = {name: renamed(name, table, "plain") for name, table in plain.items()}
    lora = {name: renamed(name, table, "lora") for name, table in lora.items()}
    return {name: pa.concat_tables([plain[name], lora[name]]) for name in plain}


def invented(world: World, seeds: tuple[int, ...]) -> dict[str, pa.Table]:
    return tables(world, seeds, verdict=lambda change: "heals" if change > 0.15 else "unclear")


def renamed(name: str, table: pa.Table, recipe: str) -> pa.Table:
    """The table as of a study of several recipes: `recipe=` in names of checkpoints."""
    for column in ("checkpoint", "a", "b", "c", "donor", "recipient"):
        if column in table.column_names:
            index = table.schema.get_field_index(column)
            bare = pc.replace_substring_regex(table[column], r"recipe=[^/]+/", "")
            named = pc.replace_substring_regex(bare, r"^(sft|rl|control)/", rf"\1/recipe={recipe}/")
            table = table.set_column(index, column, named)
    if "recipe" in table.column_names:
        index = table.schema.get_field_index("recipe")
        table = table.set_column(index, "recipe", pa.array([recipe] * table.num_rows, pa.string()))
    return table


def control_rows(
    of: Mapping[str, pa.Table], recipe: str, controls: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `controls` and of `scores`: a control does less than RL by as much as is said, where RL heals."""
    pairs: list[dict[str, Any]] = []
    scored: list[dict[str, Any]] = []
    for row in of["boundary"].to_pylist():
        for control, less in controls.items():
            effect = less if row["verdict"] == "heals" else 0.0
            value = min(1.0, max(0.0, row["ood_rl"] + effect))
            change = row["ood_rl"] - value
            clear = abs(change) > 0.1
            for rule in ("ood", "id"):
                shown = change if rule == "ood" else 0.02
                pairs.append(
                    {
                        "scope": row["scope"], "recipe": recipe, "algorithm": "ppo", "control": control,
                        "seed": row["seed"], "seeds": row["seeds"], "sft_step": row["sft_step"],
                        "rl_step": row["rl_step"], "rule": rule, "acc_rl": row["ood_rl"] if rule == "ood" else 0.9,
                        "acc_control": value if rule == "ood" else 0.88, "difference": shown,
                        "difference_low": shown - 0.06, "difference_high": shown + 0.06,
                        "difference_seed_low": shown - 0.2 if row["seed"] is None else None,
                        "difference_seed_high": shown + 0.2 if row["seed"] is None else None,
                        "p": 0.001, "q": 0.002 if clear and rule == "ood" else 0.4,
                        "verdict": "better" if clear and rule == "ood" else "unclear",
                    }
                )  # fmt: skip
                if row["seed"] is not None:
                    score = value if rule == "ood" else 0.88
                    name = f"control/algorithm={control}/seed={row['seed']}/sft_step={row['sft_step']:06d}"
                    scored.append(
                        {
                            "checkpoint": f"{name}/rl_step={row['rl_step']:06d}", "stage": "control",
                            "recipe": recipe, "seed": row["seed"], "sft_step": row["sft_step"],
                            "rl_step": row["rl_step"], "rule": rule, "n": 450, "acc_1": score,
                            "acc_1_low": max(0.0, score - 0.04), "acc_1_high": min(1.0, score + 0.04),
                        }
                    )  # fmt: skip
    return pairs, scored


def edge_rows(boundary: pa.Table, recipe: str) -> list[dict[str, Any]]:
    """Both edges at both budgets; the intervals reach one tested step to either side."""
    found = []
    for budget in BUDGETS:
        rows = [r for r in boundary.to_pylist() if r["scope"] == "pooled" and r["rl_step"] == budget]
        heals = sorted(row["sft_step"] for row in rows if row["verdict"] == "heals")
        for edge, index, out in (("lower", 0, -1), ("upper", -1, 1)):
            row: dict[str, Any] = {
                "recipe": recipe,
                "algorithm": "ppo",
                "rl_step": budget,
                "edge": edge,
                "absent": 0.0,
            }
            if heals:
                step = heals[index]
                beyond = STARTS.index(step) + out
                inside = STARTS[min(max(STARTS.index(step) - out, 0), len(STARTS) - 1)]
                reach = STARTS[beyond] if 0 <= beyond < len(STARTS) else step
                row |= {"step": step, "next_step": reach if reach != step else None}
                spread = {step, inside} if edge == "upper" else {step}
                row |= {
                    "step_low": min(spread),
                    "step_high": max(spread),
                    "seeds_low": step,
                    "seeds_high": step,
                }
            else:
                row["absent"] = 1.0
            found.append(row)
    return found


def branch_rows(seeds: tuple[int, ...], recipe: str, algorithms: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {
            "recipe": recipe, "algorithm": algorithm, "seed": seed, "sft_step": start, "status": "done",
            "rl_step": BUDGETS[-1], "compute": 1e9,
            "sft_updates": None if algorithm == "ppo" else 140,
        }
        for algorithm in algorithms
        for seed in seeds
        for start in STARTS
    ]  # fmt: skip


def recommendation_rows(
    of: Mapping[str, pa.Table], recipe: str, p_best: float = 0.62, floor: float = FLOOR
) -> list[dict[str, Any]]:
    """Every cell, eligible where the invented ID accuracy reaches `floor`, the best OOD among these chosen."""
    means: dict[tuple[int, int], dict[str, list[float]]] = {}
    for row in of["scores"].to_pylist():
        if row["stage"] in ("sft", "rl"):
            cell = means.setdefault((row["sft_step"], row["rl_step"]), {"ood": [], "id": []})
            cell[row["rule"]].append(row["acc_1"])
    rows: list[dict[str, Any]] = []
    for (sft_step, rl_step), cell in means.items():
        ood, inside = (sum(cell[rule]) / len(cell[rule]) for rule in ("ood", "id"))
        rows.append(
            {
                "recipe": recipe, "algorithm": "ppo", "sft_step": sft_step, "rl_step": rl_step,
                "seeds": len(cell["ood"]), "chosen": False,
                "eligible": inside >= floor, "p_best": 0.0, "ood": ood, "ood_low": max(0.0, ood - 0.05),
                "ood_high": min(1.0, ood + 0.05), "ood_seed_low": ood - 0.12, "ood_seed_high": ood + 0.12,
                "id": inside, "id_low": max(0.0, inside - 0.03), "id_high": min(1.0, inside + 0.03),
                "id_floor": floor,
                "checkpoint": f"rl/seed=0/sft_step={sft_step:06d}/rl_step={rl_step:06d}",
            }
        )  # fmt: skip
    rows.sort(key=lambda row: (not row["eligible"], -row["ood"]))
    if rows[0]["eligible"]:
        rows[0] |= {"chosen": True, "p_best": p_best}
        for row, share in zip(rows[1:4], (0.5, 0.3, 0.2), strict=False):
            row["p_best"] = share * (1 - p_best) * row["eligible"]
    return rows
