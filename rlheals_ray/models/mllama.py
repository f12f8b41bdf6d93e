"""The language model inside Mllama (Llama-3.2-Vision), as a LlamaForCausalLM that transformers and vLLM serve.

Without an image Mllama skips its cross-attention layers, so that what is left is a Llama: of Llama-3.2-11B-Vision
40 - 8 = 32 layers, those of Llama-3.1-8B (the Llama 3 report, arXiv 2407.21783, section 7, trains the image parts
beside a frozen language model). The same tokens get the same logits. Both layouts of names are read: the published
`language_model.model.*`, which transformers 5 writes too, and its in-memory `model.language_model.*`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.architecture import stored_configuration
from rlheals_ray.models.checkpoint import SINGLE_FILE, Checkpoint, raw_bytes
from rlheals_ray.models.checkpoint_writer import copy_companions, shard_name, write_index
from rlheals_ray.models.safetensors_file import DTYPES

SHARD_BYTES = 5 * 10**9
"""A file takes no more tensors once it has this many bytes."""

_LAYOUTS = (
    (re.compile(r"language_model\.model\.(.+)"), "language_model.lm_head.weight"),
    (re.compile(r"model\.language_model\.(.+)"), "lm_head.weight"),
)
"""The language model's tensors but the head, by what follows the prefix; and the head."""
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_KEPT = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act", "vocab_size",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_parameters", "rope_theta",
    "rope_scaling", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What Mllama's text_config and LlamaConfig both know and mean the same by."""


def is_mllama(directory: Path) -> bool:
    """Whether a directory holds Mllama with its images; False where it has no config.json."""
    if not (directory / "config.json").is_file():
        return False
    return stored_configuration(directory).get("model_type") == "mllama"


def language_config(directory: Path) -> LlamaConfig:
    """The configuration of the language model alone. Raises InputError where the directory's lacks something."""
    config = stored_configuration(directory)
    text = config.get("text_config")
    needed = (
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "cross_attention_layers",
    )
    absent = [key for key in needed if not isinstance(text, dict) or text.get(key) is None]
    if not isinstance(text, dict) or absent:
        raise _wrong(directory, f"its config.json has no text_config.{absent[0]}; copy it again")
    crossed, layers = text["cross_attention_layers"], text["num_hidden_layers"]
    if not isinstance(crossed, list) or not set(crossed) < set(range(layers)):
        raise _wrong(
            directory,
            f"text_config.cross_attention_layers is {crossed!r}, which are not some of the layers 0 to "
            f"{layers - 1}; copy config.json again",
        )
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return LlamaConfig(
        **{key: text[key] for key in _KEPT if text.get(key) is not None},
        num_hidden_layers=layers - len(set(crossed)),
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype=dtype or "bfloat16",
    )


