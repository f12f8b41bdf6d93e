"""What can be known to be wrong with the base model, or with a trunk that exists already, before anything starts."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlheals_ray.config import InputError, Study
from rlheals_ray.grid.model_size import model_size
from rlheals_ray.models.architecture import NANO, SMOLLM2, configuration, directory_of, stored_configuration

if TYPE_CHECKING:
    from rlheals_ray.models.chat import ChatFormat

NANO_POSITIONS = 256
"""The longest context of the nano model; models/nano.py, which takes torch to import, says the same."""

NANO_HIDDEN = 64
"""The width of the nano model, and so the number of singular values of all its matrices."""

WHOLE_CONTEXT = {"llama", "mistral", "mllama_text_model", "olmo2", "phi3", "qwen2", "qwen3"}
"""Kinds of models (model_type) whose every layer keeps keys and values of the whole context, without a window."""

BLOCK, LARGE_BLOCK = 16, 128
"""Tokens of a block of vLLM's cache, on a GPU and on a CPU. One block is never used."""


def check_base(study: Study) -> None:
    """Raises InputError for a base.model that is not there, is no model, or does not know the task."""
    model = study.base.model
    if model == NANO:
        if study.task.name != "general_points" or study.task.options.get("wording") != "compact":
            raise InputError(
                f"base.model (got 'nano'): the nano model knows only the words of general_points' compact wording, "
                f"not task {study.task.name!r} with wording {study.task.options.get('wording', 'paper')!r}; set "
                "task.wording=compact or name another base.model."
            )
        if study.base.prompt != "chat":
            raise InputError(
                f"base.prompt (got {study.base.prompt!r}): the nano model knows its own turns alone; use "
                "base.prompt=chat or name another base.model."
            )
        return
    if model == SMOLLM2:
        from rlheals_ray.models.smollm2 import gguf_file

        gguf_file()
        return
    directory = Path(model).expanduser()
    if not directory.is_dir():
        raise InputError(
            f"base.model (got {model!r}): there is no such directory; give 'nano', 'smollm2-135m', or the path of a "
            "Hugging Face directory with config.json and safetensors weights. A model of the Hub is fetched first: "
            f"`hf download OWNER/{directory.name} --local-dir {model}`."
        )
    if not (directory / "config.json").exists():
        raise InputError(
            f"base.model (got {model!r}): the directory has no config.json; give a Hugging Face model directory."
        )
    if not any(directory.glob("*.safetensors")):
        raise InputError(
            f"base.model (got {model!r}): the directory has no .safetensors weights; convert pickled weights with "
            "transformers' save_pretrained first."
        )
    if stored_configuration(directory).get("model_type") == "mllama":
        from rlheals_ray.models.checkpoint import Checkpoint
        from rlheals_ray.models.mllama import language_config, language_tensors

        language_config(directory)
        language_tensors(Checkpoint(directory), directory)


def check_weights(study: Study) -> None:
    """Raises InputError for a base.model whose weights are not whole, by their headers, or of a kind that transformers
    knows no causal language model for. After the checks of config.json and tokenizer, which say more where they fail.
    """
    directory = directory_of(study.base.model)
    if directory is None:
        return
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from rlheals_ray.models.checkpoint import Checkpoint
    from rlheals_ray.models.mllama import is_mllama

    try:
        Checkpoint(directory).check()
    except InputError as error:
        raise InputError(f"base.model (got {study.base.model!r}): {error}") from None
    if is_mllama(directory):
        return
    try:
        known = type(AutoConfig.from_pretrained(str(directory))) in MODEL_FOR_CAUSAL_LM_MAPPING
    except (OSError, ValueError, KeyError):  # also a model that brings code of its own, which is never run
        known = False
    if not known:
        kind = stored_configuration(directory).get("model_type")
        raise InputError(
            f"base.model (got {study.base.model!r}): transformers knows no causal language model for its model_type "
            f"{kind!r}, without code of the model's own; give a model such as Llama, Qwen2 or Qwen3."
        )


def token_counter(study: Study) -> Callable[[str], int]:
    """How many tokens a turn has, template included. Raises InputError for a tokenizer without a template."""
    if study.base.model == NANO:
        return lambda text: len(text.split()) + 2  # one word, one token; and the turn's two marks
    chat = chat_format(study)
    return lambda text: len(chat.first_turn(text))


def chat_format(study: Study) -> ChatFormat:
    """The turns of a base.model other than nano. Raises InputError for a tokenizer without a template."""
    return _plain(study.base.model) if study.base.prompt == "plain" else _chat(study.base.model)


