"""From the stream to a worker's tensors: who takes what, padded or packed, and what the loss of it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rlheals_ray.config import InputError
from rlheals_ray.sft.batches import Collator, Share, TooLong
from rlheals_ray.sft.data import IGNORE, Example
from rlheals_ray.sft.packing import check_packing
from tests.sharded_work import VOCABULARY, small_llama


def example(length: int, prompt: int, seed: int) -> Example:
    ids = torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(None, ids, [IGNORE] * prompt + ids[prompt:])


EXAMPLES = [example(9, 4, 0), example(5, 2, 1), example(12, 7, 2)]


@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_any_number_of_workers_sees_the_same_global_batches(micro_batch: int | None) -> None:
    updates = range(2, 5)
    alone = list(Share.of(12, micro_batch, 0, 1).positions(100, updates))
    assert alone == list(range(124, 160))
    parts = [list(Share.of(12, micro_batch, rank, 4).positions(100, updates)) for rank in range(4)]
    assert sorted(position for part in parts for position in part) == alone
    assert [part[:3] for part in parts] == [
        [124, 125, 126],
        [127, 128, 129],
        [130, 131, 132],
        [133, 134, 135],
    ]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        Share.of(12, 5, 0, 1)


def losses(model: torch.nn.Module, collator: Collator, examples: list[Example]) -> torch.Tensor:
    batch = collator(examples)
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits[labels != IGNORE], labels[labels != IGNORE], reduction="none")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_have_the_losses_that_they_have_alone(attention: str) -> None:
    model = small_llama()
    model.set_attn_implementation(attention)
    packed = losses(model, Collator(packing=True), EXAMPLES)
    padded = losses(model, Collator(), EXAMPLES)
    alone = torch.cat([losses(model, Collator(), [one]) for one in EXAMPLES])
    assert len(alone) == 5 + 3 + 5
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


def test_a_model_that_keeps_examples_apart_may_pack() -> None:
    model = small_llama().train()
    check_packing(model, EXAMPLES)
    assert model.training


def test_a_model_that_lets_packed_examples_see_each_other_is_refused() -> None:
    model = small_llama()
    forward = model.forward
    # As a model does that makes its own causal mask.
    model.forward = lambda position_ids=None, **named: forward(**named)
    with pytest.raises(InputError, match=r"sft\.packing .* see each other .* use sft\.packing=false"):
        check_packing(model, EXAMPLES)


def test_an_example_that_is_too_long_is_refused() -> None:
    with pytest.raises(TooLong, match=r"sft\.max_length: an example has 12 tokens, 11 are allowed"):
        Collator(longest=11)(EXAMPLES)


def test_weights_reach_every_predicted_token() -> None:
    padded = Collator(weights=lambda examples: [1.0, 2.0, 3.0])(EXAMPLES)
    assert padded["weights"].tolist() == [[1.0], [2.0], [3.0]]
    packed = Collator(packing=True, weights=lambda examples: [1.0, 2.0, 3.0])(EXAMPLES)
    counted = packed["labels"][:, 1:] != IGNORE
    assert packed["weights"][counted].tolist() == [1.0] * 5 + [2.0] * 3 + [3.0] * 5