def language_tensors(checkpoint: Checkpoint, directory: Path) -> dict[str, str]:
    """Llama's name of each tensor -> its name in the Mllama checkpoint, layers renumbered.

    Raises InputError for a tensor that is absent, of another shape, or not known, by the headers alone.
    """
    text = stored_configuration(directory)["text_config"]
    crossed = set(text["cross_attention_layers"])
    kept = [layer for layer in range(text["num_hidden_layers"]) if layer not in crossed]
    places = {layer: place for place, layer in enumerate(kept)}
    names = checkpoint.names()
    pattern, head = next(
        ((p, h) for p, h in _LAYOUTS if any(p.fullmatch(name) for name in names)), (None, None)
    )
    if pattern is None or head is None:
        raise _wrong(
            directory,
            f"it has no tensor of a language model (language_model.model.* or model.language_model.*) among its "
            f"{len(names)}; give the whole Llama-3.2-Vision directory",
        )
    found = {"lm_head.weight": head} if head in names else {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is None or match[1].endswith("rotary_emb.inv_freq"):
            continue
        layer = _LAYER.fullmatch(match[1])
        if layer is None:
            found[f"model.{match[1]}"] = name
        elif int(layer[1]) in places:
            found[f"model.layers.{places[int(layer[1])]}.{layer[2]}"] = name
        elif int(layer[1]) not in crossed:
            raise _wrong(directory, f"tensor {name!r} is of a layer that its config.json does not have")
    _check(checkpoint, directory, found, kept)
    return found


def write_language_model(directory: Path, target: Path) -> None:
    """Write the language model of the Mllama `directory` into the directory `target`, which the caller publishes.

    One tensor is held at a time, dtypes stay. Tokenizer and chat template are taken over. Raises InputError.
    """
    config = language_config(directory)
    checkpoint = Checkpoint(directory)
    checkpoint.check()
    names = language_tensors(checkpoint, directory)
    copy_language_companions(directory, target)
    entries = {
        name: (checkpoint.entry(old).code, _cut(name, checkpoint.shape(old), config.vocab_size))
        for name, old in names.items()
    }
    shards = _shards(entries)
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = SINGLE_FILE if len(shards) == 1 else shard_name(number, len(shards))
        with (target / file_name).open("wb") as file:
            file.write(_header({name: entries[name] for name in shard}))
            for name in shard:
                tensor = checkpoint.tensor(names[name])
                if name == "model.embed_tokens.weight":
                    tensor = tensor[: config.vocab_size]  # the rows after it stand for images
                file.write(raw_bytes(tensor))
                del tensor
        files |= dict.fromkeys(shard, file_name)
    if len(shards) > 1:
        total = sum(_bytes(code, shape) for code, shape in entries.values())
        write_index(Folder.of(target), files, total)


def copy_language_companions(directory: Path, target: Path) -> None:
    """LlamaConfig, tokenizer and chat template of the language model: what an engine needs to start."""
    copy_companions(directory, target)
    for images in [*target.glob("*processor_config.json"), target / "config.json"]:
        images.unlink(missing_ok=True)
    language_config(directory).save_pretrained(target)
    _keep_template(target)


def _keep_template(target: Path) -> None:
    """The template where a tokenizer looks for it: older directories have it in chat_template.json, a processor's."""
    processor, own = target / "chat_template.json", target / "tokenizer_config.json"
    if not processor.exists() or (target / "chat_template.jinja").exists():
        return
    try:
        known = json.loads(own.read_text(encoding="utf-8")) if own.exists() else {}
        template = json.loads(processor.read_text(encoding="utf-8"))["chat_template"]
    except (ValueError, KeyError, TypeError):
        return  # the tokenizer's own check says what is wrong
    if "chat_template" not in known:
        (target / "chat_template.jinja").write_text(str(template), encoding="utf-8")
    processor.unlink()


def _check(checkpoint: Checkpoint, directory: Path, found: Mapping[str, str], kept: Sequence[int]) -> None:
    """Exactly the tensors of a Llama of this configuration, and their shapes."""
    config = language_config(directory)
    expected = llama_shapes(config)
    for name in sorted(set(expected) - set(found)):
        layer = _LAYER.fullmatch(name.removeprefix("model."))
        where = f" (layer {kept[int(layer[1])]} there)" if layer else ""
        raise _wrong(
            directory, f"the tensor for {name!r}{where} is not in the checkpoint; copy all its files again"
        )
    for name, old in sorted(found.items()):
        if name not in expected:
            raise _wrong(
                directory,
                f"tensor {old!r} has no place in a Llama; is it Llama-3.2-Vision in its own layout?",
            )
        shape = _cut(name, checkpoint.shape(old), config.vocab_size)
        if shape != expected[name]:
            raise _wrong(
                directory,
                f"tensor {old!r} has the shape {list(checkpoint.shape(old))}, where its config.json asks for "
                f"{list(expected[name])}; weights and config.json are of different models",
            )


def llama_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor that a checkpoint of a Llama of this configuration holds."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = config.head_dim or hidden // config.num_attention_heads
    own, shared = (
        config.num_attention_heads * head,
        (config.num_key_value_heads or config.num_attention_heads) * head,
    )
    layer = {
        "self_attn.q_proj": (own, hidden), "self_attn.k_proj": (shared, hidden), "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, own), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{part}.weight": shape
        for number in range(config.num_hidden_layers)
        for part, shape in layer.items()
    }
    embedding = (config.vocab_size, hidden)
    head_of = {} if config.tie_word_embeddings else {"lm_head.weight": embedding}
    return {"model.embed_tokens.weight": embedding, **shapes, "model.norm.weight": (hidden,), **head_of}


def _cut(name: str, shape: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    if name == "model.embed_tokens.weight" and len(shape) == 2 and shape[0] > vocabulary:
        return (vocabulary, shape[1])
    return shape


Sized = tuple[str, tuple[int, ...]]
"""A tensor's dtype code and shape."""


def _bytes(code: str, shape: Iterable[int]) -> int:
    return math.prod(shape) * DTYPES[code].itemsize


def _shards(entries: Mapping[str, Sized]) -> list[list[str]]:
    """The tensors in the order of the model, cut into files."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(entries, key=_order):
        if size >= SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(*entries[name])
    return shards


def _order(name: str) -> tuple[int, int, str]:
    if match := _LAYER.fullmatch(name.removeprefix("model.")):
        return 1, int(match[1]), name
    return (0 if "embed" in name else 2), 0, name


def _header(entries: Mapping[str, Sized]) -> bytes:
    """The head of a safetensors file whose tensors follow in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (code, shape) in entries.items():
        end = at + _bytes(code, shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    return len(text).to_bytes(8, "little") + text


def _wrong(directory: Path, message: str) -> InputError:
    return InputError(f"base.model (got {str(directory)!r}, an Mllama): {message}.")
