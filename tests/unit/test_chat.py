"""A conversation grows by appending: its ids are those of the template over the whole conversation."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlheals_ray.config import InputError
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou give an ANSWER.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def bytes_with(template: str, special: list[str], eos: str) -> ChatFormat:
    """One token per byte and per special token: only the template's own text can go wrong."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, additional_special_tokens=special)
    fast.chat_template = template
    return ChatFormat(fast)


PROMPT, ANSWER, REPLY, SECOND = (
    "make 24 rule J 10 Q 10 K 10 cards A 4 6 reply",
    '{"cards":[ A 4 6 ],"number":[ 1 4 6 ],"formula":" 4 * 6 * 1 "}',
    "failed illegal",
    "4 * 6 * 1",
)


@pytest.fixture(params=["nano", "chatml", "llama3"])
def form(request: pytest.FixtureRequest) -> ChatFormat:
    return {
        "nano": lambda: ChatFormat(nano.tokenizer([18, 24])),
        "chatml": lambda: bytes_with(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        "llama3": lambda: bytes_with(
            LLAMA3,
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
            "<|eot_id|>",
        ),
    }[request.param]()


def whole(form: ChatFormat, *contents: str) -> list[int]:
    """Ids of a whole conversation, up to where the model writes again, by the tokenizer itself."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    text = form.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(form.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_first_turn_is_the_template_s(form: ChatFormat) -> None:
    assert form.first_turn(PROMPT) == whole(form, PROMPT)


def test_turns_appended_are_the_whole_conversation(form: ChatFormat) -> None:
    ids = form.first_turn(PROMPT)
    ids = ids + form.completion(ANSWER) + form.next_turn(REPLY, ended=True)
    assert ids == whole(form, PROMPT, ANSWER, REPLY)
    ids = ids + form.completion(SECOND) + form.next_turn(REPLY, ended=True)
    assert ids == whole(form, PROMPT, ANSWER, REPLY, SECOND, REPLY)


def test_a_truncated_answer_is_ended_by_the_environment(form: ChatFormat) -> None:
    answer = form.completion(ANSWER)[:-1]
    ids = form.first_turn(PROMPT) + answer + form.next_turn(REPLY, ended=False)
    assert ids == whole(form, PROMPT, ANSWER, REPLY)
    assert form.next_turn(REPLY, ended=False)[0] in form.stop_ids


def test_an_answer_is_read_back_as_it_was_written(form: ChatFormat) -> None:
    ids = form.completion(ANSWER)
    assert ids[-1] in form.stop_ids and not form.stop_ids & set(ids[:-1])
    assert form.answer(ids) == ANSWER
    assert form.answer(ids[:-1]) == ANSWER
    assert form.answer(ids[-1:]) == form.answer([]) == ""


def test_a_reply_may_hold_any_word() -> None:
    form = bytes_with(CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    for reply in ("Your ANSWER is wrong.", "x", "", "answer"):
        ids = form.first_turn(PROMPT) + form.completion(ANSWER) + form.next_turn(reply, ended=True)
        assert ids == whole(form, PROMPT, ANSWER, reply)


def test_a_saved_tokenizer_gives_the_same_format(tmp_path: Path) -> None:
    nano.tokenizer([18, 24]).save_pretrained(tmp_path)
    saved, made = ChatFormat.of(tmp_path), ChatFormat(nano.tokenizer([18, 24]))
    assert saved.first_turn(PROMPT) == made.first_turn(PROMPT)
    assert saved.next_turn(REPLY, ended=False) == made.next_turn(REPLY, ended=False)
    assert saved.completion(ANSWER) == made.completion(ANSWER)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    plain = nano.tokenizer([24])
    plain.chat_template = None
    plain.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"base\.model.*no chat template.*instruction-tuned"):
        ChatFormat.of(tmp_path)


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"tokenizer.json": "[]"}])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in ({"config.json": '{"model_type": "llama"}'} | files).items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"^base\.model: the tokenizer in .* cannot be read \(.+\); copy"):
        ChatFormat.of(tmp_path)
