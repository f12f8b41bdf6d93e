"""Forward KL along the base's answers, against the enumeration of every answer that there is."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlheals_ray.evaluation import shift
from rlheals_ray.evaluation.hidden_states import load_model
from rlheals_ray.evaluation.shift import Reference, Written, forward_kl

VOCABULARY, END, LIMIT = 4, 0, 3
PROMPT = [1, 3, 2]


def write_model(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=bool(seed % 2),
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"), 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(write_model(tmp_path_factory.mktemp("other"), 2))


@pytest.fixture(scope="module")
def answers() -> list[list[int]]:
    """Every answer: up to its end of turn, or cut off at the limit."""
    ended = [[*a, END] for n in range(LIMIT) for a in product(range(1, VOCABULARY), repeat=n)]
    return ended + [list(a) for a in product(range(1, VOCABULARY), repeat=LIMIT)]


@torch.no_grad()
def log_probability(model: Any, answer: list[int]) -> float:
    """log π(answer | prompt), token after token, each by a forward pass of its own."""
    return sum(
        model(torch.tensor([PROMPT + answer[:t]])).logits[0, -1].double().log_softmax(-1)[token].item()
        for t, token in enumerate(answer)
    )


def written(answers: list[list[int]]) -> list[Written]:
    return [(PROMPT, answer) for answer in answers]


def test_its_mean_over_the_bases_answers_is_the_kl_of_whole_answers(
    base: Path, model: Any, answers: list[list[int]]
) -> None:
    log_p, log_q = (
        np.array([log_probability(of, answer) for answer in answers]) for of in (load_model(base), model)
    )
    p = np.exp(log_p)
    assert p.sum() == pytest.approx(1, abs=1e-6)
    exact = float(p @ (log_p - log_q))
    assert exact > 0.1
    along = forward_kl(Reference.of(base, written(answers)), model, written(answers)).numpy()
    assert p @ along == pytest.approx(exact, abs=1e-5)

    # And sampled, as a study does it: near the same value, with less spread than the plain log ratio.
    drawn = np.random.default_rng(0).choice(len(answers), 4000, p=p / p.sum())
    error = 5 * along[drawn].std() / np.sqrt(len(drawn))
    assert along[drawn].mean() == pytest.approx(exact, abs=error)
    assert along.min() >= 0
    assert along[drawn].std() < (log_p - log_q)[drawn].std()


def test_the_base_is_at_no_distance_from_itself_to_the_last_bit(base: Path, answers: list[list[int]]) -> None:
    found = forward_kl(Reference.of(base, written(answers)), load_model(base), written(answers))
    assert found.eq(0).all()


def test_logits_are_formed_in_chunks_of_bounded_size(
    base: Path, model: Any, answers: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = Reference.of(base, written(answers))
    whole = forward_kl(reference, model, written(answers))
    rows: list[int] = []
    monkeypatch.setattr(shift, "LOGITS", 5 * VOCABULARY)
    reference.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    torch.testing.assert_close(forward_kl(reference, model, written(answers)), whole)
    assert max(rows) == 5 and sum(rows) == sum(map(len, answers))
