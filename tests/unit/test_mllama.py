"""The language model inside Mllama computes as a Llama what Mllama computes without an image."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MllamaForConditionalGeneration

from rlheals_ray.config import InputError
from rlheals_ray.models import mllama
from rlheals_ray.models.architecture import base_bytes, configuration, parameters
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.models.mllama import write_language_model
from tests.tiny_mllama import (
    CROSSED,
    LAYERS,
    VOCABULARY,
    blank_mllama,
    in_memory_name,
    peak_memory_of_converting,
    renamed,
    tiny_mllama,
)
from tests.toy_model import write_toy_model

PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MllamaForConditionalGeneration]:
    directory = tmp_path_factory.mktemp("mllama") / "published"
    tokenizer = ChatFormat.of(write_toy_model(directory.with_name("toy"))).tokenizer
    model = tiny_mllama(directory, tokenizer)
    # As in the published directory: a processor of images stands beside the tokenizer.
    (directory / "preprocessor_config.json").write_text('{"image_processor_type": "MllamaImageProcessor"}')
    return directory, model


def written(directory: Path, target: Path) -> Path:
    target.mkdir()
    write_language_model(directory, target)
    return target


def test_the_layouts_are_those_of_the_real_class(
    published: tuple[Path, MllamaForConditionalGeneration],
) -> None:
    directory, model = published
    names = Checkpoint(directory).names()
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert {in_memory_name(name) for name in names} == set(dict(model.named_parameters()))


@pytest.mark.parametrize("layout", ["published", "in memory"])
def test_it_has_the_logits_of_mllama_without_an_image(
    published: tuple[Path, MllamaForConditionalGeneration], layout: str, tmp_path: Path
) -> None:
    directory, model = published
    if layout == "in memory":
        directory = renamed(directory, tmp_path / "renamed", in_memory_name)
    llama = AutoModelForCausalLM.from_pretrained(written(directory, tmp_path / "llama")).eval()
    assert type(llama) is LlamaForCausalLM
    assert llama.config.num_hidden_layers == len(llama.model.layers) == LAYERS - len(CROSSED)
    ids = torch.randint(0, VOCABULARY, (3, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = model(input_ids=ids).logits, llama(input_ids=ids).logits
    assert expected.std() > 0.1, "the logits say something"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_configuration_of_the_published_form_means_the_same(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path
) -> None:
    """Llama-3.2's config.json has rope_theta and rope_scaling apart, and torch_dtype."""
    older = renamed(published[0], tmp_path / "older", lambda name: name)
    config = json.loads((older / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    config["torch_dtype"] = config.pop("dtype")
    (older / "config.json").write_text(json.dumps(config))
    new, old = (mllama.language_config(directory).to_dict() for directory in (published[0], older))
    assert new["rope_parameters"]["rope_type"] == "llama3"
    assert old == new


def test_nothing_of_the_images_is_left(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path
) -> None:
    target = written(published[0], tmp_path / "llama")
    checkpoint = Checkpoint(target)
    checkpoint.check()
    assert set(checkpoint.names()) == set(mllama.llama_shapes(mllama.language_config(published[0])))
    assert checkpoint.shape("model.embed_tokens.weight")[0] == VOCABULARY, "the rows for images are cut"
    assert not list(target.glob("*processor*"))
    assert "vision" not in (target / "config.json").read_text()
    assert ChatFormat.of(target).first_turn("red") == ChatFormat.of(published[0]).first_turn("red")


def test_large_models_become_shards_of_the_same_tensors(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Checkpoint(written(published[0], tmp_path / "one"))
    monkeypatch.setattr(mllama, "SHARD_BYTES", 50_000)
    several = Checkpoint(written(published[0], tmp_path / "several"))
    several.check()
    assert len(several.files()) > 2 and len(one.files()) == 1
    assert one.names() == several.names()
    for name in one.names():
        assert torch.equal(one.tensor(name), several.tensor(name))
    LlamaForCausalLM.from_pretrained(tmp_path / "several")


def test_a_template_that_only_the_image_processor_knew_is_the_tokenizers_now(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(published[0], older)
    template = (older / "chat_template.jinja").read_text()
    (older / "chat_template.jinja").unlink()
    (older / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    target = written(older, tmp_path / "llama")
    assert ChatFormat.of(target).first_turn("red") == ChatFormat.of(published[0]).first_turn("red")


def test_its_size_is_known_without_loading_it(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path
) -> None:
    target = written(published[0], tmp_path / "llama")
    weights = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(target).parameters())
    config = configuration(str(published[0]))
    assert config["num_hidden_layers"] == LAYERS - len(CROSSED)
    assert parameters(config) == pytest.approx(weights, rel=0.01)
    assert base_bytes(str(published[0])) == pytest.approx(
        (target / "model.safetensors").stat().st_size, rel=0.05
    )


@pytest.mark.slow
def test_it_holds_one_tensor_at_a_time(
    published: tuple[Path, MllamaForConditionalGeneration], tmp_path: Path
) -> None:
    width, peaks = 768, {}
    largest = 4 * 4 * width * width
    for layers in (4, 12):
        source = blank_mllama(tmp_path / f"from-{layers}", published[0], layers=layers, hidden=width)
        (tmp_path / f"to-{layers}").mkdir()
        here, there = PROCESSES.Pipe(duplex=False)
        arguments = (str(source), str(tmp_path / f"to-{layers}"), there)
        process = PROCESSES.Process(target=peak_memory_of_converting, args=arguments)
        process.start()
        assert here.poll(120)
        peaks[layers] = here.recv() / largest
        process.join()
    print(f"peak memory in largest tensors, by the model's layers: {peaks}")
    assert all(peak < 5 for peak in peaks.values()), peaks
    assert abs(peaks[12] - peaks[4]) < 0.5, peaks


def without(part: str) -> Callable[[str], str | None]:
    return lambda name: None if part in name else name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("layers.4.mlp.up_proj"), ["model.layers.2.mlp.up_proj.weight", "layer 4 there"]),
        (without("lm_head"), ["lm_head.weight", "not in the checkpoint"]),
        (without("language_model"), ["no tensor of a language model"]),
        (lambda name: name.replace("layers.4", "layers.7"), ["layers.7", "config.json does not have"]),
        (lambda name: name.replace("mlp.up_proj", "mlp.experts"), ["up_proj", "not in the checkpoint"]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    published: tuple[Path, MllamaForConditionalGeneration],
    change: Callable[[str], str | None],
    told: list[str],
    tmp_path: Path,
) -> None:
    broken = renamed(published[0], tmp_path / "broken", change)
    with pytest.raises(InputError) as error:
        written(broken, tmp_path / "llama")
    assert all(part in str(error.value) for part in ["base.model", str(broken), *told])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_size": 128}, ["shape", "config.json asks for"]),
        ({"cross_attention_layers": [9]}, ["cross_attention_layers", "[9]"]),
        ({"cross_attention_layers": None}, ["text_config.cross_attention_layers"]),
        ({"cross_attention_layers": [1]}, ["not in the checkpoint", "layer 3 there"]),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    published: tuple[Path, MllamaForConditionalGeneration],
    change: dict[str, object],
    told: list[str],
    tmp_path: Path,
) -> None:
    other = renamed(published[0], tmp_path / "other", lambda name: name)
    config = json.loads((other / "config.json").read_text())
    config["text_config"] |= change
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        written(other, tmp_path / "llama")
    assert all(part in str(error.value) for part in told)
