"""Trains one branch inside a Ray Train worker group: generate, judge, learn, sync, until its last budget.

Rank 0 talks to the generator pool; every rank learns from its slice of the episodes. After every
update the branch's state is saved, so that a branch killed at any moment resumes from its last
completed update.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoModelForCausalLM

from rlheals_ray import tables
from rlheals_ray.config import Study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.received import record_received
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.branch_state import load_state, save_state
from rlheals_ray.rl.critic import Critic
from rlheals_ray.rl.names import branch_checkpoint
from rlheals_ray.rl.ppo import PPO
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.generator import Rollout
from rlheals_ray.rollout.pool import Load, Pool
from rlheals_ray.rollout.weight_sync import flatten
from rlheals_ray.storage import StudyFiles, Unit, new_directory
from rlheals_ray.tasks import Problem, get_task
from rlheals_ray.training import Report


def train_branch(
    study: Study,
    files: StudyFiles,
    pool: Pool,
    seed: int,
    sft_step: int,
    unit: Unit,
    start: str,
    report: Report,
) -> None:
    """Train the branch that leaves checkpoint `start`; called on every rank of a worker group.

    Leaves checkpoints/rl/… at every budget above 0, the branch's part of tables/rl, and its marker.
    Raises Diverged when the policy's gradient is no longer finite.
    """
    import ray.train

    if files.is_done(unit):
        return  # the worker that did it died before it could say so
    context = ray.train.get_context()
    branch = _Branch(
        study, files, pool, seed, sft_step, unit, start, context.get_world_rank(), context.get_world_size()
    )
    branch.run(report, train_run=context.get_experiment_name())


class _Branch:
    def __init__(
        self,
        study: Study,
        files: StudyFiles,
        pool: Pool,
        seed: int,
        sft_step: int,
        unit: Unit,
        start: str,
        rank: int,
        world_size: int,
    ) -> None:
        self._study, self._files, self._pool, self._unit = study, files, pool, unit
        self._seed, self._sft_step, self._rank, self._world_size = seed, sft_step, rank, world_size
        settings = study.rl
        self._task = get_task(study.task.name, **study.task.options)
        self._problems = self._task.problems("id", "train", self._task.available("id", "train"), seed=0)
        start_directory = files.checkpoint(start)
        self._tokenizer = ChatFormat.of(start_directory).tokenizer
        torch.manual_seed(seed)
        self._model = AutoModelForCausalLM.from_pretrained(start_directory, dtype=torch.float32)
        self._model.eval()  # no dropout: the ratio compares distributions, not noise
        critic = Critic(self._model.config.hidden_size)
        self._ppo = PPO(
            self._model,
            critic,
            torch.optim.AdamW(self._model.parameters(), lr=settings.learning_rate, weight_decay=0.0),
            torch.optim.Adam(critic.parameters(), lr=settings.value_learning_rate),
            settings,
        )
        self._modules = {"policy": self._model, "critic": critic}
        self._optimizers = {
            "policy_optimizer": self._ppo.policy_optimizer,
            "value_optimizer": self._ppo.value_optimizer,
        }

    def run(self, report: Report, train_run: str) -> None:
        budgets = self._study.rl.budgets
        state_file = self._files.state(self._unit) / "branch.safetensors"
        progress = load_state(state_file, self._modules, self._optimizers) or {"rows": [], "received": {}}
        rows: list[dict[str, Any]] = progress["rows"]
        received: dict[str, int] = progress["received"]
        for update in range(len(rows) + 1, budgets[-1] + 1):
            row, problems = self._update(update)
            rows.append(row | {"train_run": train_run})
            for problem in problems:
                received[problem.id] = received.get(problem.id, 0) + 1
            if self._rank == 0:
                # Published first: an update that counts as completed has its checkpoint.
                if update in budgets:
                    self._publish(update)
                save_state(state_file, self._modules, self._optimizers, rows=rows, received=received)
            report(
                {
                    "update": update,
                    "of": budgets[-1],
                    "reward_mean": row["reward_mean"],
                    "solved_at_1": row["solved_at_1"],
                }
            )
        if self._rank == 0:
            by_id = {problem.id: problem for problem in self._problems}
            record_received(
                self._files.received(self._unit),
                self._task,
                (by_id[key] for key, count in received.items() for _ in range(count)),
            )
            self._files.write_part("rl", self._unit, tables.table("rl", rows))
            self._files.mark_done(self._unit)
            state_file.unlink(missing_ok=True)

    def _update(self, update: int) -> tuple[dict[str, Any], list[Problem]]:
        problems = self._draw(update)
        rollout, seconds_sync = self._generate(problems, update)
        episodes = rollout.episodes
        clock = time.perf_counter()
        mine = list(range(self._rank, len(episodes), self._world_size))
        batch = batch_of([episodes[i] for i in mine], self._study.rl.max_attempts)
        metrics = self._ppo.update(batch, first=update == 1)
        seconds_learn = time.perf_counter() - clock
        row = {
            "recipe": self._study.sft.recipe,
            "algorithm": self._study.rl.algorithm,
            "seed": self._seed,
            "sft_step": self._sft_step,
            "rl_step": update,
            **_outcome(episodes),
            **metrics,
            "weight_lag": update - 1 - episodes[0].weights.update,
            "tokens": sum(episode.tokens for episode in episodes),
            "seconds_generate": rollout.seconds,
            "seconds_learn": seconds_learn,
            "seconds_sync": seconds_sync,
            "engine": rollout.engine,
            "wrapped_model": type(self._model).__name__,
        }
        return row, problems

    def _draw(self, update: int) -> list[Problem]:
        """The update's problems: seeded, without repeats as far as there are enough."""
        rng = np.random.default_rng((self._seed, self._sft_step, update))
        count = self._study.rl.episodes
        rounds = -(-count // len(self._problems))
        order = np.concatenate([rng.permutation(len(self._problems)) for _ in range(rounds)])[:count]
        return [self._problems[i] for i in order]

    def _generate(self, problems: Sequence[Problem], update: int) -> tuple[Rollout, float]:
        """Episodes from the pool with the learner's present weights, the same on every rank; seconds of sync."""
        from ray.train.collective import broadcast_from_rank_zero

        if self._world_size == 1:
            return self._ask_pool(problems, update)
        reference = [ray.put(self._ask_pool(problems, update))] if self._rank == 0 else None
        result: tuple[Rollout, float] = ray.get(broadcast_from_rank_zero(reference)[0])
        return result

    def _ask_pool(self, problems: Sequence[Problem], update: int) -> tuple[Rollout, float]:
        settings = self._study.rl
        weights = Weights(self._unit.fingerprint, update - 1)
        requests = [
            EpisodeRequest(problem, (self._seed, self._sft_step, update, index))
            for index, problem in enumerate(problems)
        ]
        sampling = Sampling(
            settings.temperature, settings.max_new_tokens, settings.max_attempts, logprobs=True
        )
        flat, layout = flatten(self._model.state_dict().items())
        rollout, seconds_sync = self._pool.run(Load.flat(ray.put(flat), layout), requests, sampling, weights)
        if any(episode.weights != weights for episode in rollout.episodes):
            raise RuntimeError(f"episodes were made with other weights than {weights}")
        return rollout, seconds_sync

    def _publish(self, update: int) -> None:
        name = branch_checkpoint(self._seed, self._sft_step, update)
        with new_directory(self._files.checkpoint(name)) as directory:
            self._model.save_pretrained(directory)
            self._tokenizer.save_pretrained(directory)
            self._files.stamp(directory, self._unit)


def _outcome(episodes: Sequence[Episode]) -> dict[str, float]:
    """What the batch achieved, before the update it gives rise to."""
    verdicts = [turn.verdict for episode in episodes for turn in episode.turns]
    return {
        "reward_mean": float(np.mean([sum(t.verdict.reward for t in episode.turns) for episode in episodes])),
        "solved_at_1": float(np.mean([episode.solved_at == 1 for episode in episodes])),
        "solved_at_k": float(np.mean([episode.solved_at is not None for episode in episodes])),
        "malformed": float(np.mean([not verdict.well_formed for verdict in verdicts])),
    }
