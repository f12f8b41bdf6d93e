"""A chat template for models that have none: base.prompt=plain.

Prompt, line break, answer, end-of-text token; a later turn's reply follows likewise. As a template beside the tokenizer
it is what SFT, RL, probes and engines of a study all read, and nothing else needs to know of it.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlheals_ray.config import InputError
from rlheals_ray.models.chat import ChatFormat, read_tokenizer

_TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template for one tokenizer: it begins with the token that the tokenizer itself puts first, if any.

    Raises InputError for a tokenizer without an end-of-text token, by which an answer would have no end.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            "base.prompt (got 'plain'): the tokenizer of base.model has no eos_token, by which an answer ends; name "
            "one in its tokenizer_config.json."
        )
    first = tokenizer("x")["input_ids"][:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + _TEMPLATE


def plain_format(directory: Path) -> ChatFormat:
    """How a model is prompted plainly. Raises InputError."""
    tokenizer = read_tokenizer(directory)
    tokenizer.chat_template = plain_template(tokenizer)
    return ChatFormat(tokenizer)


def write_plain_template(directory: Path) -> None:
    """Make the plain template that of the tokenizer in `directory`. Raises InputError."""
    tokenizer = read_tokenizer(directory)
    tokenizer.chat_template = plain_template(tokenizer)
    for old in ("chat_template.jinja", "chat_template.json"):
        (directory / old).unlink(missing_ok=True)
    tokenizer.save_pretrained(directory)
