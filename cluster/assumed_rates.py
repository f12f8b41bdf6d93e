#!/usr/bin/env python3
"""Rates for `--plan` that nobody has measured: from a model's size and assumptions about a cluster, each a field below.

    python cluster/assumed_rates.py STUDY [field=value ...] --storage DIR [--set name=value ...]
    python jobs/grid.py STUDY [field=value ...] --storage DIR --plan

The first command writes `DIR/rates.json`, as `--calibrate` would, with "ASSUMED" as the source of every rate, and
prints them; the second is then a plan with times. With a cluster at hand, `--plan --calibrate` measures instead.
For a model of one's own on GPUs, whose tasks (held-out losses, spectra, edits) run on CPUs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.grid.model_size import ModelSize, model_size
from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.plan_time import sft_wall
from rlheals_ray.grid.rates import UNITS, store_rates
from rlheals_ray.grid.resources import resources_of
from rlheals_ray.rl.compute import TRAIN, flops_per_token

SOURCE = "ASSUMED, not measured (cluster/assumed_rates.py)"
TRAINED, RECOMPUTED, FORWARD = 6, 8, 2
"""FLOPs per parameter and token: a forward and a backward pass; the same with activations computed again; a forward."""


@dataclass(frozen=True)
class Assumed:
    """Of A100s of 80 GB, eight to a node of 96 CPUs (hyperthreads), and of answers in the study's form."""

    peak_flops: float = 312e12
    """Of a GPU, dense, in bfloat16: NVIDIA's data sheet."""
    mfu: float = 0.3
    """What training makes of it."""
    gpu_bytes_per_second: float = 1.2e12
    """A GPU reads weights and keys and values while it decodes: 60 % of the data sheet's 2.0e12."""
    core_flops: float = 60e9
    """Of a core (two of a node's CPUs), in float32; half of it in float64."""
    gpus_per_node: float = 8
    cpus_per_node: float = 96
    node_bytes: float = 1.1e12
    """Memory of a node."""
    node_disk: float = 2e9
    """Bytes a second between a node and the shared file system."""
    shared_disk: float = 10e9
    """Bytes a second of the shared file system, for all nodes together."""
    sync: float = 1.5e9
    """Bytes a second of weights from learners to engines through the object store, loading included."""
    prompt: float = 220
    """Tokens of a prompt with its template: 554 characters in the paper's wording."""
    demonstration: float = 45
    """Tokens: 91 characters."""
    answer: float = 100
    """Tokens of an answer of the policy."""
    feedback: float = 60
    """Tokens between two answers."""
    turns: float = 4
    """Of an episode, in the mean; its engine waits for one that takes all of them, with answers twice as long."""
    eigen: float = 25
    """FLOPs of an eigendecomposition of order n: so many n³; and everything beside the decompositions as much again."""
    start: float = 300
    """Seconds until engines and worker groups are up: each reads the model."""
    warm_up: float = 60
    """Seconds of the sweep's start."""
    close: float = 600
    """Seconds of tables, report and removing."""


