"""One RL branch as every algorithm sees it: its problems, its episodes, its rows, its checkpoints.

An algorithm (ppo_learner.py, trl_learner.py) decides what is learnt from the episodes; everything
that must be the same whatever learns stands here. The object lives on every rank of a worker group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import ray

from rlheals_ray import tables
from rlheals_ray.config import RLSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.preemption import Notice
from rlheals_ray.received import record_received
from rlheals_ray.rl.spec import BranchSpec
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Rollout, Sampling, Weights
from rlheals_ray.rollout.load import Load
from rlheals_ray.storage import new_directory
from rlheals_ray.tasks import Problem, get_task
from rlheals_ray.training import Report


class Branch:
    """A branch under way on one rank."""

    notice: Notice | None = None
    """Where a node's notice of its end may come: in a Ray Train worker."""

    def __init__(self, spec: BranchSpec, report: Report) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.train_run = context.get_experiment_name()
        self.spec, self.study, self.settings = spec, spec.study, spec.study.rl
        self.start_directory = spec.files.checkpoint(spec.start)
        self.tokenizer = ChatFormat.of(self.start_directory).tokenizer
        self.task = get_task(self.study.task.name, **self.study.task.options)
        self._problems = self.task.problems("id", "train", self.task.available("id", "train"), seed=0)
        self._report = report
        self.rows: list[dict[str, Any]] = []
        """Rows of tables/rl so far, one per completed update."""
        self.received: dict[str, int] = {}
        """How often each problem, by its id, was learnt from."""
        self._resumed = False
        self._attempt = uuid4().hex
        self.notice = Notice()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def state_directory(self) -> Path:
        """Where the branch may keep what it needs to resume; removed at its end."""
        return self.spec.files.state(self.spec.unit)

    def resume(self, rows: list[dict[str, Any]], received: dict[str, int]) -> None:
        """Go on after the updates that a saved state has."""
        self.rows, self.received, self._resumed = rows, received, True
        if self.notice:
            self.notice = Notice(len(rows))

    def requests(self, update: int) -> list[EpisodeRequest]:
        """The update's episodes: seeded, no problem twice as far as there are enough.

        Algorithms that compare episodes of one problem get `group_size` of each, side by side.
        """
        branch = self.spec.branch
        return episode_requests(self.settings, self._problems, branch.seed, branch.sft_step, update)

    def generate(
        self, requests: Sequence[EpisodeRequest], update: int, publish: Callable[[], Load | None]
    ) -> Rollout:
        """Episodes by the learner's present weights, the same on every rank.

        Every rank calls `publish`, which may gather weights that are spread over the ranks and hands them
        over; rank 0 asks the pool with the load that it is given, the others' are not looked at.
        """
        from ray.train.collective import broadcast_from_rank_zero

        load = publish()
        rollout = self._ask_pool(requests, update, load) if self.is_main else None
        if rollout is not None and self.world_size == 1:
            return rollout
        reference = None if rollout is None else [ray.put(rollout)]
        result: Rollout = ray.get(broadcast_from_rank_zero(reference)[0])
        return result

    def _ask_pool(self, requests: Sequence[EpisodeRequest], update: int, load: Load | None) -> Rollout:
        if load is None:
            raise ValueError("rank 0 must publish its weights")
        settings = self.settings
        # The identity says which updates the weights have had: those before this one, as this attempt made them. A
        # generator may still hold what another one made and lost.
        weights = Weights(self.spec.unit.fingerprint, update - 1, self._attempt)
        sampling = Sampling(
            settings.temperature, settings.max_new_tokens, settings.max_attempts, logprobs=True
        )
        rollout = self.spec.pool.run(load, requests, sampling, weights)
        if any(episode.weights != weights for episode in rollout.episodes):
            raise RuntimeError(f"episodes were made with other weights than {weights}")
        return rollout

    def completed(
        self,
        update: int,
        rollout: Rollout,
        metrics: dict[str, Any],
        *,
        seconds_learn: float,
        seconds: float,
        wrapped_model: str,
    ) -> None:
        """Record an update; every rank calls it. `seconds` is the wall time of the whole update.

        metrics: the columns of tables/rl that the algorithm itself knows; what it leaves out is null.
        """
        row = {
            **dict.fromkeys(tables.RL.names),
            "recipe": self.spec.branch.trunk.recipe,
            "algorithm": self.settings.algorithm,
            "seed": self.spec.branch.seed,
            "sft_step": self.spec.branch.sft_step,
            "rl_step": update,
            **outcome(rollout.episodes),
            "weight_lag": update - 1 - rollout.episodes[0].weights.update,
            **speed(rollout, seconds_learn, seconds),
            "engine": rollout.engine,
            "wrapped_model": wrapped_model,
            "train_run": self.train_run,
            **metrics,
        }
        self.rows.append(row)
        for episode in rollout.episodes:
            self.received[episode.problem.id] = self.received.get(episode.problem.id, 0) + 1

    def report(self) -> None:
        """Tell the sweep about the last completed update."""
        self._report({"update": len(self.rows), "of": self.settings.budgets[-1], **self.rows[-1]})

    def is_saved_after(self, update: int) -> bool:
        """Whether the state is to be saved once `update` is completed; every rank asks, once."""
        settings = self.settings
        is_due = update % settings.save_every == 0 or update in settings.budgets or self.hopeless is not None
        return is_due or (self.notice is not None and self.notice.given(update))

    def saved(self, update: int) -> None:
        """The state of `update` is saved; every rank calls it."""
        if self.notice:
            self.notice.saved(update)

    @property
    def hopeless(self) -> str | None:
        """Why the branch stops now, by rl.early_stop; None while it goes on. The same on every rank and after a resume:
        only the rows decide."""
        wanted = self.settings.early_stop
        if wanted is None or not (wanted.updates <= len(self.rows) < self.settings.budgets[-1]):
            return None
        best = max(row["solved_at_k"] for row in self.rows[-wanted.updates :])
        if best > wanted.solved_at_k:
            return None
        return (
            f"stopped early after update {len(self.rows)}: in the last {wanted.updates} updates at most "
            f"{best:g} of the problems were solved (rl.early_stop)"
        )

    def publish(self, update: int, save: Callable[[Path], None]) -> None:
        """Publish the checkpoint of `update` as a whole: `save` writes the model's files; rank 0 only.

        Where saving is collective the other ranks save into no directory meanwhile.
        """
        name = self.spec.branch.checkpoint(update)
        with new_directory(self.spec.files.checkpoint(name)) as directory:
            save(directory)
            self.tokenizer.save_pretrained(directory)
            self.spec.files.stamp(directory, self.spec.unit)

    def finish(self, seconds: float) -> None:
        """Leave the branch's part of tables/rl, the problems it learnt from, and its marker; rank 0 only.

        seconds: since this process took the branch up; what --plan reckons with, where it did all of it.
        """
        by_id = {problem.id: problem for problem in self._problems}
        record_received(
            self.spec.files.received(self.spec.unit),
            self.task,
            (by_id[key] for key, count in self.received.items() for _ in range(count)),
        )
        self.spec.files.write_part("rl", self.spec.unit, tables.table("rl", self.rows))
        took = None if self._resumed else seconds
        self.spec.files.mark_done(self.spec.unit, updates=len(self.rows), cause=self.hopeless, seconds=took)


