"""Dealing and merging: every episode exactly once, whoever is lost whenever; without Ray."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Turn, Weights
from rlheals_ray.rollout.shares import NotExactlyOnce, Shares, merge
from rlheals_ray.tasks import Problem, Verdict

WEIGHTS = Weights("checkpoint", 3)


# --- dealing


def test_requests_are_dealt_interleaved() -> None:
    shares = Shares(7, 3)
    assert [shares.take(member) for member in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert shares.take(0) == [], "what runs does not wait"


def test_what_a_lost_member_had_not_finished_goes_to_those_that_are_up() -> None:
    shares = Shares(9, 3)
    for member in range(3):
        shares.take(member)
    shares.finish(0, [3])
    shares.lose(0)
    assert (shares.take(1), shares.take(2)) == ([0], [6])
    shares.return_(0)
    assert shares.take(0) == [], "its share is with the others"


def test_the_only_member_asks_for_its_unfinished_part_again() -> None:
    shares = Shares(4, 1)
    shares.take(0)
    shares.finish(0, [1, 2])
    shares.lose(0)
    shares.return_(0)
    assert shares.take(0) == [0, 3]


def test_the_first_to_come_back_takes_what_all_have_left() -> None:
    shares = Shares(4, 2)
    shares.take(0)
    shares.lose(0)
    shares.lose(1)
    shares.return_(1)
    assert shares.take(1) == [0, 1, 2, 3]


def test_a_place_cannot_be_finished_twice_nor_by_another_nor_left_out() -> None:
    shares = Shares(4, 2)
    shares.take(0)
    with pytest.raises(NotExactlyOnce, match="place 1"):
        shares.finish(0, [1])
    shares.finish(0, [0])
    with pytest.raises(NotExactlyOnce, match="place 0"):
        shares.finish(0, [0])
    with pytest.raises(NotExactlyOnce, match=r"\[2\]"):
        shares.end(0)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 12), st.integers())
def test_every_place_is_finished_exactly_once_under_any_losses(
    count: int, members: int, losses: int, seed: int
) -> None:
    """Members take, finish some, die and come back in any order; nothing is lost, nothing doubled, nobody stuck."""
    rng = random.Random(seed)
    shares, finished = Shares(count, members), []
    running: list[list[int]] = [[] for _ in range(members)]
    up = set(range(members))
    rounds = 0
    while not shares.done:
        rounds += 1
        assert rounds < 2000, "what is unfinished waits for nobody"
        member = rng.randrange(members)
        if member not in up:
            shares.return_(member)
            up.add(member)
        elif losses and rng.random() < 0.3:
            losses -= 1
            shares.lose(member)
            up.remove(member)
            running[member] = []
        elif not running[member]:
            running[member] = shares.take(member)
        else:
            some = rng.randint(0, len(running[member]))
            done, running[member] = running[member][:some], running[member][some:]
            shares.finish(member, done)
            finished += done
    assert sorted(finished) == list(range(count))


# --- merging


def request_of(number: int) -> EpisodeRequest:
    return EpisodeRequest(Problem(f"p{number % 2}", "id", "g"), ("x", number))


def episode_of(number: int, weights: Weights = WEIGHTS, turn_weights: Weights = WEIGHTS) -> Episode:
    request = request_of(number)
    turn = Turn([1], [2], [-0.1], True, "", Verdict(5.0, True, True, ""), turn_weights)
    return Episode(request.problem, weights, [turn], request.id)


@given(st.permutations(range(7)))
def test_episodes_are_put_in_the_order_of_their_requests(order: list[int]) -> None:
    merged = merge([request_of(i) for i in range(7)], WEIGHTS, map(episode_of, order))
    assert merged == [episode_of(i) for i in range(7)]


@pytest.mark.parametrize(
    ("episodes", "complaint"),
    [
        ([0, 1], "missing"),
        ([0, 1, 2, 1], "came twice"),
        ([0, 1, 2, 3], "not asked for"),
    ],
)
def test_a_batch_that_is_not_exactly_what_was_asked_for_is_refused(
    episodes: list[int], complaint: str
) -> None:
    with pytest.raises(NotExactlyOnce, match=complaint):
        merge([request_of(i) for i in range(3)], WEIGHTS, map(episode_of, episodes))


@pytest.mark.parametrize("held", [(Weights("other"), WEIGHTS), (WEIGHTS, Weights("checkpoint", 2))])
def test_an_episode_with_a_turn_by_other_weights_is_refused(held: tuple[Weights, Weights]) -> None:
    with pytest.raises(NotExactlyOnce, match="not made by"):
        merge([request_of(0)], WEIGHTS, [episode_of(0, *held)])


# --- ids


def test_an_episode_s_id_is_its_problem_and_seed() -> None:
    problem = Problem("p", "id", "g")
    seeds: list[tuple[int | str, ...]] = [(1, 11), (11, 1), ("1", 11), (1, "11"), (1, 1, 1), ("1,1", 1), ()]
    ids = {EpisodeRequest(problem, seed).id for seed in seeds}
    assert len(ids) == len(seeds)
    assert EpisodeRequest(problem, (1, 11)).id == EpisodeRequest(problem, (1, 11)).id
    assert EpisodeRequest(Problem("q", "id", "g"), (1, 11)).id not in ids


# --- light processes


def test_the_pool_s_process_and_its_consumers_import_no_torch() -> None:
    code = (
        "import sys, rlheals_ray.rollout.pool, rlheals_ray.rollout.generator; "
        "print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
