"""Everything that can be known to be wrong before anything starts is found here; nothing is written."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from rlheals_ray.config import InputError, Study, TrackingSettings
from rlheals_ray.grid.preflight_base import (
    check_base,
    check_cache,
    check_trunk,
    check_weights,
    positions,
    ranks,
    token_counter,
)
from rlheals_ray.grid.preflight_data import check_data
from rlheals_ray.grid.preflight_turns import SPARE, check_turns
from rlheals_ray.mirror_remote import remote_folder
from rlheals_ray.storage import StudyFiles, is_uri
from rlheals_ray.tasks import Task, get_task, rules_of
from rlheals_ray.tasks.conformance import Effort
from rlheals_ray.tasks.conformance.apart import check_apart
from rlheals_ray.tasks.reasoning_gym import ReasoningGym
from rlheals_ray.tasks.reasoning_gym_here import NAME as DRAWN_HERE
from rlheals_ray.tasks.turns import is_turnwise

_CHECKED: set[str] = set()
"""Tasks of one's own, and configurations of datasets, that this process has found right."""

_FEW = 4
"""Problems of each part that a dataset is checked by."""
OF_THE_JUDGE = ("texts", "demonstrations", "total", "bounded", "verdicts", "repeatable", "rewards")
"""Laws that a dataset may break; whether its problems can be drawn is found out where they are."""


def preflight(study: Study) -> StudyFiles:
    """Check task, base model, problems, context, tracking and storage; raises InputError, allocates nothing."""
    task = get_task(study.task.name, **study.task.options)
    _check_task(study)
    check_base(study)
    check_trunk(study)
    _check_problems(study, task)
    _check_directions(study)
    _check_context(study, task)
    check_cache(study)
    check_data(study, task)
    check_weights(study)
    check_tracking(study.tracking)
    files = StudyFiles.at(study.storage, study.name, study.work)
    if is_uri(study.storage):
        remote_folder(study.storage, study.name)
    files.check_writable(field="work" if is_uri(study.storage) else "storage")
    return files


def _check_task(study: Study) -> None:
    """Hold what comes from elsewhere, a task of one's own or a dataset with its configurations, against the laws of
    tasks, for about a second, where it cannot hang this process."""
    name, checked = study.task.name, study.task.model_dump_json()
    if checked in _CHECKED:
        return
    if ":" in name:
        _check_own_task(study)
    elif name == ReasoningGym.name:
        _check_configurations(study)
    _CHECKED.add(checked)


def _check_own_task(study: Study) -> None:
    name = study.task.name
    found = check_apart(name, study.task.options, Effort.quick(), processes=False)
    # That a text gives an answer away is a guess, which must not be in the way of a study.
    breaches = [breach for breach in found.breaches if breach.law not in ("hidden", "leaks")]
    if breaches:
        raise InputError(
            f"task.name (got {name!r}): it breaks what every task promises. {breaches[0]} All of it: python "
            f"jobs/evaluate.py --check-task {name}."
        )


def _check_configurations(study: Study) -> None:
    """How long a verifier of the package takes may depend on the configuration; the default ones alone are tested."""
    options = {**study.task.options, "train_problems": _FEW, "eval_problems": _FEW}
    found = check_apart(DRAWN_HERE, options, Effort.of_configurations(), processes=False)
    for breach in found.breaches:
        if breach.law in OF_THE_JUDGE:
            rule = "ood" if ":ood:" in (breach.problem or "") else "id"
            raise InputError(
                f"task.{rule} (got {study.task.options.get(rule, {})}): in this configuration answers to "
                f"{study.task.options['dataset']} are not judged as every task promises: {breach.what} "
                f"({breach.law}). Make its problems smaller or take another dataset."
            )


def _check_problems(study: Study, task: Task) -> None:
    for rule in rules_of(task):
        available = task.available(rule, "eval")
        if study.evaluation.problems > available:
            raise InputError(
                f"evaluation.problems (got {study.evaluation.problems}): the task has {available} held-out problems "
                f"of rule {rule!r}; use at most {available}."
            )
    available = task.available("id", "train")
    if study.sft.examples is not None and study.sft.examples > available:
        raise InputError(
            f"sft.examples (got {study.sft.examples}): the task has {available} training problems; use at most that."
        )


