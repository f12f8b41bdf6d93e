"""How a conversation becomes token ids, once: the same ids for SFT, for rollouts and for the learner.

The chat template is applied to the new part of a conversation only, and nothing that a model wrote
is ever decoded and encoded again: ids are append-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlheals_ray.config import InputError

# Stands for an assistant's answer while the template's text around an answer is found out: a character
# for private use, which no prompt or reply holds.
_ANSWER = "\ue000"


def read_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory; raises InputError when it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(str(directory))
    except Exception as error:  # the tokenizers library raises bare exceptions for damaged files
        cause = str(error).strip().partition("\n")[0].rstrip(" :.")
        raise InputError(
            f"base.model: the tokenizer in {str(directory)!r} cannot be read ({cause}); copy the model's "
            "tokenizer files again."
        ) from None


@dataclass(frozen=True)
class ChatFormat:
    """Token ids of prompts, answers and follow-up turns for one tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, directory: str | Path) -> ChatFormat:
        """The format of a Hugging Face directory; raises InputError when it has no tokenizer or chat template."""
        tokenizer = read_tokenizer(directory)
        if not tokenizer.chat_template:
            raise InputError(
                f"base.model: the tokenizer in {str(directory)!r} has no chat template; use an instruction-tuned "
                "model, add a chat_template to its tokenizer_config.json, or set base.prompt=plain."
            )
        return cls(tokenizer)

    def first_turn(self, prompt: str) -> list[int]:
        """Ids of the conversation's opening, up to where the model begins to write."""
        return self._ids(self._render([("user", prompt)]))

    def next_turn(self, reply: str, *, ended: bool) -> list[int]:
        """Ids that follow an answer: the user's reply, up to where the model writes again.

        `ended` says whether the answer closed itself with its end-of-turn token; a truncated answer
        has it appended here, as part of the environment's tokens.
        """
        text = self._render([("user", "x"), ("assistant", _ANSWER), ("user", reply)])
        ids = self._ids(text.rpartition(_ANSWER)[2].lstrip(" "))
        return ids[1:] if ended and ids[0] in self.stop_ids else ids

    def completion(self, answer: str) -> list[int]:
        """Ids of a whole answer with its end of turn: an SFT target."""
        return [*self._ids(answer), self._end_of_turn]

    def answer(self, ids: list[int]) -> str:
        """The text of generated ids, without their end of turn."""
        while ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""
        return frozenset({self._end_of_turn, self.tokenizer.eos_token_id} - {None})

    @cached_property
    def _end_of_turn(self) -> int:
        text = self._render([("user", "x"), ("assistant", _ANSWER), ("user", "x")])
        return self._ids(text.rpartition(_ANSWER)[2].lstrip(" "))[0]

    def _render(self, turns: list[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # the same ids in a third of the time
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
