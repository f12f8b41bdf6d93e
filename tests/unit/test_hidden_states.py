"""Hidden states and next-token distributions, against a forward pass of one prompt at a time, read by hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlheals_ray.evaluation import hidden_states
from rlheals_ray.evaluation.hidden_states import batches, load_model, prompt_states

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
PROMPTS = [[1, 5, 3], [2, 4, 6, 8, 10, 1, 3, 5, 7], [9], [2, 4, 6, 8, 1, 1, 1], [9, 8, 7, 6, 5]]
LAST = 4


@pytest.fixture(scope="module", params=["llama", "qwen2 with tied embeddings"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    made = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)).eval()
    with torch.no_grad():  # initialised to 1: a norm applied twice would not show
        made.model.norm.weight.mul_(torch.rand(16) + 0.5)
    return made


@torch.no_grad()
def by_hooks(model: Any, prompt: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What embeddings, layers and final norm put out for every token, and the logits of the next token."""
    seen: dict[int, torch.Tensor] = {}
    modules = [model.model.embed_tokens, *model.model.layers[:-1], model.model.norm]

    def note(index: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            seen[index] = (output if isinstance(output, torch.Tensor) else output[0]).reshape(len(prompt), -1)

        return hook

    handles = [module.register_forward_hook(note(index)) for index, module in enumerate(modules)]
    logits = model(torch.tensor([prompt])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return [seen[index] for index in range(len(modules))], logits


def test_states_are_means_over_the_last_tokens_of_every_layer_the_last_one_normed_once(model: Any) -> None:
    found = prompt_states(model, PROMPTS, LAST)
    assert found.states.shape == (SIZES["num_hidden_layers"] + 1, len(PROMPTS), SIZES["hidden_size"])
    for place, prompt in enumerate(PROMPTS):
        layers, _ = by_hooks(model, prompt)
        expected = torch.stack([layer[-LAST:].mean(0) for layer in layers])
        torch.testing.assert_close(found.states[:, place], expected, rtol=1e-5, atol=1e-6)


def test_entropy_and_margin_are_those_of_the_token_after_the_prompt(model: Any) -> None:
    found = prompt_states(model, PROMPTS, LAST)
    for place, prompt in enumerate(PROMPTS):
        logits = by_hooks(model, prompt)[1].double().numpy()
        p = np.exp(logits - logits.max())
        second, first = np.sort(p / p.sum())[-2:]
        assert found.entropy[place] == pytest.approx(scipy.stats.entropy(p), abs=1e-6)
        assert found.margin[place] == pytest.approx(np.log(first / second), abs=1e-5)


def test_how_prompts_are_batched_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together = prompt_states(model, PROMPTS, LAST)
    monkeypatch.setattr(hidden_states, "TOKENS", 9)
    assert len(list(batches(PROMPTS))) > 2
    for one, other in zip(together, prompt_states(model, PROMPTS, LAST), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_batch_holds_every_sequence_once_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_states, "TOKENS", 10)
    seen = []
    for rows, ids in batches(PROMPTS):
        assert ids.numel() <= 10 or len(rows) == 1
        for row, padded in zip(rows, ids.tolist(), strict=True):
            assert padded == PROMPTS[row] + [0] * (ids.shape[1] - len(PROMPTS[row]))
            seen.append(row)
    assert sorted(seen) == list(range(len(PROMPTS)))


def test_a_model_that_scales_its_logits_is_refused_rather_than_misread() -> None:
    torch.manual_seed(0)
    granite = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)).eval()
    with torch.no_grad():
        granite.lm_head.weight.mul_(50)
    with pytest.raises(ValueError, match="hidden=null"):
        prompt_states(granite, PROMPTS, LAST)


def test_weights_are_read_in_float32_whatever_is_stored(model: Any, tmp_path: Path) -> None:
    rounded = type(model)(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.dtype == torch.float32 and not loaded.training
    torch.testing.assert_close(
        prompt_states(loaded, PROMPTS, LAST), prompt_states(rounded.float().eval(), PROMPTS, LAST)
    )
