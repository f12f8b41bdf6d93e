"""Episodes of several turns: where they go on, where they end, what they hold; scripted, and with a real engine.

The engine is scripted where rare cases are wanted, and elsewhere transformers with a toy model that has learnt two
routes by heart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.config import RolloutSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rl.branch import outcome
from rlheals_ray.rollout.episode import Episode, Turn, episodes_table
from rlheals_ray.rollout.episodes import run_episodes
from rlheals_ray.rollout.transformers_engine import TransformersEngine
from rlheals_ray.sft.data import demonstrate
from rlheals_ray.tasks import Problem, Verdict
from rlheals_ray.tasks.turns import demonstration_turns, judge_turn, replies_of, turns_of
from tests.stepwise import (
    PROBLEMS,
    ROOM,
    SAMPLING,
    TASK,
    WEIGHTS,
    WRONG,
    play,
    requests,
    write_stepwise_model,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stepwise_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="module")
def chat(directory: Path) -> ChatFormat:
    return ChatFormat.of(directory)


# --- where an episode goes on and where it ends


def test_right_answers_use_up_no_attempt(chat: ChatFormat) -> None:
    for problem, episode in zip(PROBLEMS, play(chat, lambda step: 0, attempts=1), strict=True):
        assert len(episode.turns) == turns_of(TASK, problem) > 2
        assert [t.verdict.accepted for t in episode.turns] == [True] * (len(episode.turns) - 1) + [False]
        assert episode.turns[-1].verdict.solved and episode.solved_at == 1
        assert [t.answer for t in episode.turns] == demonstration_turns(TASK, problem)
        assert sum(t.verdict.reward for t in episode.turns) == len(episode.turns)


def test_every_step_has_all_its_tries(chat: ChatFormat) -> None:
    for problem, episode in zip(PROBLEMS, play(chat, lambda step: 1), strict=True):
        assert len(episode.turns) == 2 * turns_of(TASK, problem)
        assert [t.verdict.reward for t in episode.turns] == [-1.0, 1.0] * turns_of(TASK, problem)
        assert episode.solved_at == 2


@pytest.mark.parametrize("step", [0, 2])
def test_an_episode_ends_with_the_last_try_at_a_step(chat: ChatFormat, step: int) -> None:
    for episode in play(chat, lambda n: 2 if n == step else 1 if n < step else 0):
        assert len(episode.turns) == 2 * step + 2 and episode.solved_at is None
        assert [t.verdict.accepted for t in episode.turns[-3:]] == [True, False, False][
            -min(3, 2 * step + 2) :
        ]


def test_the_hardest_step_says_at_which_attempt_it_was_solved(chat: ChatFormat) -> None:
    for failures, solved_at in (((0, 0, 2), 3), ((1, 0, 0), 2), ((2, 1, 0), 3), ((1, 1, 1), 2)):
        made = play(chat, lambda n, f=failures: f[n] if n < 3 else 0, attempts=3)  # type: ignore[misc]
        assert {episode.solved_at for episode in made} == {solved_at}
    rates = outcome(play(chat, lambda n: int(n == 1)))
    assert (rates["solved_at_1"], rates["solved_at_k"]) == (0, 1)


verdicts = st.lists(st.sampled_from(["failed", "accepted", "solved"]), max_size=12)


@given(kinds=verdicts)
def test_the_attempt_is_the_most_tries_that_a_turn_took(kinds: list[str]) -> None:
    turns = [
        Turn([1], [2], [-1.0], True, "", Verdict(0.0, kind == "solved", True, "", accepted=kind == "accepted"), WEIGHTS)
        for kind in kinds
    ]  # fmt: skip
    got = Episode(PROBLEMS[0], WEIGHTS, turns).solved_at
    if "solved" not in kinds:
        assert got is None
    else:
        tries = (
            "".join(kind[0] for kind in kinds[: kinds.index("solved") + 1]).replace("s", "a").split("a")[:-1]
        )
        assert got == 1 + max(map(len, tries))
        if "accepted" not in kinds:
            assert got == kinds.index("solved") + 1, "as for every task of single answers"


def test_an_episode_ends_where_its_next_step_would_not_fit(chat: ChatFormat) -> None:
    whole = play(chat, lambda step: 0)[0]
    for kept in (1, 3):
        held = sum(len(t.prompt_ids) + len(t.completion_ids) for t in whole.turns[:kept])
        room = held + len(whole.turns[kept].prompt_ids) + SAMPLING.max_new_tokens
        assert [len(play(chat, lambda step: 0, room=r)[0].turns) for r in (room, room - 1)] == [
            kept + 1,
            kept,
        ]


def test_an_episode_is_the_template_s_whole_conversation(chat: ChatFormat) -> None:
    for episode in play(chat, lambda step: int(step == 1)):
        messages = [{"role": "user", "content": TASK.prompt(episode.problem)}]
        for turn in episode.turns[:-1]:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": turn.verdict.feedback})
        text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = [token for turn in episode.turns for token in turn.prompt_ids + turn.completion_ids]
        ids = ids[: len(ids) - len(episode.turns[-1].completion_ids)]
        assert ids == chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_rows_of_the_table_have_an_entry_for_each_turn(chat: ChatFormat) -> None:
    [row, _] = episodes_table("c", play(chat, lambda step: 1)).to_pylist()
    assert row["attempts"] == len(row["rewards"]) == len(row["answers"]) == 2 * turns_of(TASK, PROBLEMS[0])
    assert row["solved_at"] == 2 and row["well_formed"][:2] == [False, True]


# --- a real engine


@pytest.fixture(scope="module")
def learnt(directory: Path, chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model after SFT on the demonstrations of both problems until it has them by heart."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    examples = [demonstrate(TASK, chat, problem, seed=0) for problem in PROBLEMS]
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(400):
        loss = sum(
            model(input_ids=torch.tensor([e.input_ids]), labels=torch.tensor([e.labels])).loss
            for e in examples
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if float(loss.detach()) < 0.01:
            break
    path = tmp_path_factory.mktemp("toy") / "learnt"
    model.save_pretrained(path)
    chat.tokenizer.save_pretrained(path)
    return path


def engine_of(path: Path, chat: ChatFormat) -> TransformersEngine:
    settings = RolloutSettings(engine="transformers", max_model_len=ROOM)
    engine = TransformersEngine(path, settings, chat.stop_ids)
    engine.load_checkpoint(path)
    return engine


def test_a_real_engine_walks_the_route_that_its_model_knows(learnt: Path, chat: ChatFormat) -> None:
    sampling = replace(SAMPLING, temperature=0.0)
    made = run_episodes(engine_of(learnt, chat), TASK, chat, requests(), sampling, WEIGHTS, ROOM)
    for problem, episode in zip(PROBLEMS, made, strict=True):
        assert episode.solved_at == 1 and len(episode.turns) == turns_of(TASK, problem)
        said = [token for turn in episode.turns for token in turn.prompt_ids + turn.completion_ids]
        assert said == demonstrate(TASK, chat, problem, seed=0).input_ids
        assert all(turn.ended and len(turn.logprobs) == len(turn.completion_ids) for turn in episode.turns)
        assert sum(turn.verdict.reward for turn in episode.turns) == len(episode.turns)


def test_a_real_engine_that_knows_nothing_fails_at_the_first_step(directory: Path, chat: ChatFormat) -> None:
    made = run_episodes(engine_of(directory, chat), TASK, chat, requests(), SAMPLING, WEIGHTS, ROOM)
    assert [len(episode.turns) for episode in made] == [2, 2]
    assert {turn.verdict.reward for episode in made for turn in episode.turns} == {-1.5}
    assert [episode.solved_at for episode in made] == [None, None]


def test_the_log_probabilities_of_a_real_engine_are_those_of_the_whole_conversation(
    learnt: Path, chat: ChatFormat
) -> None:
    """A learner recomputes them in one pass over all turns: the cache of a turn must be that of what came before."""
    from transformers import AutoModelForCausalLM

    [first, *_] = run_episodes(engine_of(learnt, chat), TASK, chat, requests(), SAMPLING, WEIGHTS, ROOM)
    batch = batch_of([first], max_attempts=2)
    model = AutoModelForCausalLM.from_pretrained(learnt)
    with torch.no_grad():
        scored = torch.log_softmax(model(input_ids=batch.ids).logits[0, :-1], -1)
    own = batch.own[0]
    expected = scored[own[1:]].gather(-1, batch.ids[0][own][:, None])[:, 0]
    torch.testing.assert_close(batch.logprobs[0][own], expected, atol=1e-4, rtol=1e-4)


# --- tasks of single answers


def test_a_task_without_turns_has_one(game: Any) -> None:
    [problem] = game.problems("id", "eval", 1)
    assert turns_of(game, problem) == 1
    assert demonstration_turns(game, problem, 3) == [game.demonstration(problem, 3)]
    for text in ("", game.demonstration(problem)):
        assert judge_turn(game, problem, [], text) == game.judge(problem, text)
    assert replies_of(game, problem, demonstration_turns(game, problem)) == []


def test_a_demonstration_that_is_not_accepted_is_no_demonstration() -> None:
    with pytest.raises(ValueError, match="turn 1 of its demonstration is not accepted"):
        replies_of(TASK, cast(Problem, PROBLEMS[0]), [WRONG, WRONG])