def _check_context(study: Study, task: Task) -> None:
    longest = positions(study.base.model)
    if longest is not None and study.rollout.max_model_len > longest:
        raise InputError(
            f"rollout.max_model_len (got {study.rollout.max_model_len}): base.model {study.base.model!r} has "
            f"{longest} positions; use at most {longest}."
        )
    if is_turnwise(task):
        check_turns(study, task)
        return
    length = token_counter(study)
    problem = task.problems("id", "train", 1, seed=0)[0]
    prompt = length(task.prompt(problem))
    feedback = length(task.reply(task.judge(problem, "")))
    for stage, settings in (("rl", study.rl), ("evaluation", study.evaluation)):
        attempts, new = settings.max_attempts, settings.max_new_tokens
        needed = prompt + attempts * new + (attempts - 1) * (feedback + SPARE)
        if needed > study.rollout.max_model_len:
            fitting = (study.rollout.max_model_len - prompt + feedback + SPARE) // (new + feedback + SPARE)
            remedy = f"use {stage}.max_attempts={fitting} or a" if fitting >= 1 else "use a"
            raise InputError(
                f"{stage}.max_attempts (got {attempts}): episodes of {attempts} turns of {stage}.max_new_tokens={new} "
                f"need about {needed} tokens, but rollout.max_model_len is {study.rollout.max_model_len}; {remedy} "
                "longer context."
            )


def _check_directions(study: Study) -> None:
    """Every k of an edit must exist in every matrix that it edits: not to be found out after hours of training."""
    offered = ranks(study.base.model)
    for index, edit in enumerate(study.edits):
        for variant in edit.variants(study.spectra.roles):
            limits = {
                role: offered[role] - (variant.mode == "rotate") for role in variant.roles if role in offered
            }
            for role, limit in limits.items():
                if isinstance(variant.k, int) and variant.k > limit:
                    raise InputError(
                        f"edits.{index}.k (got {variant.k}): the {role} matrices of base.model {study.base.model!r} "
                        f"offer mode {variant.mode} {limit} singular directions; use at most {limit}, a fraction such "
                        f"as 0.5, or leave {role} out of edits.{index}.roles."
                    )


def check_tracking(tracking: TrackingSettings) -> None:
    """Raises InputError for a tracker that is asked for and not installed, or that could not log in."""
    if tracking.wandb is not None and not _is_installed("wandb"):
        raise _not_installed("wandb", tracking.wandb.model_dump())
    if tracking.mlflow is not None:
        wanted = tracking.mlflow.model_dump()
        if not _is_installed("mlflow"):
            raise _not_installed("mlflow", wanted)
        scheme = tracking.mlflow.tracking_uri.partition(":")[0].partition("+")[0]
        if scheme in ("sqlite", "postgresql", "mysql", "mssql") and not _is_installed("sqlalchemy"):
            raise _not_installed("mlflow", wanted, "is there without its databases")
    if tracking.wandb is not None and tracking.wandb.mode == "online" and not _knows_wandb():
        raise InputError(
            "tracking.wandb.mode (got 'online'): Weights & Biases is not logged in on this machine; set WANDB_API_KEY, "
            "run `wandb login`, or set tracking.wandb.mode=offline."
        )


def _not_installed(name: str, wanted: object, how: str = "is not installed") -> InputError:
    return InputError(
        f"tracking.{name} (got {wanted}): the package {name!r} {how} in this environment; run `pip install "
        f"{name}`, or set tracking.{name}=null."
    )


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # A mere directory of that name, such as W&B's own ./wandb, has no file that could be imported.
    return spec is not None and spec.origin is not None


def _knows_wandb() -> bool:
    """Whether a key is there at all; it is not read."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return "WANDB_API_KEY" in os.environ or netrc.exists()
