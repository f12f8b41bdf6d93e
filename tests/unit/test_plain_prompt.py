"""A model without a chat template is prompted plainly, alike by everything that reads its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlheals_ray.config import InputError, load_study
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.plain_prompt import plain_format, write_plain_template
from rlheals_ray.tasks import get_task
from tests.tiny_qwen import write_tiny_qwen


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Qwen2 whose tokenizer has no chat template."""
    task = get_task("general_points", cards=3, targets=[18, 24], wording="paper")
    directory = write_tiny_qwen(tmp_path / "model", task)
    (directory / "chat_template.jinja").unlink()
    return directory


def begins_with_a_token(directory: Path) -> None:
    """As Llama's tokenizers do."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    core = tokenizer.backend_tokenizer
    first = "<|endoftext|>"
    core.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, core.token_to_id(first))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=first, pad_token=first, eos_token="<|im_end|>"
    ).save_pretrained(directory)


def of(model: Path, *more: str) -> list[str]:
    storage = model.parent / "runs"
    return [
        f"base.model={model}",
        f"storage={storage}",
        "task.wording=paper",
        "rollout.max_model_len=512",
        *more,
    ]


@pytest.mark.parametrize("begins", [False, True])
def test_turns_are_the_text_itself_between_the_tokenizers_own_marks(model: Path, begins: bool) -> None:
    if begins:
        begins_with_a_token(model)
    write_plain_template(model)
    chat, tokenizer = ChatFormat.of(model), AutoTokenizer.from_pretrained(model)
    first = "<|endoftext|>" if begins else ""
    assert tokenizer.decode(chat.first_turn("Make 24.")) == f"{first}Make 24.\n"
    assert tokenizer.decode(chat.completion("6*4")) == "6*4<|im_end|>"
    assert chat.stop_ids == {tokenizer.eos_token_id}
    assert tokenizer.decode(chat.next_turn("Failed.", ended=True)) == "Failed.\n"
    assert tokenizer.decode(chat.next_turn("Failed.", ended=False)) == "<|im_end|>Failed.\n"


def test_a_template_that_was_there_gives_way(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages[0].content }} in another way")
    write_plain_template(model)
    assert ChatFormat.of(model).first_turn("Make 24.") == plain_format(model).first_turn("Make 24.")


def test_without_a_template_the_remedy_is_named_and_works(model: Path) -> None:
    with pytest.raises(InputError, match=r"no chat template; .*base\.prompt=plain"):
        preflight(load_study("tiny", of(model)))
    preflight(load_study("tiny", of(model, "base.prompt=plain")))
    with pytest.raises(InputError, match=r"base\.prompt \(got 'plain'\): the nano model"):
        preflight(load_study("tiny", ["base.prompt=plain"]))


def test_another_prompt_is_another_base(model: Path) -> None:
    chat, plain = (
        StudyUnits(load_study("tiny", of(model, f"base.prompt={p}"))).base for p in ("chat", "plain")
    )
    assert chat.fingerprint != plain.fingerprint
