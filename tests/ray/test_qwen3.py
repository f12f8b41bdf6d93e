"""A Qwen3 (normed queries and keys, heads wider than the model divides into) is trained, and served by vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlheals_ray.config import Study
from rlheals_ray.lineage import BASE, Trunk
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import get_task
from rlheals_ray.work_queue import Work
from tests.served import log_probabilities, served_log_probabilities
from tests.tiny_qwen import write_tiny_qwen
from tests.toy_lab import Lab

TASK = {"name": "general_points", "cards": 3, "targets": [18, 24], "wording": "paper"}


def write_tiny_qwen3(directory: Path) -> Path:
    """Of the tiny Qwen2 the tokenizer, template and sizes; tied, and 4 heads of 32 in a model of 64."""
    write_tiny_qwen(directory, get_task(**TASK))  # type: ignore[call-overload]
    before = AutoConfig.from_pretrained(directory)
    kept = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "pad_token_id",
        "eos_token_id",
    )
    config = Qwen3Config(
        **{name: getattr(before, name) for name in kept}, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).float().save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_a_trained_qwen3_is_served_with_its_own_log_probabilities(lab: Lab, tmp_path: Path) -> None:
    sft = {"steps": [0, 2], "batch_size": 8, "learning_rate": 1e-2, "packing": True}
    study = Study.model_validate({"task": TASK, "sft": sft, "rl": {"from_steps": [0]}, "edits": []})
    files, trunk = StudyFiles(tmp_path / "study"), Trunk("plain", 0)
    base = write_tiny_qwen3(files.checkpoint(BASE))
    arguments = {
        "study": study,
        "files": files,
        "trunk": trunk,
        "unit": Unit(trunk.name, "qwen3"),
        "base": BASE,
    }
    rows = list(lab.training.run(Work("qwen3", "rlheals_ray.sft.trainer:train_trunk", arguments)))
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    trained = files.checkpoint(trunk.checkpoint(2))
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    assert type(model) is Qwen3ForCausalLM
    assert Checkpoint(trained).names() == Checkpoint(base).names()
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    moved = {
        name.split(".")[-2] for name, tensor in model.state_dict().items() if (tensor - start[name]).any()
    }
    assert moved >= {"q_proj", "k_proj", "q_norm", "k_norm", "embed_tokens"}
    prompt = torch.randint(3, model.config.vocab_size, (100,), generator=torch.Generator().manual_seed(0))
    expected = log_probabilities(model, prompt)
    assert (
        expected - log_probabilities(AutoModelForCausalLM.from_pretrained(base), prompt)
    ).abs().max() > 0.01
    torch.testing.assert_close(
        served_log_probabilities(trained, prompt.tolist()), expected, atol=1e-4, rtol=0
    )
