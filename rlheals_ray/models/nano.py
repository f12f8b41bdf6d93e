"""The nano model: a standard Llama of 130,000 parameters with one token per word.

Two heads of 32, because vLLM's CPU attention starts at a head dimension of 32. The vocabulary is the
closed set of words of general_points' compact wording, plus the base model's own answer styles.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlheals_ray.tasks.wording import compact_vocabulary

SPECIAL = ("<pad>", "<bos>", "<eot>", "<user>", "<assistant>", "<unk>")
STYLES = ("json", "bare", "steps", "check")
"""The base model's answer styles: the study's object, and three plain ones (see nano_corpus.py)."""
STYLE_WORDS = ("use", "get", "is")

CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content }} <eot> <user>"
    "{% else %} {{ message.content }} <assistant>{% endif %}"
    "{% endfor %}"
)


def vocabulary(targets: list[int]) -> list[str]:
    """Every word the nano model knows; a word's index is its token id."""
    words = [*SPECIAL, *compact_vocabulary(targets), *STYLES, *STYLE_WORDS]
    return list(dict.fromkeys(words))


def tokenizer(targets: list[int]) -> PreTrainedTokenizerFast:
    """One token per space-separated word."""
    words = {word: index for index, word in enumerate(vocabulary(targets))}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eot>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def architecture(targets: list[int]) -> LlamaConfig:
    """Hidden 64, 3 layers, MLP 128, untied, RoPE theta 1e4."""
    return LlamaConfig(
        vocab_size=len(vocabulary(targets)),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index("<bos>"),
        eos_token_id=SPECIAL.index("<eot>"),
    )


def untrained(targets: list[int], seed: int) -> LlamaForCausalLM:
    """A freshly initialised nano model, the same for the same seed; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(architecture(targets)).float()


def save(model: LlamaForCausalLM, targets: list[int], directory: Path) -> None:
    """Write a Hugging Face directory: safetensors, configuration, tokenizer."""
    model.save_pretrained(directory)
    tokenizer(targets).save_pretrained(directory)
