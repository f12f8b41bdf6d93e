"""vLLM in a process of its own: it cannot stop threads or free its memory in that of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

SERVE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, max_model_len=128,
          max_num_seqs=1, disable_log_stats=True, skip_tokenizer_init=True)
asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
(answer,) = llm.generate(TokensPrompt(prompt_token_ids=json.loads(sys.argv[2])), asked, use_tqdm=False)
print("found", json.dumps([list(token.values())[0].logprob for token in answer.prompt_logprobs[1:]]))
"""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def served_log_probabilities(directory: Path, prompt: Sequence[int]) -> torch.Tensor:
    """log p of every token of `prompt` but the first, as vLLM serves the model of a directory, float32."""
    served = subprocess.run(
        [sys.executable, "-c", SERVE, str(directory), json.dumps(list(prompt))],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr[-3000:]
    line = next(line for line in served.stdout.splitlines() if line.startswith("found "))
    return torch.tensor(json.loads(line.removeprefix("found ")))


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, prompt: torch.Tensor) -> torch.Tensor:
    """The same of a model of transformers."""
    every = model(input_ids=prompt[None]).logits[0, :-1].log_softmax(-1)
    return every.gather(1, prompt[1:, None])[:, 0]
