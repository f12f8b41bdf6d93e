"""vLLM itself, by its own loader, serves what the writer wrote: shards with an index, and tensors file by file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.models.checkpoint_writer import copy_companions, shard_name, write_checkpoint, write_index
from tests.toy_model import write_toy_model

PROMPT = [4, 6, 7, 8, 9, 5, 7]

# In a process of its own: vLLM cannot stop threads or free its memory in this one.
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

found, engines = [], []  # all kept: an engine that goes takes the process group of the next one along
for directory in sys.argv[2:]:
    llm = LLM(directory, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20, max_model_len=32,
              max_num_seqs=1, disable_log_stats=True, skip_tokenizer_init=True)
    engines.append(llm)
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (answer,) = llm.generate(TokensPrompt(prompt_token_ids=json.loads(sys.argv[1])), asked, use_tqdm=False)
    found.append([list(token.values())[0].logprob for token in answer.prompt_logprobs[1:]])
print("found", json.dumps(found))
"""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


@pytest.mark.slow
def test_vllm_and_transformers_load_written_checkpoints_alike(tmp_path: Path) -> None:
    write_toy_model(tmp_path / "one", layers=2)
    LlamaForCausalLM.from_pretrained(tmp_path / "one").save_pretrained(
        tmp_path / "from", max_shard_size="64KB"
    )
    source = Checkpoint(tmp_path / "from")
    assert len(source.files()) > 2
    changed = ["model.layers.1.mlp.up_proj.weight"]
    new = {name: 3 * source.tensor(name) for name in changed}
    write_checkpoint(tmp_path / "sharded", new.items(), source, changed=changed, link=True)

    pieces = Folder.of(tmp_path / "pieces")
    copy_companions(tmp_path / "from", pieces)
    files = {name: shard_name(i, len(source.names())) for i, name in enumerate(source.names(), start=1)}
    for name, file in files.items():
        save_file(
            {name: new.get(name, source.tensor(name)).clone()}, tmp_path / "pieces" / file, {"format": "pt"}
        )
    write_index(pieces, files, sum(source.tensor(name).nbytes for name in files))

    directories = [tmp_path / "sharded", tmp_path / "pieces"]
    served = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(PROMPT), *map(str, directories)],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr[-3000:]
    line = next(line for line in served.stdout.splitlines() if line.startswith("found "))
    for directory, logprobs in zip(directories, json.loads(line.removeprefix("found ")), strict=True):
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        with torch.no_grad():
            log_probabilities = model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)
        expected = log_probabilities.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-4, rtol=0)
