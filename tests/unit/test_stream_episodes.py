"""Episodes as they end: handed over at once, counted, and rendered once; with a scripted engine."""

from __future__ import annotations

import pytest

from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rollout import episodes
from rlheals_ray.rollout.episode import EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.episodes import RememberingChat, stream_episodes
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.tasks.general_points import GeneralPoints
from tests.unit.test_episodes import WRONG, ScriptedEngine, always

WEIGHTS = Weights("checkpoint", 3)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=40, max_attempts=3, logprobs=True)


def requests(game: GeneralPoints) -> list[EpisodeRequest]:
    return [EpisodeRequest(problem, (i,)) for i, problem in enumerate(game.problems("id", "eval", 4))]


def test_an_episode_is_handed_over_while_others_still_run(game: GeneralPoints, chat: ChatFormat) -> None:
    engine, progress = ScriptedEngine(chat, always(WRONG)), Progress()
    stream = stream_episodes(engine, game, chat, requests(game), SAMPLING, WEIGHTS, 256, progress)
    place, episode = next(stream)
    assert engine.busy() and place == 3, "the scripted engine finishes the last request first"
    assert (progress.episodes, progress.turns, progress.steps, progress.submitted) == (1, 3, 3, 6)
    assert episode.id == requests(game)[3].id and {turn.weights for turn in episode.turns} == {WEIGHTS}
    assert [place for place, _ in stream] == [2, 1, 0]
    assert (progress.episodes, progress.turns, progress.steps, progress.submitted) == (4, 12, 12, 12)
    assert progress.seconds_engine > 0 and progress.seconds_judge > 0


def test_a_stream_that_nobody_reads_to_its_end_leaves_the_engine_empty(
    game: GeneralPoints, chat: ChatFormat
) -> None:
    engine = ScriptedEngine(chat, always(WRONG))
    stream = stream_episodes(engine, game, chat, requests(game), SAMPLING, WEIGHTS, 256, Progress())
    next(stream)
    stream.close()
    assert engine.aborted and not engine.busy()


def test_a_remembered_rendering_is_the_format_s_own_and_cannot_be_spoilt(
    game: GeneralPoints, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "REMEMBERED", 2)
    remembering = RememberingChat(chat.tokenizer)
    texts = [game.prompt(request.problem) for request in requests(game)]
    for text in [*texts, *texts]:
        first, following = remembering.first_turn(text), remembering.next_turn(text, ended=True)
        assert first == chat.first_turn(text)
        assert following == chat.next_turn(text, ended=True)
        assert remembering.next_turn(text, ended=False) == chat.next_turn(text, ended=False)
        first.clear()
        following.clear()
        assert remembering.first_turn(text) == chat.first_turn(text)
        assert remembering.next_turn(text, ended=True) == chat.next_turn(text, ended=True)