def _plain(model: str) -> ChatFormat:
    from rlheals_ray.models.chat import ChatFormat
    from rlheals_ray.models.plain_prompt import plain_format, plain_template

    directory = directory_of(model)
    if directory is not None:
        return plain_format(directory)
    from rlheals_ray.models.smollm2 import tokenizer

    words = copy.copy(tokenizer())
    words.chat_template = plain_template(words)
    return ChatFormat(words)


def _chat(model: str) -> ChatFormat:
    from rlheals_ray.models.chat import ChatFormat

    directory = directory_of(model)
    if directory is None:
        from rlheals_ray.models.smollm2 import chat_format

        return chat_format()
    template = directory / "chat_template.json"
    if template.exists() and stored_configuration(directory).get("model_type") == "mllama":
        import tempfile

        from rlheals_ray.models.mllama import copy_language_companions

        # The template stands where only a processor of images looks for it: see what will be written of it.
        with tempfile.TemporaryDirectory() as scratch:
            copy_language_companions(directory, Path(scratch))
            return ChatFormat.of(scratch)
    return ChatFormat.of(directory)


def positions(model: str) -> int | None:
    """The longest context that a model's configuration allows, where it says so."""
    if model == NANO:
        return NANO_POSITIONS
    found = configuration(model).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_cache(study: Study) -> None:
    """Raises InputError for an engine that would not start: vLLM's cache must hold one sequence of the full length."""
    rollout, model = study.rollout, study.base.model
    if rollout.engine != "vllm" or not _keeps_whole_context(model):
        return
    a_token = model_size(study).kv_per_token * (4 if rollout.dtype == "float32" else 2)
    longest = rollout.max_model_len
    if a_token * (longest + BLOCK) <= rollout.kv_cache_mib << 20:
        return
    enough = -(-a_token * (longest + 2 * LARGE_BLOCK) >> 20)
    raise InputError(
        f"rollout.kv_cache_mib (got {rollout.kv_cache_mib}): one sequence of rollout.max_model_len={longest} tokens "
        f"takes {a_token * longest / 2**20:.0f} MiB of keys and values of base.model {model!r} in {rollout.dtype}, and "
        f"vLLM starts only where it fits; use rollout.kv_cache_mib={enough} (more lets more sequences be decoded side "
        "by side) or a smaller rollout.max_model_len."
    )


def _keeps_whole_context(model: str) -> bool:
    """Whether a token's share of the cache is known: of other kinds, and with windows, vLLM may need less."""
    if model == NANO:
        return True
    config = configuration(model)
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return config.get("model_type") in WHOLE_CONTEXT and not windowed


def ranks(model: str) -> dict[str, int]:
    """Role to the number of singular values of its matrices, as far as the configuration tells."""
    if model == NANO:
        return dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), NANO_HIDDEN)
    config = configuration(model)
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        attention, shared = heads * head, (config.get("num_key_value_heads") or heads) * head
        inner = config["intermediate_size"]
        return {
            **dict.fromkeys(("q", "o"), min(hidden, attention)),
            **dict.fromkeys(("k", "v"), min(hidden, shared)),
            **dict.fromkeys(("gate", "up", "down"), min(hidden, inner)),
        }
    except (KeyError, TypeError):
        return {}


def check_trunk(study: Study) -> None:
    """Raises InputError for an sft.checkpoints that does not hold checkpoints of base.model, naming the step."""
    found = study.sft.checkpoints
    if found is None:
        return
    for step, where in found.items():
        names = {name for _, name, _, _ in _fields(step, where) if name is not None}
        if names - {"seed"}:
            raise InputError(
                f"sft.checkpoints.{step} (got {where!r}): only {{seed}} is filled in; write other braces double, "
                "{{ and }}."
            )
        if not names and len(study.seeds) > 1:
            raise InputError(
                f"sft.checkpoints.{step} (got {where!r}): the study has the seeds {list(study.seeds)}, each with a "
                "trunk of its own; put {seed} into the path, or set seeds=[0]."
            )
    from rlheals_ray.sft.taken_over import check_checkpoint, given, shape_of_base

    base = shape_of_base(study)
    for seed in study.seeds:
        for step, directory in given(study, seed).items():
            check_checkpoint(study, step, directory, base)


def _fields(step: int, where: str) -> list[tuple[Any, ...]]:
    try:
        return list(string.Formatter().parse(where))
    except ValueError as error:
        raise InputError(
            f"sft.checkpoints.{step} (got {where!r}): {error}; {{seed}} stands for the seed, and other braces are "
            "written double."
        ) from None
