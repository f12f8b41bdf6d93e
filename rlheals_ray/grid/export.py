"""The recommended checkpoint as a directory of its own, `<study>/recommended/`, which `vllm serve` takes.

It holds the checkpoint's files as hard links and a model card that says what the study found of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlheals_ray.evaluation.recommendation import places_to_stop
from rlheals_ray.evaluation.rules import under
from rlheals_ray.grid.retention import NOTE, is_removed
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.study_tables import with_starts
from rlheals_ray.storage import new_directory
from rlheals_ray.tasks import ood_rules

RECOMMENDED = "recommended"


def export_stage(session: Session) -> None:
    """Write `recommended/` from tables/recommendation; remove an old one where nothing is recommended any more."""
    files = session.files
    rows = files.read_table("recommendation").to_pylist()
    first = ood_rules(session.task)[0]  # of several maps, that of the rule that peaks are of
    row = next((row for row in rows if row["chosen"] and row["checkpoint"] and row["rule"] == first), None)
    out = files.root / RECOMMENDED
    if row is None:
        shutil.rmtree(out, ignore_errors=True)
        return
    source = files.checkpoint(row["checkpoint"])
    if is_removed(files, row["checkpoint"]):
        if _exported(out) != row["checkpoint"]:
            raise RuntimeError(
                f"the recommended checkpoint {row['checkpoint']} cannot be exported: {(source / NOTE).read_text()}"
            )
        return
    with new_directory(out) as directory:
        for path in sorted(source.iterdir()):
            if path.is_file():
                _link(path, directory / path.name)
        (directory / "README.md").write_text(model_card(session, row), encoding="utf-8")


def _exported(out: Path) -> str | None:
    """The checkpoint that a card written here before names."""
    card = out / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.exists() else []
    return next(
        (
            line.removeprefix("Checkpoint: `").rstrip("`")
            for line in lines
            if line.startswith("Checkpoint: `")
        ),
        None,
    )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)


def model_card(session: Session, row: Mapping[str, Any]) -> str:
    """README.md of the exported directory, with the front matter that the Hugging Face Hub reads."""
    study = session.study
    sft = f"SFT of {row['sft_step']} updates (recipe {row['recipe']})" if row["sft_step"] else "no SFT"
    rl = f"{row['rl_step']} updates of {row['algorithm']}" if row["rl_step"] else "no RL"
    floor = "" if row["id_floor"] is None else f", at an ID floor of {row['id_floor']:.3f}"
    sure = (
        "How sure that is was not computed."
        if row["p_best"] is None
        else f"In {100 * row['p_best']:.0f} % of the bootstrap draws of the problems that had no say in it, the same "
        "rule, ID floor included, takes this cell."
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [rlheals_ray, sft, rl]
---

# {study.name}: the recommended checkpoint

Base model `{study.base.model}`, then {sft}, then {rl}, on task `{study.task.name}`.

Checkpoint: `{row["checkpoint"]}`

Study `{study.name}`, {_seeds(session, row)}, recommends this cell of its map for the best OOD accuracy{floor}. {sure}

| accuracy@1 of the cell | estimate | 95 % over problems | 95 % over seeds (t) |
|---|---|---|---|
| OOD rule | {_number(row["ood"])} | {_between(row, "ood")} | {_between(row, "ood_seed")} |
| ID rule | {_number(row["id"])} | {_between(row, "id")} | – |

The accuracies are means over these seeds, on held-out problems of which none chose the cell (it was chosen on another
half), at temperature {study.evaluation.temperature:g}. The checkpoint itself is of one seed.
`provenance.json` names the run that made it.

    vllm serve {(session.files.root / RECOMMENDED)} --dtype {study.rollout.dtype}
"""


def _seeds(session: Session, row: Mapping[str, Any]) -> str:
    """The seeds that the cell's accuracies are means over, and which of the study's are not among them."""
    study, scores = session.study, with_starts(session.files.read_table("scores"), session.study)
    place = (row["recipe"], row["sft_step"], row["rl_step"])
    used = next(
        (
            cell.seeds
            for cell in places_to_stop(under(scores, row["rule"]), [row["recipe"]], study.rl.algorithm)
            if (cell.recipe, cell.sft_step, cell.rl_step) == place
        ),
        None,
    )
    if used is None:
        return f"{row['seeds']} of its seeds"
    missing = [seed for seed in study.seeds if seed not in used]
    without = f" (without {_named(missing)}, which did not get there)" if missing else ""
    return f"{_named(used)}{without}"


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _between(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
