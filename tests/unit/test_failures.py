"""What the pool takes for too many losses, and what not; without Ray."""

from __future__ import annotations

import pytest

from rlheals_ray.rollout.failures import Failures, PoolFailed


def test_losses_with_finished_runs_in_between_never_end_a_study() -> None:
    failures = Failures(limit=2)
    for _ in range(100):
        failures.add(0, "its node was taken away")
        failures.add(0, "and the next one too")
        failures.finished(0)
    assert len(failures.all) == 200
    failures.check()


def test_what_another_team_finishes_does_not_excuse_the_own_losses() -> None:
    failures = Failures(limit=2, team_size=2)
    for generator in (2, 3):
        failures.add(generator, "died")
        failures.finished(1)
    with pytest.raises(PoolFailed, match="lost 3 generators without a finished run in between"):
        failures.add(2, "died")
    with pytest.raises(PoolFailed):
        failures.check()
    assert failures.fatal.is_set()


def test_a_team_is_excused_by_the_run_of_any_of_its_members() -> None:
    failures = Failures(limit=1, team_size=2)
    failures.add(3, "died")
    failures.finished(2)
    failures.add(3, "died")
    with pytest.raises(PoolFailed):
        failures.add(2, "died")


def test_finished_episodes_that_are_lost_count_for_who_asked_for_them() -> None:
    failures = Failures(limit=2)
    for asker in range(5):
        failures.add_episodes(f"the episodes of {asker} were lost", 1)
    failures.add_episodes("again", 2)
    with pytest.raises(PoolFailed):
        failures.add_episodes("and again", 3)
