"""The episode loop, with an engine whose answers are scripted: real tokens, real judge, rare cases at will."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlheals_ray import tables
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rollout.engine import Completion
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights, episodes_table
from rlheals_ray.rollout.episodes import run_episodes
from rlheals_ray.tasks import Problem
from rlheals_ray.tasks.general_points import GeneralPoints

WEIGHTS = Weights("checkpoint", 3)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=40, max_attempts=3, logprobs=True)
WRONG = "1 + 1"

Answer = tuple[str, bool]
"""What the model writes, and whether it ends its turn."""


class ScriptedEngine:
    """Answers what its script says; the last request submitted is finished first, one a step."""

    name = "scripted"

    def __init__(self, chat: ChatFormat, script: Callable[[int, int], Answer]) -> None:
        self._chat, self._script = chat, script
        self._waiting: list[str] = []
        self._turns: dict[str, int] = {}
        self.submitted: dict[str, list[tuple[list[int], dict[str, Any]]]] = {}
        self.most_waiting = 0
        self.aborted = False

    def submit(self, request_id: str, ids: Sequence[int], **options: Any) -> None:
        assert request_id not in self._waiting, "the request is still running"
        self.submitted.setdefault(request_id, []).append((list(ids), options))
        self._waiting.append(request_id)
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def step(self) -> list[Completion]:
        key = self._waiting.pop()
        turn = self._turns[key] = self._turns.get(key, 0) + 1
        text, ended = self._script(int(key), turn)
        ids = self._chat.completion(text)[: None if ended else -1]
        return [Completion(key, ids, [-0.5 - 0.25 * i for i in range(len(ids))], ended)]

    def busy(self) -> bool:
        return bool(self._waiting)

    def abort(self) -> None:
        self._waiting.clear()
        self.aborted = True

    def load_checkpoint(self, directory: Path) -> None:
        raise NotImplementedError

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        raise NotImplementedError


@pytest.fixture
def problems(game: GeneralPoints) -> list[Problem]:
    return game.problems("id", "eval", 5)


def requests_of(problems: Sequence[Problem]) -> list[EpisodeRequest]:
    return [EpisodeRequest(problem, (0, index)) for index, problem in enumerate(problems)]


def always(text: str, ended: bool = True) -> Callable[[int, int], Answer]:
    return lambda index, turn: (text, ended)


# --- how an episode ends


def test_an_episode_ends_when_it_is_solved(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    """Problem i is solved at turn i + 1, as far as three attempts allow."""

    def script(index: int, turn: int) -> Answer:
        return (game.demonstration(problems[index]) if turn == index + 1 else WRONG), True

    made = run_episodes(
        ScriptedEngine(chat, script), game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256
    )
    assert [episode.solved_at for episode in made] == [1, 2, 3, None, None]
    assert [len(episode.turns) for episode in made] == [1, 2, 3, 3, 3]
    assert [turn.verdict.solved for turn in made[2].turns] == [False, False, True]
    assert made[2].turns[0].verdict.feedback == "failed illegal"


def test_results_come_in_the_order_of_the_requests(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    engine = ScriptedEngine(chat, always(WRONG))
    made = run_episodes(engine, game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256)
    assert [episode.problem for episode in made] == problems
    assert {episode.weights for episode in made} == {WEIGHTS}


def test_a_next_turn_joins_while_others_still_run(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    engine = ScriptedEngine(chat, always(WRONG))
    run_episodes(engine, game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256)
    assert engine.most_waiting == len(problems)
    # The last request was answered first; its three turns are over before the first request's first.
    assert [len(turns) for turns in engine.submitted.values()] == [3] * 5


def test_an_episode_ends_where_its_next_turn_would_not_fit(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    [request] = requests_of(problems[:1])
    opening = len(chat.first_turn(game.prompt(request.problem)))
    second = opening + len(chat.completion(WRONG)) + len(chat.next_turn("failed illegal", ended=True))
    for room, turns in ((second + SAMPLING.max_new_tokens, 2), (second + SAMPLING.max_new_tokens - 1, 1)):
        engine = ScriptedEngine(chat, always(WRONG))
        [episode] = run_episodes(engine, game, chat, [request], SAMPLING, WEIGHTS, room)
        assert len(episode.turns) == turns and episode.solved_at is None
        assert all(
            len(ids) + options["sampling"].max_new_tokens <= room for ids, options in engine.submitted["0"]
        )


def test_no_requests_make_no_episodes(game: GeneralPoints, chat: ChatFormat) -> None:
    assert run_episodes(ScriptedEngine(chat, always("")), game, chat, [], SAMPLING, WEIGHTS, 256) == []


# --- what it holds


def mixed(index: int, turn: int) -> Answer:
    """Words, a truncated answer, nothing at all."""
    return [(WRONG, True), ('{"cards":[ A 4', False), ("", True)][(index + turn) % 3]


def test_token_ids_are_appended_and_never_rewritten(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    engine = ScriptedEngine(chat, mixed)
    made = run_episodes(engine, game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256)
    for index, episode in enumerate(made):
        context: list[int] = []
        for turn, (submitted, _) in zip(episode.turns, engine.submitted[str(index)], strict=True):
            context += turn.prompt_ids
            assert submitted == context
            context += turn.completion_ids
            assert len(turn.logprobs) == len(turn.completion_ids)
            assert turn.logprobs == [-0.5 - 0.25 * i for i in range(len(turn.completion_ids))]


def test_an_episode_is_the_template_s_whole_conversation(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    """Also where answers were truncated: the environment ends the turn in the model's place."""
    made = run_episodes(
        ScriptedEngine(chat, mixed), game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256
    )
    for episode in made:
        messages = [{"role": "user", "content": game.prompt(episode.problem)}]
        for turn in episode.turns[:-1]:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append({"role": "user", "content": turn.verdict.feedback})
        text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = [token for turn in episode.turns for token in turn.prompt_ids + turn.completion_ids]
        ids = ids[: len(ids) - len(episode.turns[-1].completion_ids)]
        assert ids == chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_truncated_answer_is_told_and_judged_as_it_stands(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    right = game.demonstration(problems[0])
    for text, solved in ((right, True), (right.removesuffix(' "}'), False)):
        engine = ScriptedEngine(chat, always(text, ended=False))
        [episode] = run_episodes(engine, game, chat, requests_of(problems[:1]), SAMPLING, WEIGHTS, 256)
        assert not episode.turns[0].ended
        assert episode.turns[0].answer == text and episode.turns[0].verdict.solved is solved


def test_only_the_model_s_tokens_are_counted(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    engine = ScriptedEngine(chat, always(WRONG))
    [episode] = run_episodes(engine, game, chat, requests_of(problems[:1]), SAMPLING, WEIGHTS, 256)
    assert episode.tokens == 3 * (len(WRONG.split()) + 1)


def test_episodes_are_rows_of_the_table(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    made = run_episodes(
        ScriptedEngine(chat, always(WRONG)), game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256
    )
    table = episodes_table("sft/seed=0/step=000004", made)
    assert table.schema == tables.EPISODES and table.num_rows == len(problems)
    assert table.to_pylist()[0] == {
        "checkpoint": "sft/seed=0/step=000004", "rule": "id", "problem_id": problems[0].id, "attempts": 3,
        "solved_at": None, "well_formed": [False] * 3, "rewards": [-3.0] * 3, "answers": [WRONG] * 3,
    }  # fmt: skip


# --- how answers are drawn


def test_every_turn_of_every_episode_has_a_seed_of_its_own(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem]
) -> None:
    def seeds() -> list[int]:
        engine = ScriptedEngine(chat, always(WRONG))
        run_episodes(engine, game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256)
        return [options["seed"] for turns in engine.submitted.values() for _, options in turns]

    drawn = seeds()
    assert len(set(drawn)) == len(drawn) == 15
    assert drawn == seeds()
    assert all(0 <= seed < 2**62 for seed in drawn)


def test_a_seed_is_the_same_in_every_process(problems: list[Problem]) -> None:
    code = (
        "from rlheals_ray.rollout.episode import EpisodeRequest; "
        "print([EpisodeRequest(None, (0, 120, 7, 'x')).turn_seed(t) for t in range(3)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    here = [EpisodeRequest(problems[0], (0, 120, 7, "x")).turn_seed(turn) for turn in range(3)]
    assert there.stdout.strip() == str(here)


def test_nearby_seeds_do_not_meet(problems: list[Problem]) -> None:
    """Run together, (1, 11) and (11, 1) or turn 1 of episode 0 and turn 0 of episode 1 must differ."""
    seeds = {
        EpisodeRequest(problems[0], (seed, update, index)).turn_seed(turn)
        for seed in range(6) for update in range(12) for index in range(12) for turn in range(3)
    }  # fmt: skip
    assert len(seeds) == 6 * 12 * 12 * 3


@pytest.mark.parametrize("filtered", [{"top_p": 0.9}, {"top_k": 5}, {"repetition_penalty": 1.1}])
def test_a_filter_is_for_probes_never_for_log_probabilities_to_learn_from(filtered: dict[str, Any]) -> None:
    assert not Sampling(1.0, 8, 1, **filtered).logprobs
    with pytest.raises(ValueError, match="log-probabilities for learning need top_p=1, top_k=0"):
        Sampling(1.0, 8, 1, logprobs=True, **filtered)


def test_sampling_reaches_the_engine(game: GeneralPoints, chat: ChatFormat, problems: list[Problem]) -> None:
    engine = ScriptedEngine(chat, always(WRONG))
    sampling = Sampling(temperature=0.3, max_new_tokens=7, max_attempts=1)
    run_episodes(engine, game, chat, requests_of(problems[:1]), sampling, WEIGHTS, 256)
    [(_, options)] = engine.submitted["0"]
    assert options["sampling"] == sampling


# --- when something fails, the engine is left empty


@pytest.mark.parametrize("where", ["submit", "step", "judge"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_drops_every_unfinished_request(
    game: GeneralPoints, chat: ChatFormat, problems: list[Problem], where: str, error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = ScriptedEngine(chat, always(WRONG))
    owner: Any = game if where == "judge" else engine
    original, calls = getattr(owner, where), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, where, failing)
    with pytest.raises(error):
        run_episodes(engine, game, chat, requests_of(problems), SAMPLING, WEIGHTS, 256)
    assert engine.aborted and not engine.busy()
