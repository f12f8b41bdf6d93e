"""The episode loop: every problem is attempted, judged and, with the feedback, attempted again or gone on with.

The engine stays full: a finished turn is judged at once and its next turn joins the running batch.
Every request is with the engine from the start, however many it decodes side by side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rollout.engine import Completion, Engine
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Turn, Weights
from rlheals_ray.rollout.progress import Progress
from rlheals_ray.tasks import Task
from rlheals_ray.tasks.turns import judge_turn

REMEMBERED = 1 << 16
"""Renderings that a RememberingChat keeps."""


@dataclass(frozen=True)
class RememberingChat(ChatFormat):
    """A chat format that renders each text once: problems and replies come again and again, and a rendering
    costs as much as a small model's decoding of a token for a whole batch."""

    _first: dict[str, list[int]] = field(default_factory=dict, compare=False)
    _next: dict[tuple[str, bool], list[int]] = field(default_factory=dict, compare=False)

    def first_turn(self, prompt: str) -> list[int]:
        ids = self._first.get(prompt)
        if ids is None:
            ids = self._first[prompt] = super().first_turn(prompt)
            _forget_oldest(self._first)
        return list(ids)

    def next_turn(self, reply: str, *, ended: bool) -> list[int]:
        ids = self._next.get((reply, ended))
        if ids is None:
            ids = self._next[reply, ended] = super().next_turn(reply, ended=ended)
            _forget_oldest(self._next)
        return list(ids)


def _forget_oldest(known: dict[Any, list[int]]) -> None:
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


@dataclass
class _Running:
    place: int
    request: EpisodeRequest
    episode: Episode
    context: list[int]
    """Every token so far, the environment's and the model's."""
    new: list[int]
    """The environment's tokens of the turn under way."""


def run_episodes(
    engine: Engine,
    task: Task,
    chat: ChatFormat,
    requests: Sequence[EpisodeRequest],
    sampling: Sampling,
    weights: Weights,
    max_model_len: int,
) -> list[Episode]:
    """Run every request to its end; episodes come back in the order of the requests."""
    finished = dict(
        stream_episodes(engine, task, chat, requests, sampling, weights, max_model_len, Progress())
    )
    return [finished[place] for place in range(len(requests))]


def stream_episodes(
    engine: Engine,
    task: Task,
    chat: ChatFormat,
    requests: Sequence[EpisodeRequest],
    sampling: Sampling,
    weights: Weights,
    max_model_len: int,
    progress: Progress,
) -> Iterator[tuple[int, Episode]]:
    """Yield (place in `requests`, episode) as each episode ends, and count in `progress`.

    An episode ends when it is solved, after `max_attempts` turns in a row that were not accepted, or when its
    next turn would not fit into `max_model_len` tokens.

    The tokens of a turn are drawn with a seed of their own (`EpisodeRequest.turn_seed`), so they do not
    depend on which other requests are run, in which order, or how many there are, except through
    rounding: an engine sums in another order in a batch of another size, its logits differ in the last
    bits, and a token whose draw falls between the two changes the rest of its episode. The same batch
    gives the same episodes.
    """
    running: dict[str, _Running] = {}

    def submit(key: str, state: _Running) -> None:
        start = time.perf_counter()
        seed = state.request.turn_seed(len(state.episode.turns))
        engine.submit(key, state.context, sampling=sampling, seed=seed)
        progress.seconds_engine += time.perf_counter() - start
        progress.submitted += 1

    try:
        for place, request in enumerate(requests):
            start = time.perf_counter()
            prompt = chat.first_turn(task.prompt(request.problem))
            progress.seconds_judge += time.perf_counter() - start
            episode = Episode(request.problem, weights, id=request.id)
            running[str(place)] = state = _Running(place, request, episode, list(prompt), prompt)
            submit(str(place), state)
        while engine.busy():
            start = time.perf_counter()
            completions = engine.step()
            progress.seconds_engine += time.perf_counter() - start
            progress.steps += 1
            for completion in completions:
                state = running[completion.request_id]
                start = time.perf_counter()
                goes_on = _advance(state, completion, task, chat, sampling, weights, max_model_len)
                progress.seconds_judge += time.perf_counter() - start
                progress.turns += 1
                if goes_on:
                    submit(completion.request_id, state)
                else:
                    progress.episodes += 1
                    yield state.place, running.pop(completion.request_id).episode
    except BaseException:
        engine.abort()
        raise


def _advance(
    state: _Running,
    completion: Completion,
    task: Task,
    chat: ChatFormat,
    sampling: Sampling,
    weights: Weights,
    max_model_len: int,
) -> bool:
    """Judge a finished turn; True when the episode goes on, its next prompt appended."""
    episode = state.episode
    answer = chat.answer(completion.ids)
    verdict = judge_turn(task, episode.problem, episode.accepted, answer)
    episode.turns.append(
        Turn(state.new, completion.ids, completion.logprobs, completion.stopped, answer, verdict, weights)
    )
    if verdict.solved or episode.failed == sampling.max_attempts:
        return False
    state.new = chat.next_turn(task.reply(verdict), ended=completion.stopped)
    state.context += completion.ids + state.new
    return len(state.context) + sampling.max_new_tokens <= max_model_len
