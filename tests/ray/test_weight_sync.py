"""Weights through Ray's object store: bit for bit, one storage once, a bucket at a time, and verified for real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaForCausalLM

from rlheals_ray.config import RolloutSettings, TaskSettings
from rlheals_ray.models import nano
from rlheals_ray.need import Need
from rlheals_ray.rollout.engine import Engine
from rlheals_ray.rollout.episode import Weights, WrongWeights
from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
from rlheals_ray.rollout.load import Load, ObjectStoreLoad
from rlheals_ray.rollout.transformers_engine import TransformersEngine
from rlheals_ray.rollout.verification import Expected, expected_of
from rlheals_ray.rollout.weight_sync import ObjectStoreSync, named_tensors

TARGETS = [18, 24]
SETTINGS = RolloutSettings(verify_weights=True)
TASK = TaskSettings.model_validate(
    {"name": "general_points", "cards": 3, "targets": TARGETS, "wording": "compact"}
)


class Recorder:
    """Takes a load as an engine would, and keeps a copy."""

    def __init__(self) -> None:
        self.received: list[tuple[str, torch.Tensor]] = []

    def load_weights(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.received = [(name, tensor.clone()) for name, tensor in tensors]


@ray.remote(num_cpus=0)
def received(load: Load) -> dict[str, torch.Tensor]:
    """What arrives in another process."""
    recorder = Recorder()
    load.into(recorder, 0)  # type: ignore[arg-type]  # (the part of an engine that a load needs)
    assert len(recorder.received) == len(dict(recorder.received)), "a tensor came twice"
    return dict(recorder.received)


def nano_model(seed: int, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = nano.architecture(TARGETS)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    for name, weight in model.named_parameters():
        weight.data.mul_(1 if "norm" in name else 5 if "embed" in name or "head" in name else 10)
    return model


def expected(model: LlamaForCausalLM) -> Expected:
    return expected_of(model, SETTINGS)


def sent_bytes(load: ObjectStoreLoad) -> int:
    return sum(array.nbytes for reference in load.buckets for array in ray.get(reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_arrives_bit_for_bit_and_one_storage_is_sent_once(
    ray_cluster: None, tied: bool, dtype: torch.dtype
) -> None:
    model = nano_model(0, tied=tied, dtype=dtype)
    load = ObjectStoreSync(checksums=True).publish(named_tensors(model))
    arrived = ray.get(received.remote(load))
    assert arrived.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert arrived[name].dtype == dtype and torch.equal(arrived[name], tensor), name
    assert sent_bytes(load) == sum(parameter.nbytes for parameter in model.parameters())


def test_what_an_engine_would_round_is_rounded_before_it_is_sent(ray_cluster: None) -> None:
    model = nano_model(0)
    load = ObjectStoreSync(dtype=torch.bfloat16).publish(
        [*named_tensors(model), ("counts", torch.tensor([1]))]
    )
    arrived = ray.get(received.remote(load))
    assert torch.equal(arrived.pop("counts"), torch.tensor([1]))
    assert all(torch.equal(arrived[name], tensor.bfloat16()) for name, tensor in model.state_dict().items())
    assert sent_bytes(load) == 8 + sum(2 * parameter.numel() for parameter in model.parameters())


def test_views_scalars_and_empty_tensors_arrive_too(ray_cluster: None) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    sent = {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "half of it": base[:2],
        "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
        "counts": torch.tensor([1, 2, 3]),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 5),
    }
    arrived = ray.get(received.remote(ObjectStoreSync(checksums=True).publish(sent.items())))
    assert arrived.keys() == sent.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in sent.items())


def test_gathered_tensors_go_a_bucket_at_a_time_and_are_never_taken_for_one_another(
    ray_cluster: None,
) -> None:
    """Lazily made tensors are freed while others are made, often at the very same address."""
    storages: list[StorageWeakRef] = []

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for index in range(40):
            tensor = torch.full((1000,), float(index))
            storages.append(StorageWeakRef(tensor.untyped_storage()))
            assert sum(not storage.expired() for storage in storages) <= 4
            yield f"tensor {index}", tensor

    load = ObjectStoreSync(bucket_bytes=10_000).publish(gathered())
    assert [len(bucket) for bucket in load.sent] == [2] * 20
    arrived = ray.get(received.remote(load))
    assert all((arrived[f"tensor {index}"] == index).all() for index in range(40))
    assert len(arrived) == 40


def test_the_store_has_its_memory_back_when_the_last_holder_lets_go(ray_cluster: None) -> None:
    counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    load = ObjectStoreSync().publish(named_tensors(nano_model(0)))
    [key] = [reference.hex().encode() for reference in load.buckets]
    ray.get(received.remote(load))
    assert key in counts(), "the learner may still need it: a replaced generator loads again"
    del load
    assert key not in counts()


def test_one_flipped_bit_on_the_way_is_noticed(ray_cluster: None) -> None:
    load = ObjectStoreSync(checksums=True).publish(named_tensors(nano_model(0)))
    arrays = [array.copy() for array in ray.get(load.buckets[0])]
    arrays[4][1234] ^= 1
    with pytest.raises(WrongWeights, match=f"'{load.sent[0][4].name}' did not arrive as it was sent"):
        replace(load, buckets=(ray.put(arrays),)).into(Recorder(), 0)  # type: ignore[arg-type]
    load.into(Recorder(), 0)  # type: ignore[arg-type]


def test_a_reader_does_not_wait_for_ever(ray_cluster: None) -> None:
    @ray.remote(num_cpus=1000)
    def never() -> None: ...

    load = replace(ObjectStoreSync(0.2).publish([("w", torch.ones(1))]), buckets=(never.remote(),))
    with pytest.raises(TimeoutError, match=r"part 1 of 1 .* within rollout\.sync_seconds=0\.2 s"):
        load.into(Recorder(), 0)  # type: ignore[arg-type]


def test_an_engine_that_kept_another_head_is_noticed(ray_cluster: None, tmp_path: Path) -> None:
    old, new = nano_model(0), nano_model(1)
    nano.save(old, TARGETS, tmp_path)
    engine = TransformersEngine(tmp_path, SETTINGS, ())
    sync = ObjectStoreSync(checksums=True)
    sync.publish(named_tensors(new), expected(new)).into(engine, 0)
    stale = {**new.state_dict(), "lm_head.weight": old.lm_head.weight}
    with pytest.raises(WrongWeights, match="differ, by up to"):
        sync.publish(stale.items(), expected(new)).into(engine, 0)
    flipped = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    flipped["model.layers.1.mlp.up_proj.weight"][3, 5] *= -1
    with pytest.raises(WrongWeights, match="differ, by up to"):
        sync.publish(flipped.items(), expected(new)).into(engine, 0)


@dataclass(frozen=True)
class Faulty:
    """A load into a vLLM engine that has one of its known faults."""

    load: Load
    fault: str

    def into(self, engine: Any, index: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if self.fault == "stale prefix cache":
                patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
            else:
                from rlheals_ray.rollout.vllm_engine import WeightReceiver

                renew = WeightReceiver.load

                def load(worker: WeightReceiver, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
                    head = worker.model_runner.get_model().lm_head
                    old = head.weight.detach().clone()
                    renew(worker, tensors)
                    # What a head packed for the CPU's kernels is when nobody packs it again.
                    head.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, old, bias)

                patch.setattr(WeightReceiver, "load", load)
            self.load.into(engine, index)


@pytest.fixture(scope="module")
def tied_vllm(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A warm vLLM generator of a model with tied embeddings, and its directory."""
    directory = tmp_path_factory.mktemp("tied")
    nano.save(nano_model(0, tied=True), TARGETS, directory)
    generator = start_generator(GeneratorSettings(str(directory), TASK, SETTINGS), threads=1, need=Need())
    yield generator, directory
    ray.kill(generator)


