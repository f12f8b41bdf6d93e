"""Real engines in Ray actors: their log-probabilities, weight updates, weight identity, determinism."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import LlamaForCausalLM

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.models import nano
from rlheals_ray.need import Need
from rlheals_ray.rl.batch import batch_of
from rlheals_ray.rollout.engine import Engine
from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Sampling, Weights
from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
from rlheals_ray.rollout.load import CheckpointLoad
from rlheals_ray.rollout.shares import merge
from rlheals_ray.rollout.weight_sync import ObjectStoreSync, named_tensors
from rlheals_ray.tasks import get_task

TARGETS = [18, 24]
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)
# An untrained model never ends its turn: five attempts of 40 tokens make contexts of over 200 tokens,
# beyond vLLM's CPU cache block of 128, so that later turns are served from the prefix cache.
SAMPLING = Sampling(temperature=0.7, max_new_tokens=40, max_attempts=5, logprobs=True)


@dataclass
class Served:
    """A generator and the two versions of a model that it is given."""

    generator: Any
    models: tuple[LlamaForCausalLM, LlamaForCausalLM]
    directory: Path

    def load(self, version: int) -> Weights:
        weights = Weights("test", version)
        load = ObjectStoreSync().publish(named_tensors(self.models[version]))
        ray.get(self.generator.load.remote(load, weights))
        return weights

    def run(self, weights: Weights) -> list[Episode]:
        asked = requests()
        stream = self.generator.run.remote(asked, range(len(asked)), SAMPLING, weights)
        blocks, receipts = zip(*batched(map(ray.get, stream), 2), strict=True)
        for block, receipt in zip(blocks, receipts, strict=True):
            assert [asked[place].id for place in receipt.places] == [episode.id for episode in block]
        return merge(asked, weights, chain.from_iterable(blocks))


def batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """As itertools.batched, which Python 3.11 lacks."""
    return zip(*[iter(items)] * size, strict=True)


def requests() -> list[EpisodeRequest]:
    problems = get_task(TASK.name, **TASK.options).problems("id", "train", 12)
    return [EpisodeRequest(problem, ("test", i)) for i, problem in enumerate(problems)]


@pytest.fixture(
    scope="module",
    params=[pytest.param("vllm untied", marks=pytest.mark.slow), "vllm tied", "transformers tied"],
)
def served(
    request: pytest.FixtureRequest, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    engine, embeddings = request.param.split()
    directory = tmp_path_factory.mktemp(embeddings)
    config = nano.architecture(TARGETS)
    config.tie_word_embeddings = embeddings == "tied"
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(LlamaForCausalLM(config).float().eval())
        # Untrained logits are nearly flat; larger weights make a wrong one show in every token.
        for name, weight in models[-1].named_parameters():
            weight.data.mul_(1 if "norm" in name else 5 if "embed" in name or "head" in name else 10)
    nano.save(models[0], TARGETS, directory)
    settings = GeneratorSettings(str(directory), TASK, RolloutSettings(engine=engine))
    generator = start_generator(settings, threads=1, need=Need())
    assert ray.get(generator.ready.remote()).engine == engine
    yield Served(generator, (models[0], models[1]), directory)
    ray.kill(generator)


@torch.no_grad()
def mismatch(model: LlamaForCausalLM, episodes: list[Episode]) -> float:
    """Largest difference to transformers' own log-probabilities of the sampled tokens, over whole episodes."""
    batch = batch_of(episodes, SAMPLING.max_attempts)
    logits = model(input_ids=batch.ids).logits.double() / SAMPLING.temperature
    logprobs = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    own = batch.turn_of[:, 1:] >= 0
    return float((logprobs - batch.logprobs[:, 1:])[own].abs().max())


def test_log_probabilities_are_those_of_the_sampling_distribution_after_every_weight_update(
    served: Served,
) -> None:
    for version in (0, 1, 0):
        weights = served.load(version)
        episodes = served.run(weights)
        longest = max(sum(len(t.prompt_ids) + len(t.completion_ids) for t in e.turns) for e in episodes)
        assert longest > 128, "the prefix cache was never hit"
        assert mismatch(served.models[version], episodes) < 1e-3
        assert mismatch(served.models[1 - version], episodes) > 0.1, "the other weights would pass as well"
        assert all(turn.weights == weights for episode in episodes for turn in episode.turns)


@dataclass(frozen=True)
class Imported:
    """Loads nothing; raises when vLLM was imported into the generator's process."""

    def into(self, engine: Engine, index: int) -> None:
        assert ("vllm" in sys.modules) == (engine.name == "vllm")


def test_only_vllm_s_own_generator_imports_it(served: Served) -> None:
    ray.get(served.generator.load.remote(Imported(), Weights("none")))


def test_the_same_request_gives_the_same_episode(served: Served) -> None:
    weights = served.load(0)
    first, second = served.run(weights), served.run(weights)
    assert [e.turns for e in first] == [e.turns for e in second]


def test_a_checkpoint_from_disk_and_the_same_weights_from_memory_answer_alike(served: Served) -> None:
    from_memory = served.run(served.load(0))
    weights = Weights("on disk")
    ray.get(served.generator.load.remote(CheckpointLoad(str(served.directory)), weights))
    from_disk = served.run(weights)
    as_from_disk = [[replace(turn, weights=weights) for turn in e.turns] for e in from_memory]
    assert [e.turns for e in from_disk] == as_from_disk


def test_it_refuses_to_answer_for_weights_that_it_does_not_hold(served: Served) -> None:
    served.load(0)
    with pytest.raises(Exception, match="WrongWeights"):
        served.run(Weights("test", 1))
