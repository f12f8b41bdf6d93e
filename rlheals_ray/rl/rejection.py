"""The control `rejection_sft`: the start's own samples, of which the solved ones are what it is then trained on.

The samples are drawn as RL draws its own: the same training problems in the same order, the same number of episodes,
rl.temperature, rl.max_attempts, but all by the start's weights (one round of rejection sampling, as RFT: Yuan et al.
2023, arXiv:2308.01825). An episode that was solved is an example: its conversation as it stands, the loss on the answer
that solved it alone, and on the accepted ones before it where a problem takes several. Up to an RL budget only samples
of that budget's episodes are trained on.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from rlheals_ray.received import record_received
from rlheals_ray.rl.branch import episode_requests
from rlheals_ray.rl.compute import GENERATE
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.episode import Episode, Sampling, Weights
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.sft.controls import finish_control, nearest_updates, tokens_of, train_control
from rlheals_ray.sft.data import IGNORE, Example
from rlheals_ray.storage import Unit, write_parquet
from rlheals_ray.tasks import Problem, Task, get_task
from rlheals_ray.training import Report

UPDATES_AT_ONCE = 8
"""RL updates whose episodes are asked for together: an engine is lent for that long, and a killed control repeats at
most that many."""

_SAMPLES = pa.schema(
    {"update": pa.int64(), "problem_id": pa.string(), "tokens": pa.int64(), "ids": pa.list_(pa.int64()),
     "answer": pa.int64(), "accepted": pa.list_(pa.list_(pa.int64()))}
)  # fmt: skip
"""One row per episode. ids: the conversation up to the answer that solved it, null when none did; answer: how many of
its last ids are that answer; accepted: where in ids the right answers before it begin and end."""


@dataclass(frozen=True)
class SolvedSamples:
    """Solved samples in an endless order, epoch after epoch, each a seeded permutation.

    From position starts[i] on, pools[i] is what there is: the samples of more and more episodes.
    """

    pools: Sequence[Sequence[Example]]
    starts: Sequence[int]
    seed: tuple[int, ...]
    task: Task

    @property
    def count(self) -> int:
        return len(self.pools[-1])

    def stream(self, positions: Iterable[int]) -> Iterator[Example]:
        orders: dict[tuple[int, int], np.ndarray] = {}
        for position in positions:
            stretch = bisect_right(self.starts, position) - 1
            pool = self.pools[stretch]
            epoch, place = divmod(position - self.starts[stretch], len(pool))
            if (stretch, epoch) not in orders:
                rng = np.random.default_rng((*self.seed, stretch, epoch))
                orders = {(stretch, epoch): rng.permutation(len(pool))}
            yield pool[orders[stretch, epoch][place]]

    def record(self, path: Path, positions: Iterable[int]) -> None:
        """Leave the record of what a worker was given at `positions`."""
        record_received(path, self.task, (e.problem for e in self.stream(positions) if e.problem))


def train_rejection(spec: BranchSpec, targets: Mapping[int, int], report: Report) -> None:
    """SFT on the start's own solved samples instead of RL; called on every rank of a worker group.

    targets: RL budget to the FLOPs per parameter that RL had spent by then; the samples' own generation counts against
    them. Leaves what `train_continued` leaves; where no sample is solved, the marker alone, with that cause.
    """
    if spec.files.is_done(spec.unit):
        return  # the worker that did it died before it could say so
    control, files, study = spec.branch, spec.files, spec.study
    is_main = ray.train.get_context().get_world_rank() == 0
    task = get_task(study.task.name, **study.task.options)
    problems = task.problems("id", "train", task.available("id", "train"), seed=0)
    kept = files.state(Unit(f"{spec.unit.name}/samples", spec.unit.fingerprint))
    if is_main:
        _sample(spec, problems, kept, max(targets), report)
    if ray.train.get_context().get_world_size() > 1:
        broadcast_from_rank_zero(None)  # the files are there
    samples = _read(kept)
    generated = {
        budget: GENERATE * sum(row["tokens"] for row in samples if row["update"] <= budget)
        for budget in targets
    }
    by_id = {problem.id: problem for problem in problems}
    solved = [(row["update"], _example(row, by_id)) for row in samples if row["ids"] is not None]
    usable = [budget for budget in sorted(targets) if any(update <= budget for update, _ in solved)]
    cause = _cause(sorted(targets), usable, len(samples))
    if not usable:
        if is_main:
            finish_control(files, spec.unit, {0: generated[max(targets)]}, {}, cause)
            shutil.rmtree(kept, ignore_errors=True)
        return
    batch, publish, updates, trained = study.sft.batch_size, {}, 0, 0.0
    examples = SolvedSamples([], [], (control.seed, control.sft_step), task)
    for budget in usable:
        pool = [example for update, example in solved if update <= budget]
        examples = SolvedSamples(
            [*examples.pools, pool], [*examples.starts, updates * batch], examples.seed, task
        )
        updates, cost = nearest_updates(
            tokens_of(examples, batch), targets[budget], updates=updates, cost=generated[budget] + trained
        )
        publish[budget], trained = updates, cost - generated[budget]
    train_control(
        study, files, control, spec.unit, examples, publish, report, generated=generated, cause=cause
    )
    if is_main:
        shutil.rmtree(kept, ignore_errors=True)


def _cause(budgets: Sequence[int], usable: Sequence[int], episodes: int) -> str | None:
    """Why some of the budgets have no checkpoint; None where all have one."""
    if not usable:
        return f"none of its {episodes} samples was solved: there is nothing to train on"
    empty = [budget for budget in budgets if budget < usable[0]]
    return f"no sample was solved among those of budget {empty[-1]}: it has no checkpoint" if empty else None


def _sample(spec: BranchSpec, problems: Sequence[Problem], kept: Path, updates: int, report: Report) -> None:
    """The episodes of `updates` updates, by the start's weights; what is in `kept` already is not drawn again."""
    settings = spec.study.rl
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.max_attempts)
    load = CheckpointLoad(str(spec.files.checkpoint(spec.start)))
    seed, sft_step = spec.branch.seed, spec.branch.sft_step
    for first in range(1, updates + 1, UPDATES_AT_ONCE):
        part = kept / f"{first:06d}.parquet"
        if part.exists():
            continue
        some = range(first, min(first + UPDATES_AT_ONCE, updates + 1))
        asked = [(n, one) for n in some for one in episode_requests(settings, problems, seed, sft_step, n)]
        rollout = spec.pool.run(load, [one for _, one in asked], sampling, Weights(spec.unit.fingerprint))
        rows = [_row(n, episode) for (n, _), episode in zip(asked, rollout.episodes, strict=True)]
        write_parquet(part, pa.Table.from_pylist(rows, schema=_SAMPLES))
        report({"sampled": some[-1], "of": updates})


def _row(update: int, episode: Episode) -> dict[str, Any]:
    row = {"update": update, "problem_id": episode.problem.id, "tokens": episode.all_tokens}
    if episode.solved_at is None:
        return {**row, "ids": None, "answer": None, "accepted": None}
    ids: list[int] = []
    accepted = []
    for turn in episode.turns:  # the last one solved it
        ids += turn.prompt_ids
        start = len(ids)
        ids += turn.completion_ids
        if turn.verdict.accepted:
            accepted.append([start, len(ids)])
    return {**row, "ids": ids, "answer": len(episode.turns[-1].completion_ids), "accepted": accepted}


def _read(kept: Path) -> list[dict[str, Any]]:
    parts = [pq.read_table(part, schema=_SAMPLES) for part in sorted(kept.glob("*.parquet"))]
    return list(pa.concat_tables(parts).to_pylist())


def _example(row: Mapping[str, Any], problems: Mapping[str, Problem]) -> Example:
    ids, answer = row["ids"], row["answer"]
    labels = [IGNORE] * (len(ids) - answer) + ids[-answer:]
    for start, end in row.get("accepted") or ():
        labels[start:end] = ids[start:end]
    return Example(problems[row["problem_id"]], ids, labels)
