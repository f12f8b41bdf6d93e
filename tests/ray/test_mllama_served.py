"""vLLM serves the language model of an Mllama with Mllama's own log-probabilities, scaled RoPE included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlheals_ray.models.mllama import write_language_model
from tests.served import log_probabilities, served_log_probabilities
from tests.tiny_mllama import VOCABULARY, tiny_mllama


@pytest.mark.slow
def test_vllm_serves_it(tmp_path: Path) -> None:
    mllama = tiny_mllama(tmp_path / "mllama")
    (tmp_path / "llama").mkdir()
    write_language_model(tmp_path / "mllama", tmp_path / "llama")
    prompt = torch.randint(3, VOCABULARY, (100,), generator=torch.Generator().manual_seed(0))
    served = served_log_probabilities(tmp_path / "llama", prompt.tolist())
    torch.testing.assert_close(served, log_probabilities(mllama, prompt), atol=1e-4, rtol=0)
