"""Recipe lora: what is trained, and what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlheals_ray.config import InputError, SFTSettings, Study
from rlheals_ray.sft.recipes import RecipeContext, make_recipe
from rlheals_ray.sft.recipes.lora import Lora
from tests.sharded_work import small_llama, tokens


def recipe(start: Path, **settings: object) -> Lora:
    sft = SFTSettings.model_validate({"recipe": "lora", "lora": {"rank": 4, "alpha": 8, **settings}})
    nothing: Any = None
    context = RecipeContext(
        Study(sft=sft), nothing, start, nothing, first_position=0, updates=1, seed=0, rank=0, workers=1
    )
    made = make_recipe("lora", context)
    assert isinstance(made, Lora)
    return made


@pytest.fixture
def start(tmp_path: Path) -> Path:
    small_llama(tied=True).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_a_published_checkpoint_is_the_whole_model_with_the_adapters_merged(
    start: Path, tmp_path: Path
) -> None:
    lora = recipe(start)
    model = lora.wrap(AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        model(input_ids=tokens(step), labels=tokens(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    target = tmp_path / "published"
    target.mkdir()
    lora.publish(model, tmp_path / "nothing", target)

    published = AutoModelForCausalLM.from_pretrained(target)
    assert "peft" not in type(published).__module__ and (target / "model.safetensors").exists()
    assert not list(target.glob("adapter*"))
    begun = AutoModelForCausalLM.from_pretrained(start)
    with torch.inference_mode():
        ours, theirs, before = (m.eval()(input_ids=tokens(9)).logits for m in (published, model, begun))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert (theirs - before).abs().max() > 0.1
    # Publishing leaves the model that is trained as it was.
    with torch.inference_mode():
        assert torch.equal(model.eval()(input_ids=tokens(9)).logits, theirs)


def test_the_adapters_are_on_the_matrices_of_the_roles(start: Path) -> None:
    model = recipe(start, roles=["q", "down"]).wrap(AutoModelForCausalLM.from_pretrained(start))
    trained = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "down_proj"}


def test_every_worker_begins_with_the_same_adapters(start: Path) -> None:
    one, other = (recipe(start).wrap(AutoModelForCausalLM.from_pretrained(start)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_model_without_such_matrices_is_refused(start: Path) -> None:
    with pytest.raises(InputError, match=r"sft\.lora\.roles .* has no matrices of these roles"):
        recipe(start).wrap(torch.nn.Sequential(torch.nn.Linear(2, 2)))