def test_what_vllm_serves_is_verified_and_its_known_faults_are_noticed(
    tied_vllm: tuple[Any, Path],
) -> None:
    generator, _ = tied_vllm
    models = [nano_model(seed, tied=True) for seed in (0, 1)]
    version = 0

    def load(model: LlamaForCausalLM, fault: str | None = None) -> None:
        nonlocal version
        version += 1
        published: Load = ObjectStoreSync(checksums=True).publish(named_tensors(model), expected(model))
        given = Faulty(published, fault) if fault else published
        ray.get(generator.load.remote(given, Weights("verified", version)))

    load(models[0])
    load(models[1])
    with pytest.raises(WrongWeights, match="cached prefix: its keys and values are stale"):
        load(models[0], "stale prefix cache")
    load(models[0])
    with pytest.raises(WrongWeights, match="differ, by up to"):
        load(models[1], "stale head")
    load(models[1])


@dataclass(frozen=True)
class Agreement:
    """A load after which the engine must agree with another one, as closely as `expected` says."""

    load: Load
    expected: Expected

    def into(self, engine: Engine, index: int) -> None:
        self.load.into(engine, index)
        self.expected.check(engine)


def test_both_engines_give_the_same_tokens_the_same_log_probabilities(tied_vllm: tuple[Any, Path]) -> None:
    generator, directory = tied_vllm
    model = nano_model(2, tied=True)
    other = TransformersEngine(directory, SETTINGS, ())
    load = ObjectStoreSync().publish(named_tensors(model))
    load.into(other, 0)
    for seed in range(5):
        ids = tuple(
            np.random.default_rng(seed).integers(model.config.vocab_size, size=40 * (seed + 1)).tolist()
        )
        agreement = Agreement(load, Expected(ids, tuple(other.score(ids)), tolerance=1e-3))
        ray.get(generator.load.remote(agreement, Weights("agree", seed)))
