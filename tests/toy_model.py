"""A tiny untrained Llama that knows the words of the toy task: a model of one's own (`base.model=DIR`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.toy_task import WORDS

SPECIAL = ("<pad>", "<s>", "<end>", "<user>", "<model>", "<unk>")
TEMPLATE = (
    "<s>{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content }} <end>"
    "{% else %} <user> {{ message.content }} <model>{% endif %}"
    "{% endfor %}"
)


def write_toy_model(
    directory: Path,
    *,
    seed: int = 0,
    layers: int = 1,
    vocabulary: Sequence[str] = WORDS,
    positions: int = 64,
) -> Path:
    """Write a Hugging Face directory: config, tokenizer with a chat template, float32 safetensors."""
    words = {word: index for index, word in enumerate([*SPECIAL, *vocabulary])}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<model>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=words["<pad>"],
        bos_token_id=words["<s>"],
        eos_token_id=words["<end>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
