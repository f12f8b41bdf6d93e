"""vLLM serves the language model of an Mllama with Mllama's own log-probabilities, scaled RoPE included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlheals_ray.models.mllama import write_language_model
from tests.tiny_mllama import VOCABULARY, tiny_mllama

# In a process of its own: vLLM cannot stop threads or free its memory in this one.
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


@pytest.mark.slow
def test_vllm_serves_it(tmp_path: Path) -> None:
    mllama = tiny_mllama(tmp_path / "mllama")
    (tmp_path / "llama").mkdir()
    write_language_model(tmp_path / "mllama", tmp_path / "llama")
    prompt = torch.randint(3, VOCABULARY, (100,), generator=torch.Generator().manual_seed(0))
    served = subprocess.run(
        [sys.executable, "-c", SERVE, str(tmp_path / "llama"), json.dumps(prompt.tolist())],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr[-3000:]
    line = next(line for line in served.stdout.splitlines() if line.startswith("found "))
    with torch.no_grad():
        log_probabilities = mllama(input_ids=prompt[None]).logits[0, :-1].log_softmax(-1)
    expected = log_probabilities.gather(1, prompt[1:, None])[:, 0]
    torch.testing.assert_close(
        torch.tensor(json.loads(line.removeprefix("found "))), expected, atol=1e-4, rtol=0
    )