def episode_requests(
    settings: RLSettings, problems: Sequence[Problem], seed: int, sft_step: int, update: int
) -> list[EpisodeRequest]:
    """The episodes of an update of the branch at (seed, SFT step), of `problems`; see `Branch.requests`."""
    group = 1 if settings.algorithm == "ppo" else settings.group_size
    rng = np.random.default_rng((seed, sft_step, update))
    count = settings.episodes // group
    rounds = -(-count // len(problems))
    order = np.concatenate([rng.permutation(len(problems)) for _ in range(rounds)])[:count]
    return [
        EpisodeRequest(problems[problem], (seed, sft_step, update, place * group + i))
        for place, problem in enumerate(order)
        for i in range(group)
    ]


def outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """What the batch achieved, before the update it gives rise to."""
    verdicts = [turn.verdict for episode in episodes for turn in episode.turns]
    return {
        "reward_mean": float(np.mean([sum(t.verdict.reward for t in episode.turns) for episode in episodes])),
        "solved_at_1": float(np.mean([episode.solved_at == 1 for episode in episodes])),
        "solved_at_k": float(np.mean([episode.solved_at is not None for episode in episodes])),
        "malformed": float(np.mean([not verdict.well_formed for verdict in verdicts])),
    }


def speed(rollout: Rollout, seconds_learn: float, seconds: float) -> dict[str, float]:
    """Where the update's time went; `idle_share` is that of the engines over the whole update."""
    tokens = sum(episode.tokens for episode in rollout.episodes)
    return {
        "tokens": tokens,
        "episode_tokens": sum(episode.all_tokens for episode in rollout.episodes),
        "tokens_per_second": tokens / max(rollout.seconds, 1e-9),
        "seconds_generate": rollout.seconds,
        "seconds_judge": rollout.seconds_judge,
        "seconds_learn": seconds_learn,
        "seconds_sync": rollout.seconds_sync,
        "idle_share": max(0.0, 1 - rollout.seconds_engine / max(seconds, 1e-9)),
    }
