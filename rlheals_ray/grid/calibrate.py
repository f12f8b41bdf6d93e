"""`--plan --calibrate`: a miniature of the study, really run, whose rates the plan uses. The one plan that writes."""

from __future__ import annotations

import datetime
import math
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rlheals_ray.config import InputError, Study, dump_study
from rlheals_ray.grid.rates import FILE, measured, store_rates
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import BASE
from rlheals_ray.storage import StudyFiles

_BASE_UPDATES, _SFT_UPDATES, _RL_UPDATES = 150, 20, 3
"""Of the miniature, at most. A nano base of fewer updates would answer at length and never end a turn."""


def calibrate(study: Study, address: str | None = None) -> None:
    """Run the miniature in a temporary directory and keep its rates in <storage>/rates.json.

    Raises InputError where the miniature fails: the study would, too.
    """
    from rlheals_ray.grid.study_run import run_study

    files = StudyFiles.at(study.storage, study.name, study.work)
    # Beside the studies: on a cluster every node must see it.
    files.root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=files.root.parent) as directory:
        has_base = files.is_done(StudyUnits(study).base)
        small = miniature(study, Path(directory), own_base=has_base)
        root = StudyFiles.at(small.storage, small.name)
        if has_base and study.base.model == "nano":
            shutil.copytree(files.checkpoint(BASE), root.checkpoint(BASE))
            root.mark_done(StudyUnits(small).base)
        with redirect_stdout(sys.stderr):
            code = run_study(small, address=address)
        if code:
            causes = (root.root / "failures.json").read_text()
            raise InputError(
                f"--calibrate: a miniature of the study failed ({' '.join(causes.split())}); mend that first."
            )
        found = measured(small, root.root)
        day = datetime.datetime.now(datetime.UTC).date()
        briefly = study.base.model == "nano" and small.base.steps < study.base.steps
        of_base = f" from a base of {small.base.steps} updates" if briefly else ""
        store_rates(study, files.root.parent, found, f"calibrated on {day}{of_base}")
    print(f"calibrated: {files.root.parent / FILE}", file=sys.stderr)


def miniature(study: Study, storage: Path, *, own_base: bool = False) -> Study:
    """The study with its model, sizes and numbers side by side, and few of everything else.

    own_base: its base is made already and will be taken over, so that answers are as long as they will be.
    """
    needed, plain = resources_of(study), dump_study(study)
    last = min(study.sft.steps[-1], _SFT_UPDATES)
    updates = min(study.rl.budgets[-1], _RL_UPDATES)
    seeds = study.seeds[: needed.groups]
    # More branches than lanes: the first of each pays for imports, and another tells what a branch costs.
    each = math.ceil((needed.groups + 1) / len(seeds))
    starts = sorted({max(0, start) for start in range(last - each + 1, last + 1)})
    changes: dict[str, dict[str, Any]] = {
        "sft": {"steps": sorted({0, *starts, last}), "recipe": study.sft.recipes[0], "state_every": None,
                "checkpoints": None},
        "rl": {"from_steps": starts, "budgets": [0, updates] if updates else [0], "critic_warmup": 0,
               "early_stop": None},
        "controls": {"from_steps": None},
        "base": {"steps": study.base.steps if own_base else min(study.base.steps, _BASE_UPDATES)},
        "tracking": {"tensorboard": False, "wandb": None, "mlflow": None},
    }  # fmt: skip
    edits = [{"donor": "base", "recipient": "latest"}] if study.edits else []
    small = {
        **plain, **{part: {**plain[part], **values} for part, values in changes.items()},
        "name": "calibration", "seeds": list(seeds), "edits": edits, "keep": "all", "storage": str(storage),
    }  # fmt: skip
    return Study.model_validate(small)
