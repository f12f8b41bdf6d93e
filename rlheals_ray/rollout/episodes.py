"""The episode loop: every problem is attempted, judged and, with the feedback, attempted again.

The engine stays full: a finished turn is judged at once and its next turn joins the running batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rollout.engine import Completion, Engine
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Turn, Weights
from rlheals_ray.tasks import Task


@dataclass
class _Running:
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
    """Run every request to its end; episodes come back in the order of the requests.

    An episode ends when it is solved, after `max_attempts` turns, or when its next turn would not
    fit into `max_model_len` tokens.
    """
    running: dict[str, _Running] = {}

    def submit(key: str, state: _Running) -> None:
        engine.submit(
            key,
            state.context,
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            seed=state.request.turn_seed(len(state.episode.turns)),
            logprobs=sampling.logprobs,
        )

    try:
        for index, request in enumerate(requests):
            prompt = chat.first_turn(task.prompt(request.problem))
            state = _Running(request, Episode(request.problem, weights), list(prompt), prompt)
            running[str(index)] = state
            submit(str(index), state)
        while engine.busy():
            for completion in engine.step():
                state = running[completion.request_id]
                if _advance(state, completion, task, chat, sampling, max_model_len):
                    submit(completion.request_id, state)
    except BaseException:
        engine.abort()
        raise
    return [state.episode for state in running.values()]


def _advance(
    state: _Running,
    completion: Completion,
    task: Task,
    chat: ChatFormat,
    sampling: Sampling,
    max_model_len: int,
) -> bool:
    """Judge a finished turn; True when the episode goes on, its next prompt appended."""
    episode = state.episode
    answer = chat.answer(completion.ids)
    verdict = task.judge(episode.problem, answer)
    episode.turns.append(
        Turn(state.new, completion.ids, completion.logprobs, completion.stopped, answer, verdict)
    )
    if verdict.solved or len(episode.turns) == sampling.max_attempts:
        return False
    state.new = chat.next_turn(task.reply(verdict), ended=completion.stopped)
    state.context += completion.ids + state.new
    return len(state.context) + sampling.max_new_tokens <= max_model_len