def assumed_rates(study: Study, assumed: Assumed) -> dict[str, float]:
    """Seconds of every unit of work that the study has. Raises InputError where the model's size cannot be read."""
    a, size, each, needed = assumed, model_size(study), counts(study), resources_of(study)
    gpus = needed.generators + needed.groups * needed.workers
    nodes = max(1.0, gpus / a.gpus_per_node)
    lane_disk = min(a.node_disk, a.shared_disk / needed.groups)
    all_disk = min(nodes * a.node_disk, a.shared_disk)
    learning = needed.workers * a.peak_flops * a.mfu
    passes = RECOMPUTED if study.sft.gradient_checkpointing else TRAINED
    width = 2 if study.rollout.dtype == "bfloat16" else 4

    # SFT: a batch, and the checkpoints and states of a trunk, spread over its updates.
    batch = study.sft.batch_size * (a.prompt + a.demonstration)
    saved = len(study.sft.steps) * (size.checkpoint_bytes + size.state_bytes) / lane_disk
    sft = passes * size.parameters * batch / learning + saved / max(1, study.sft.steps[-1])

    # An update of RL: every engine decodes its share of the episodes side by side, as long as the longest.
    longest = study.rl.max_attempts * 2 * a.answer
    share = study.rl.episodes / study.rollout.generators_per_branch
    generate = longest * _decode_step(size, width, share, a.prompt + longest / 2, a)
    tokens = study.rl.episodes * (a.prompt + a.turns * (a.answer + a.feedback))
    again = RECOMPUTED if study.rl.gradient_checkpointing else TRAINED
    learn = (study.rl.epochs * again + 2 * FORWARD) * size.parameters * tokens / learning
    sync = width * size.parameters / a.sync
    branch_rest = len(study.rl.budgets) * size.checkpoint_bytes / lane_disk
    branch_rest += study.rl.budgets[-1] / study.rl.save_every * size.state_bytes / lane_disk
    spent = flops_per_token(study.rl, study.rl.budgets[-1]) * size.parameters * tokens
    control = spent * passes / TRAIN / learning

    # A probe: all problems of both rules at once, as many side by side as an engine takes.
    team = study.rollout.generators_per_branch
    beside = 2 * study.evaluation.problems / team
    rounds = max(1.0, beside / study.rollout.max_num_seqs)
    written = study.evaluation.max_attempts * a.answer
    step = _decode_step(size, width, min(beside, study.rollout.max_num_seqs), a.prompt + written, a)
    probe = rounds * written * step + size.checkpoint_bytes / a.node_disk

    # Tasks on CPUs: what learners and engines leave of the nodes, two CPUs to a core.
    cores = (nodes * a.cpus_per_node - gpus) / 2
    decomposed = sum(_decomposed(m, n, a.eigen) for m, n in size.matrices.values()) * size.layers
    factors = size.factor_bytes(study.spectra.roles) / all_disk
    spectra = 2 * decomposed / (cores * a.core_flops / 2) + factors
    recombined = 2 * sum(m * n * min(m, n) for m, n in size.matrices.values()) * size.layers
    edit = recombined / (cores * a.core_flops) + size.matrix_bytes(study.spectra.roles) / all_disk

    rates = {
        "sft": sft, "sft_rest": a.start, "rl": generate + learn + sync, "control": control,
        "branch_rest": branch_rest, "rl_rest": a.warm_up, "probe": probe, "spectra": spectra, "edit": edit,
        "close": a.close,
    }  # fmt: skip
    # Held-out losses: one task for each trunk and rule, beside the probes; what they take longer counts.
    scored = len(study.sft.steps) * study.evaluation.problems * (a.prompt + a.demonstration)
    rows = max(1.0, 2 * each.trunks * study.resources.tasks.cpus / (2 * cores))
    one = FORWARD * size.parameters * scored / (study.resources.tasks.cpus / 2 * a.core_flops)
    probed = sft_wall(study, {**rates, "sft": 0.0}, rest=0.0)
    rates["sft_rest"] += max(0.0, rows * one - probed)
    if study.hidden is not None:
        from rlheals_ray.grid.hidden import BYTES_PER_PARAMETER, FIXED_BYTES  # loads Ray

        # One thread a checkpoint, which reads the prompts, and each answer behind its prompt.
        asked = 2 * study.hidden.problems * (2 * a.prompt + a.answer)
        held = FIXED_BYTES + BYTES_PER_PARAMETER * size.parameters
        tasks = min(2 * cores / study.resources.tasks.cpus, nodes * a.node_bytes / held)
        rates["hidden"] = FORWARD * size.parameters * asked / a.core_flops / max(1.0, tasks)
    return rates


def _decode_step(size: ModelSize, width: int, sequences: float, length: float, a: Assumed) -> float:
    """Seconds for the next token of all sequences: the weights are read once, and everybody's keys and values."""
    return width * (size.parameters + sequences * length * size.kv_per_token) / a.gpu_bytes_per_second


def _decomposed(m: int, n: int, eigen: float) -> float:
    """FLOPs of the factors of an (m, n) matrix by its Gram matrix: that, its eigenvectors, the other side's."""
    small, large = sorted((m, n))
    return 4 * large * small**2 + eigen * small**3


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster/assumed_rates.py", description=__doc__.splitlines()[0])
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("overrides", nargs="*", metavar="field=value")
    parser.add_argument("--storage", metavar="DIR", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="name=value", help="another assumption")
    given = parser.parse_intermixed_args()
    try:
        assumed = _assumed(given.set)
        study = load_study(given.study, given.overrides)
        found = assumed_rates(study, assumed)
    except InputError as error:
        print(f"assumed_rates: {error}", file=sys.stderr)
        return 2
    storage = Path(given.storage)
    storage.mkdir(parents=True, exist_ok=True)
    store_rates(study, storage, found, SOURCE)
    for one in fields(assumed):
        print(f"assumed {one.name:<21}{getattr(assumed, one.name):,.6g}")
    for name, seconds in found.items():
        print(f"{seconds:>12,.2f} s {UNITS[name]}")
    return 0


def _assumed(changes: list[str]) -> Assumed:
    known, given = [one.name for one in fields(Assumed)], {}
    for change in changes:
        name, _, value = change.partition("=")
        try:
            if name not in known:
                raise ValueError
            given[name] = float(value)
        except ValueError:
            raise InputError(
                f"--set (got {change!r}): write name=number, with one of {', '.join(known)}."
            ) from None
    return replace(Assumed(), **given)


if __name__ == "__main__":
    sys.exit(main())
