"""The pool: warm generators, lent in teams, that heal themselves.

A consumer (a branch's update, a probe) has exclusive use of a team of `rollout.generators_per_branch`
generators for one load-and-run. With one team consumers queue, with several they run side by side.
Generators may die or hang at any moment: each episode still comes back exactly once (see leases.py,
watched.py and shares.py), and only more than `rollout.max_failures` losses of a team in a row end the study.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from rlheals_ray import placement
from rlheals_ray.need import Need
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Rollout, Sampling, Weights
from rlheals_ray.rollout.failures import Failure, PoolFailed
from rlheals_ray.rollout.generator import GeneratorSettings
from rlheals_ray.rollout.leases import Leases, Run
from rlheals_ray.rollout.load import Load
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.rollout.shares import merge
from rlheals_ray.training import Training


@dataclass(frozen=True)
class Pool:
    """A handle on the pool that can be sent to any process of the study."""

    leases: ray.actor.ActorHandle

    @classmethod
    def start(
        cls,
        settings: GeneratorSettings,
        *,
        threads: int,
        need: Need,
        near: Training | None = None,
    ) -> Pool:
        """Start every engine of the study; returns at once, `wait_ready` waits for them.

        `threads` and `need` are those of one generator. With `near`, each team of generators waits until it
        is known where its worker group is, and starts on that node if there is room.
        """
        options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": placement.here()}
        pool = cls(ray.remote(Leases).options(**options).remote(settings, threads, need, near))
        pool.leases.start.remote()
        return pool

    def wait_ready(self) -> None:
        """Wait until every engine is up; raises PoolFailed with what kept one from starting."""
        try:
            ray.get(self.leases.ready.remote())
        except PoolFailed as error:
            raise _plain(error) from None

    def run(
        self, load: Load, requests: Sequence[EpisodeRequest], sampling: Sampling, weights: Weights
    ) -> Rollout:
        """One episode for each request, in their order, by exactly `weights`, from the next free team.

        Of several free teams, one on the caller's own node.

        Raises ValueError when two requests have one id, PoolFailed when a team lost more generators in a row than
        `rollout.max_failures` allows, NotExactlyOnce should an episode be missing or double, and at once
        whatever loading, the task's judge or the engine raised: doing that again would not help.
        """
        if len({request.id for request in requests}) != len(requests):
            raise ValueError("two requests have the same id: equal problem and seed make equal episodes")
        held, here = ray.put(list(requests)), ray.get_runtime_context().get_node_id()
        for time in itertools.count(1):
            try:
                asked = (load, [held], len(requests), sampling, weights, here)
                run: Run = ray.get(self.leases.run.remote(*asked))
                blocks: list[list[Episode]] = ray.get(run.blocks)
            except PoolFailed as error:
                raise _plain(error) from None
            except RayTaskError:
                raise
            except ObjectLostError as error:
                # The node that held finished episodes is gone; the whole lease is done again.
                self._count(f"finished episodes were lost: {error}", time)
            else:
                return Rollout(
                    merge(requests, weights, (episode for block in blocks for episode in block)),
                    run.engine,
                    run.seconds,
                    run.seconds_engine,
                    run.seconds_judge,
                    run.seconds_sync,
                )
        raise AssertionError("unreachable")

    def failures(self) -> list[Failure]:
        """Every generator lost so far: when, which, why."""
        failures: list[Failure] = ray.get(self.leases.failures.remote())
        return failures

    def progress(self) -> list[Progress]:
        """What each generator has done so far; one that does not answer is told by its process alone."""
        progress: list[Progress] = ray.get(self.leases.progress.remote())
        return progress

    def close(self) -> None:
        """End every engine."""
        ray.kill(self.leases)

    def _count(self, cause: str, in_a_row: int) -> None:
        try:
            ray.get(self.leases.lost_episodes.remote(cause, in_a_row))
        except PoolFailed as error:
            raise _plain(error) from None


def _plain(error: PoolFailed) -> PoolFailed:
    """Without Ray's traceback of the pool's own process, which tells a user nothing."""
    cause = getattr(error, "cause", error)
    return PoolFailed(*cause.args)
