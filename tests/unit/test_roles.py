"""Which tensors are which matrices, on the models of transformers themselves; parts of fused ones among them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from torch import nn

from rlheals_ray.config import InputError
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.models.checkpoint_writer import write_checkpoint
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.roles import ROLES, locate, parts, select, split_part

LAYER_ROLES = ["q", "k", "v", "o", "gate", "up", "down"]
SIZES = dict(vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, pad_token_id=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
HEAD = 32 // 4
SHAPES = {
    "q": (32, 32), "k": (2 * HEAD, 32), "v": (2 * HEAD, 32), "o": (32, 32), "gate": (48, 32), "up": (48, 32),
    "down": (32, 48), "embed": (24, 32), "head": (24, 32),
}  # fmt: skip


def on_disk(model: nn.Module, directory: Path) -> Matrices:
    model.save_pretrained(directory)  # type: ignore[operator]
    return Matrices.of(directory)


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        (tf.LlamaConfig, {}),
        (tf.MistralConfig, {}),
        (tf.Qwen2Config, {}),
        (tf.Qwen3Config, {"head_dim": HEAD}),
        (tf.GemmaConfig, {"head_dim": HEAD}),
        (tf.Gemma2Config, {"head_dim": HEAD}),
        (tf.Gemma3TextConfig, {"head_dim": HEAD}),
        (tf.Phi3Config, {}),
        (tf.GlmConfig, {"head_dim": HEAD}),
    ],
    ids=lambda value: getattr(value, "__name__", "") or None,
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_matrix_of_a_model_has_its_role_and_nothing_else_has(
    tmp_path: Path, config: Any, extra: dict[str, int], tied: bool
) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config(**SIZES, **extra, tie_word_embeddings=tied))
    matrices = on_disk(model, tmp_path)
    names = matrices.names(ROLES)
    found = [locate(name) for name in names]
    whole = [(None, "embed")] if tied else [(None, "embed"), (None, "head")]
    assert found == whole + [(layer, role) for layer in (0, 1) for role in LAYER_ROLES]
    for name, place in zip(names, found, strict=True):
        assert place is not None
        assert matrices.shape(name) == SHAPES[place[1]] == tuple(matrices.tensor(name).shape)
    # Together they are all there is of two dimensions: no row is forgotten, none is taken twice.
    stored = {name: matrices.checkpoint.shape(name) for name in matrices.checkpoint.names()}
    rows: dict[str, list[int]] = {}
    for name in names:
        tensor, place_in = matrices.place(name)
        rows.setdefault(tensor, []).extend(range(place_in.start, place_in.stop))
    assert {tensor: sorted(taken) for tensor, taken in rows.items()} == {
        tensor: list(range(shape[0])) for tensor, shape in stored.items() if len(shape) == 2
    }


def test_parts_of_fused_matrices_are_what_the_model_takes_them_for(tmp_path: Path) -> None:
    """Phi-3 run with one part changed: k moves the cached keys alone, v the values; the MLP is linear in up."""
    torch.manual_seed(0)
    model = tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES)).eval()
    matrices = on_disk(model, tmp_path / "from")
    tokens = torch.arange(6).reshape(1, 6)

    def changed(role: str, factor: float) -> tuple[Any, torch.Tensor]:
        """The first layer's cache, and its MLP's output for one input, with a part scaled by a factor."""
        (name,) = matrices.names([role], layers=[0])
        tensor = matrices.place(name)[0]
        whole = matrices.fused(tensor, {name: factor * matrices.tensor(name)})
        write_checkpoint(tmp_path / "to", [(tensor, whole)], matrices.checkpoint, changed=[tensor])
        other = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "to").eval()
        with torch.no_grad():
            cache = other(tokens, use_cache=True).past_key_values.layers[0]
            return cache, other.model.layers[0].mlp(torch.ones(1, 32))

    before, mlp = changed("q", 1.0)
    for role, moved in {"q": set(), "k": {"keys"}, "v": {"values"}}.items():
        after, _ = changed(role, 0.0)
        for kind in ("keys", "values"):
            assert torch.equal(getattr(after, kind), getattr(before, kind)) is (kind not in moved)
            assert kind not in moved or not getattr(after, kind).any()
    torch.testing.assert_close(changed("up", 2.0)[1], 2 * mlp)
    assert not torch.allclose(changed("gate", 2.0)[1], 2 * mlp)


def test_edited_parts_leave_the_rest_of_the_fused_tensor_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    matrices = on_disk(tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES)).to(torch.bfloat16), tmp_path)
    tensor = "model.layers.1.self_attn.qkv_proj.weight"
    new = {f"{tensor}[q]": torch.ones(32, 32), f"{tensor}[v]": torch.zeros(2 * HEAD, 32)}
    whole = matrices.fused(tensor, new)
    assert whole.dtype == torch.bfloat16
    expected = [torch.ones(32, 32), matrices.tensor(f"{tensor}[k]").float(), torch.zeros(2 * HEAD, 32)]
    assert torch.equal(whole.float(), torch.cat(expected))
    assert torch.equal(matrices.fused(tensor, {}), matrices.checkpoint.tensor(tensor))
    with pytest.raises(ValueError, match=r"\[q\].* is no part of"):
        matrices.fused(tensor, {f"{tensor}[q]": torch.ones(3, 32)})


def test_mllama_gives_its_text_layers_only(tmp_path: Path) -> None:
    """Vision tower, projector and cross-attention have no role; the MLPs of cross-attention layers do."""
    text = {key: size for key, size in SIZES.items() if key != "num_hidden_layers"}
    config = tf.MllamaConfig(
        vision_config=dict(
            hidden_size=16, num_hidden_layers=1, num_global_layers=1, attention_heads=2, intermediate_size=16,
            vision_output_dim=32, image_size=28, patch_size=14, intermediate_layers_indices=[0],
        ),
        text_config=dict(**text, num_hidden_layers=3, cross_attention_layers=[1], rope_parameters={
            "rope_type": "default", "rope_theta": 1e4}),
    )  # fmt: skip
    matrices = on_disk(tf.MllamaForConditionalGeneration(config), tmp_path)
    assert any("cross_attn.q_proj" in name for name in matrices.checkpoint.names())
    assert any("vision_model" in name for name in matrices.checkpoint.names())
    places = [locate(name) for name in matrices.names(LAYER_ROLES)]
    own = [(layer, role) for layer in (0, 1, 2) for role in LAYER_ROLES]
    assert places == [place for place in own if place[0] != 1 or place[1] in ("gate", "up", "down")]
    assert [locate(name) for name in matrices.names(["embed", "head"])] == [(None, "embed"), (None, "head")]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.10.self_attn.q_proj.weight", (10, "q")),
        ("language_model.model.layers.3.mlp.down_proj.weight", (3, "down")),
        ("model.language_model.layers.0.self_attn.o_proj.weight", (0, "o")),
        ("model.layers.0.self_attn.qkv_proj.weight[k]", (0, "k")),
        ("model.layers.0.mlp.gate_up_proj.weight[up]", (0, "up")),
        ("language_model.lm_head.weight", (None, "head")),
        ("model.embed_tokens.weight", (None, "embed")),
        ("model.embed_tokens.weight[head]", (None, "head")),
        # Neither biases, norms, whole fused tensors, cross-attention, vision towers nor experts are matrices of a role.
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.layers.0.self_attn.q_norm.weight", None),
        ("model.layers.0.self_attn.qkv_proj.weight", None),
        ("model.layers.0.self_attn.qkv_proj.weight[gate]", None),
        ("model.layers.0.self_attn.q_proj.weight[q]", None),
        ("model.embed_tokens.weight[q]", None),
        ("language_model.model.layers.3.cross_attn.q_proj.weight", None),
        ("vision_model.transformer.layers.0.self_attn.q_proj.weight", None),
        ("model.layers.0.mlp.experts.1.gate_proj.weight", None),
        ("model.layers.0.self_attn.q_proj.weight.scale", None),
    ],
)
def test_names_have_one_place(name: str, place: tuple[int | None, str] | None) -> None:
    assert locate(name) == place


def test_parts_are_named_after_their_tensor() -> None:
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    assert parts(fused) == [f"{fused}[{role}]" for role in "qkv"]
    assert parts("model.layers.0.mlp.up_proj.weight") == ["model.layers.0.mlp.up_proj.weight"]
    assert parts("model.norm.weight") == []
    assert split_part(f"{fused}[q]") == (fused, "q") and split_part(fused) == (fused, None)
    assert select([fused], ["v", "q"]) == [f"{fused}[q]", f"{fused}[v]"]
    assert select([f"{fused}[q]", f"{fused}[k]"], ["k"]) == [f"{fused}[k]"]


def test_a_tied_embedding_is_the_head_where_only_the_head_is_asked_for(tmp_path: Path) -> None:
    tied = on_disk(tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, tie_word_embeddings=True)), tmp_path)
    embedding = "model.embed_tokens.weight"
    assert tied.names(["head"]) == [f"{embedding}[head]"]
    assert tied.names(["embed", "head"]) == tied.names(["embed"]) == [embedding]
    assert torch.equal(tied.tensor(f"{embedding}[head]"), tied.tensor(embedding))
    assert tied.place(f"{embedding}[head]") == (embedding, slice(0, 24))
    assert tied.names(["head"], layers=[0]) == []


def test_what_is_no_matrix_of_numbers_is_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    for tensor, problem in [
        (torch.ones(4), r"has the shape \(4,\); a matrix has two dimensions"),
        (torch.ones(2, 2, 2), r"has the shape \(2, 2, 2\); a matrix has two dimensions"),
        (torch.ones(2, 2, dtype=torch.uint8), r"is stored as torch\.uint8, quantised; convert"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), r"is stored as torch\.float8_e4m3fn, quantised"),
    ]:
        save_file({name: tensor}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=f"tensor '{name}' {problem}"):
            Matrices.of(tmp_path).names(["q"])


def test_fused_tensors_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    save_file({name: torch.ones(12, 4)}, tmp_path / "model.safetensors")
    sizes = {"num_attention_heads": 2, "hidden_size": 4}
    for config, problem in [
        (
            sizes | {"num_key_value_heads": 1},
            r"has 12 rows, but its parts \['q', 'k', 'v'\] have \[4, 2, 2\]",
        ),
        (sizes | {"num_attention_heads": 0}, "config.json lacks the sizes of heads"),
        (sizes | {"head_dim": "x"}, "config.json lacks the sizes of heads"),
        ({}, "config.json lacks the sizes of heads"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=problem):
            Matrices.of(tmp_path).names(["k"])
    for config in (sizes, {"text_config": sizes | {"head_dim": 2}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        matrices = Matrices.of(tmp_path)
        assert [matrices.place(part)[1] for part in matrices.names(["q", "k", "v"])] == [
            slice(0, 4), slice(4, 8), slice(8, 12),
        ]  # fmt: skip
    with pytest.raises(InputError, match="has no part 'up'"):
        Matrices(Checkpoint(tmp_path)).place(f"{name}[up]")
