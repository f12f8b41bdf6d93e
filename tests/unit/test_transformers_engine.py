"""The engine on plain transformers against transformers' own generation and a float64 forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LlamaForCausalLM

from rlheals_ray.config import RolloutSettings
from rlheals_ray.models import nano
from rlheals_ray.rollout.engine import Completion
from rlheals_ray.rollout.episode import Sampling
from rlheals_ray.rollout.transformers_engine import TransformersEngine

TARGETS = [18, 24]
PROMPTS = [[1, 9, 12, 30], [1, 7], [1, 22, 8, 8, 15, 40, 3, 11, 19], [1, 33, 6]]


def plain(temperature: float = 0.8, new: int = 12, **more: Any) -> Sampling:
    return Sampling(temperature, new, max_attempts=1, logprobs=not more, **more)


def model_of(seed: int, tied: bool = False) -> LlamaForCausalLM:
    config = nano.architecture(TARGETS)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    # Untrained logits are nearly flat; larger weights make every mistake show.
    for name, weight in model.named_parameters():
        weight.data.mul_(1 if "norm" in name else 3 if "embed" in name or "head" in name else 8)
    return model


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return model_of(0)


@pytest.fixture(scope="module")
def directory(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nano")
    nano.save(model, TARGETS, directory)
    return directory


def engine_of(directory: Path, stop: Sequence[int] = (), **rollout: Any) -> TransformersEngine:
    engine = TransformersEngine(directory, RolloutSettings(engine="transformers", **rollout), stop)
    engine.load_checkpoint(directory)
    return engine


@pytest.fixture(scope="module")
def engine(directory: Path) -> TransformersEngine:
    return engine_of(directory)


def finish(engine: TransformersEngine) -> dict[str, Completion]:
    completions: dict[str, Completion] = {}
    while engine.busy():
        completions |= {completion.request_id: completion for completion in engine.step()}
    return completions


def answer(
    engine: TransformersEngine, sampling: Sampling, prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[Completion]:
    """All prompts together, each with its place as its seed."""
    for place, prompt in enumerate(prompts):
        engine.submit(str(place), prompt, sampling=sampling, seed=place)
    completions = finish(engine)
    return [completions[str(place)] for place in range(len(prompts))]


@torch.no_grad()
def float64_logprobs(
    model: LlamaForCausalLM, prompt: Sequence[int], ids: Sequence[int], temperature: float
) -> list[float]:
    tokens = torch.tensor([[*prompt, *ids]])
    exact = LlamaForCausalLM(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    logits = exact(tokens).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, tokens[0, len(prompt) :, None]).squeeze(-1).tolist()


@pytest.mark.parametrize(
    "more", [{}, {"repetition_penalty": 1.3}, {"top_k": 5, "repetition_penalty": 0.9}, {"top_p": 0.5}]
)
def test_greedy_answers_are_those_of_transformers_generate(
    engine: TransformersEngine, model: LlamaForCausalLM, more: dict[str, Any]
) -> None:
    for prompt, completion in zip(PROMPTS, answer(engine, plain(0.0, **more)), strict=True):
        reference = model.generate(  # type: ignore[misc]  # (transformers types `self` by a protocol)
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=[],
            repetition_penalty=more.get("repetition_penalty", 1.0),
        )
        assert completion.ids == reference[0, len(prompt) :].tolist()
        assert not completion.stopped


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probabilities_are_those_of_the_sampling_distribution(
    engine: TransformersEngine, model: LlamaForCausalLM, temperature: float
) -> None:
    for prompt, completion in zip(PROMPTS, answer(engine, plain(temperature)), strict=True):
        exact = float64_logprobs(model, prompt, completion.ids, temperature)
        assert completion.logprobs == pytest.approx(exact, abs=1e-4)


def test_a_score_is_the_log_probability_of_every_token_but_the_first(
    engine: TransformersEngine, model: LlamaForCausalLM
) -> None:
    [first, *rest] = PROMPTS[2]
    assert engine.score(PROMPTS[2]) == pytest.approx(float64_logprobs(model, [first], rest, 1.0), abs=1e-4)


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(
    engine: TransformersEngine, model: LlamaForCausalLM
) -> None:
    draws = 2000
    drawn = answer(engine, plain(1.5, new=1), [PROMPTS[0]] * draws)
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 1.5).softmax(-1) * draws
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=len(expected)).double()
    assert counts.sum() == draws and expected.min() > 5  # what the test asks of every class
    assert chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("more", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7}])
def test_what_a_filter_excludes_is_never_drawn(
    engine: TransformersEngine, model: LlamaForCausalLM, more: dict[str, Any]
) -> None:
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / 2).softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    top_k = more.get("top_k", len(tokens))
    kept = ordered[:top_k] / ordered[:top_k].sum()
    # The smallest set of at least the probability top_p.
    allowed = set(tokens[:top_k][kept.cumsum(-1) - kept < more.get("top_p", 1.0)].tolist())
    drawn = {c.ids[0] for c in answer(engine, plain(2.0, new=1, **more), [PROMPTS[0]] * 300)}
    assert drawn == allowed


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(joins=st.lists(st.integers(0, 14), min_size=len(PROMPTS), max_size=len(PROMPTS)))
def test_whoever_joins_whenever_is_answered_as_if_alone(engine: TransformersEngine, joins: list[int]) -> None:
    lengths = [12, 5, 9, 7]
    together: dict[str, Completion] = {}
    for step in range(30):
        for place, join in enumerate(joins):
            if join == step:
                engine.submit(str(place), PROMPTS[place], sampling=plain(new=lengths[place]), seed=place)
        together |= {completion.request_id: completion for completion in engine.step()}
    for place, prompt in enumerate(PROMPTS):
        engine.submit(str(place), prompt, sampling=plain(new=lengths[place]), seed=place)
        alone = finish(engine)[str(place)]
        assert together[str(place)].ids == alone.ids
        assert together[str(place)].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_the_seed_decides(engine: TransformersEngine) -> None:
    prompts = [PROMPTS[0]] * 2
    first, other = answer(engine, plain(), prompts)
    assert answer(engine, plain(), prompts) == [first, other]
    assert first.ids != other.ids


def test_an_answer_ends_at_a_stop_token_and_includes_it(directory: Path, engine: TransformersEngine) -> None:
    unstopped = answer(engine, plain())
    stop = unstopped[0].ids[3]
    for completion, whole in zip(answer(engine_of(directory, [stop]), plain()), unstopped, strict=True):
        end = whole.ids.index(stop) + 1 if stop in whole.ids else len(whole.ids)
        assert completion.ids == whole.ids[:end]
        assert completion.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-4)
        assert completion.stopped == (stop in whole.ids)


def test_an_answer_ends_where_the_context_does(directory: Path) -> None:
    engine = engine_of(directory, max_model_len=12)
    lengths = [len(completion.ids) for completion in answer(engine, plain(new=9))]
    assert lengths == [min(9, 12 - len(prompt)) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="must have 1 to 11"):
        engine.submit("long", [1] * 12, sampling=plain(), seed=0)
    with pytest.raises(ValueError, match="a prompt of 0 tokens"):
        engine.submit("empty", [], sampling=plain(), seed=0)


def test_no_more_than_max_num_seqs_run_side_by_side(directory: Path, engine: TransformersEngine) -> None:
    prompts = [*PROMPTS, PROMPTS[0]]
    narrow = engine_of(directory, max_num_seqs=2)
    for place, prompt in enumerate(prompts):
        narrow.submit(str(place), prompt, sampling=plain(new=3), seed=place)
    finished = [[completion.request_id for completion in narrow.step()] for _ in range(9)]
    assert finished == [[], [], ["0", "1"], [], [], ["2", "3"], [], [], ["4"]]
    assert not narrow.busy()


def test_after_an_abort_nothing_is_left_of_the_requests(engine: TransformersEngine) -> None:
    before = answer(engine, plain())
    for place, prompt in enumerate(PROMPTS):
        engine.submit(f"dropped {place}", prompt, sampling=plain(), seed=99)
    engine.step()
    engine.abort()
    assert not engine.busy() and engine.step() == []
    assert answer(engine, plain()) == before


def test_new_weights_are_served_at_once_and_nothing_is_left_of_the_old(
    directory: Path, tmp_path: Path
) -> None:
    engine, other = engine_of(directory), model_of(1)
    nano.save(other, TARGETS, tmp_path)
    engine.load_weights(other.state_dict().items())
    served = engine.score(PROMPTS[2])
    engine.load_checkpoint(directory)
    assert engine.score(PROMPTS[2]) != served
    engine.load_checkpoint(tmp_path)
    assert engine.score(PROMPTS[2]) == served
    assert served == pytest.approx(float64_logprobs(other, PROMPTS[2][:1], PROMPTS[2][1:], 1.0), abs=1e-4)


@pytest.mark.parametrize("head_too", [True, False])
def test_a_tied_head_follows_its_embedding(tmp_path: Path, head_too: bool) -> None:
    nano.save(model_of(0, tied=True), TARGETS, tmp_path)
    engine, other = engine_of(tmp_path), model_of(1, tied=True)
    engine.load_weights((n, t) for n, t in other.state_dict().items() if head_too or n != "lm_head.weight")
    exact = float64_logprobs(other, PROMPTS[2][:1], PROMPTS[2][1:], 1.0)
    assert engine.score(PROMPTS[2]) == pytest.approx(exact, abs=1e-4)


def test_an_update_must_be_the_whole_model(directory: Path, model: LlamaForCausalLM, tmp_path: Path) -> None:
    engine = engine_of(directory)
    whole = model.state_dict()
    with pytest.raises(ValueError, match=r"lacks 1 of the model's tensors, such as 'lm_head\.weight'"):
        engine.load_weights((n, t) for n, t in whole.items() if n != "lm_head.weight")
    with pytest.raises(ValueError, match="no tensor 'extra'"):
        engine.load_weights({**whole, "extra": torch.zeros(1)}.items())
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' has shape \(1,\)"):
        engine.load_weights({**whole, "model.norm.weight": torch.zeros(1)}.items())
    nano.save(model_of(0, tied=True), TARGETS, tmp_path)
    with pytest.raises(ValueError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
        engine_of(tmp_path).load_weights(whole.items())
