"""Episodes of several turns for tests: navigation step by step in its compact words, played by a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.episodes import run_episodes
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.navigation import Navigation
from rlheals_ray.tasks.turns import demonstration_turns, replies_of
from tests.toy_model import write_toy_model
from tests.unit.test_episodes import Answer, ScriptedEngine

TASK = cast(Navigation, get_task("navigation", wording="compact", turns=[2, 3], pool=1000))
PROBLEMS = TASK.problems("id", "train", 2)
WEIGHTS = Weights("checkpoint", 3)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=8, max_attempts=2, logprobs=True)
ROOM = 512
WRONG = '{"action": nowhere }'


def write_stepwise_model(directory: Path) -> Path:
    """An untrained toy model that has every word of the problems and of what is said to their answers."""
    said = [WRONG]
    for problem in PROBLEMS:
        answers = demonstration_turns(TASK, problem)
        said += [TASK.prompt(problem), *answers, *replies_of(TASK, problem, answers)]
        said += [f"failed {kind}" for kind in ("illegal", "unknown", "wrong", "nowhere", "unseen")]
    words = list(dict.fromkeys(word for text in said for word in text.split()))
    return write_toy_model(directory, vocabulary=words, positions=ROOM)


def requests() -> list[EpisodeRequest]:
    return [EpisodeRequest(problem, (0, index)) for index, problem in enumerate(PROBLEMS)]


def play(
    chat: ChatFormat, wrong_at: Callable[[int], int], room: int = ROOM, attempts: int = 2
) -> list[Episode]:
    """Episodes whose step number n is answered `wrong_at(n)` times wrong and then right."""
    places: dict[int, tuple[int, int]] = {}

    def script(index: int, turn: int) -> Answer:
        step, failed = places.get(index, (0, 0))
        if failed < wrong_at(step):
            places[index] = step, failed + 1
            return WRONG, True
        places[index] = step + 1, 0
        return demonstration_turns(TASK, PROBLEMS[index])[step], True

    engine = ScriptedEngine(chat, script)
    sampling = replace(SAMPLING, max_attempts=attempts)
    return run_episodes(engine, TASK, chat, requests(), sampling, WEIGHTS, room)
