"""Seconds that weights take from a learner to its generators, beside a plain memory copy of as many bytes.

Transport is the time from the learner's call of `publish` until every generator has the tensors in hand and has
touched each of their pages. What an engine then does with them (vLLM repacks them for its kernels) depends on
the engine and not on the way there; it is measured apart, on a real engine.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.laboratory import THREADS
from rlheals_ray.bench.measure import Figure, Outcome, Ratio, alternate, at_most
from rlheals_ray.config import RolloutSettings, load_study
from rlheals_ray.connection import WORKER_ENVIRONMENT
from rlheals_ray.grid.session import Session
from rlheals_ray.need import Need
from rlheals_ray.rollout.episode import Weights
from rlheals_ray.rollout.generator import GeneratorSettings, start_generator
from rlheals_ray.rollout.load import Load
from rlheals_ray.storage import StudyFiles

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

MB = 10**6
TENSOR_MB = 4
"""Size of most tensors: that of a 1024 x 1024 matrix in float32."""
PAGE = 4096
COPIES = {
    "clone": "torch.clone",
    "warm": "a copy into warm memory",
    "cores": "a copy into warm memory by all cores",
}
"""Ways to copy the same bytes, the denominator first."""


@dataclass(frozen=True)
class Transport:
    """One way of the weights, in seconds; the last three are parts of the first."""

    whole: float
    publish: float
    read: float
    """From handing out the load to the last reader's answer."""
    mapped: float
    """Of reading, the slowest reader's time until it had the tensors, their pages not yet touched."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--sizes", type=positive, nargs="+", default=[8, 64, 500], metavar="MB")
    parser.add_argument("--readers", type=positive, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument(
        "--engine-sizes", type=positive, nargs="*", default=[8, 64], metavar="MB",
        help="models that a real vLLM engine loads (none: leave the engine out)",
    )  # fmt: skip


def run(options: Namespace) -> Outcome:
    study = load_study("nano")
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        session = Session(study, StudyFiles(Path(directory)))
        try:
            session.connect()
            environment = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(THREADS)}
            start = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
            learner = ray.remote(Learner).options(**start).remote(study.rollout)
            readers = [ray.remote(Reader).options(**start).remote() for _ in range(max(options.readers))]
            ray.get([reader.ready.remote() for reader in readers])
            for size in options.sizes:
                _measure(size, learner, readers, options, ratios, figures)
            for size in options.engine_sizes:
                _measure_engine(size, study.rollout, Path(directory), options, figures)
        finally:
            session.close()
    settings = {
        **{key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "threads_per_process": THREADS,
        "tensor_mb": TENSOR_MB,
        "rollout": study.rollout.model_dump(mode="json"),
    }
    return Outcome(settings, ratios, figures, NOTES)


def _measure(
    size: int,
    learner: Any,
    readers: Sequence[Any],
    options: Namespace,
    ratios: list[Ratio],
    figures: list[Figure],
) -> None:
    ray.get(learner.make.remote(size))
    first: Transport = ray.get(learner.send.remote(list(readers[:1])))
    figures.append(Figure(f"{size} MB, first transport (the store's memory is new)", "s", (first.whole,)))
    arms: dict[str, Any] = {}
    for count in options.readers:
        arms[f"{count}"] = lambda _, n=count: ray.get(learner.send.remote(list(readers[:n])))
        arms[f"clone {count}"] = lambda _: ray.get(learner.copy.remote("clone"))
    for way in COPIES:
        arms[way] = lambda _, w=way: ray.get(learner.copy.remote(w))
    alternate(arms, 1)
    made = alternate(arms, options.repetitions)
    alone: Figure | None = None
    for count in options.readers:
        name = f"{size} MB, {count} reader{'s' if count > 1 else ''}"
        transport = Figure(f"{name}, transport", "s", tuple(t.whole for t in made[f"{count}"]))
        clone = Figure(f"{name}, beside it {COPIES['clone']}", "s", tuple(made[f"clone {count}"]))
        target = at_most(3) if size >= 500 and count == 1 else None
        ratios.append(transport.over(clone, f"{name}: transport ÷ {COPIES['clone']}", target=target))
        if alone is not None:
            ratios.append(transport.over(alone, f"{name}: transport ÷ that to {options.readers[0]}"))
        alone = alone or transport
        figures += [transport, clone]
        for part in ("publish", "read", "mapped"):
            figures.append(Figure(f"{name}, {part}", "s", tuple(getattr(t, part) for t in made[f"{count}"])))
    for way, label in COPIES.items():
        copy = Figure(f"{size} MB, {label}", "s", tuple(made[way]))
        figures.append(copy)
        if way != "clone" and alone is not None:
            ratios.append(alone.over(copy, f"{size} MB, {options.readers[0]} reader: transport ÷ {label}"))


def _measure_engine(
    size: int, settings: RolloutSettings, directory: Path, options: Namespace, figures: list[Figure]
) -> None:
    """What a real engine needs from the published load to its new weights, and the transport of that model."""
    architecture = directory / f"engine-{size}"
    config = engine_model(size)
    task = load_study("nano").task
    from rlheals_ray.models.nano import tokenizer

    config.save_pretrained(architecture)
    tokenizer(list(task.options["targets"])).save_pretrained(architecture)
    generator = start_generator(
        GeneratorSettings(str(architecture), task, settings), threads=THREADS, need=Need()
    )
    start = {
        "num_cpus": 0,
        "runtime_env": {"env_vars": {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(THREADS)}},
    }
    learner = ray.remote(Learner).options(**start).remote(settings)
    reader = ray.remote(Reader).options(**start).remote()
    ray.get([generator.ready.remote(), reader.ready.remote()])
    megabytes = ray.get(learner.make_model.remote(str(architecture))) / MB
    arms = {
        "transport": lambda _: ray.get(learner.send.remote([reader])).whole,
        "load": lambda _: ray.get(learner.load.remote(generator)),
    }
    alternate(arms, 1)
    made = alternate(arms, options.repetitions)
    name = f"a model of {megabytes:.0f} MB"
    figures.append(Figure(f"{name}, transport", "s", tuple(made["transport"])))
    figures.append(
        Figure(f"{name}, publish + load into vLLM (transport and repacking)", "s", tuple(made["load"]))
    )
    ray.kill(generator)


def engine_model(size: int) -> LlamaConfig:
    """A Llama of about `size` MB in float32: 4 layers of heads of 64, hidden size to fit."""
    from transformers import LlamaConfig

    layers, per_layer = 4, 4 + 3 * 2  # hidden^2 units: attention, and an MLP of twice the width
    hidden = max(64, round((size * MB / 4 / (layers * per_layer)) ** 0.5 / 64) * 64)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )


class Learner:
    """The sending side: holds tensors, publishes them, and copies them for comparison."""

    def __init__(self, settings: RolloutSettings) -> None:
        import torch

        from rlheals_ray.rollout.weight_sync import weight_sync

        torch.set_num_threads(THREADS)
        self._sync = weight_sync(settings)
        self._tensors: dict[str, torch.Tensor] = {}
        self._warm: list[torch.Tensor] = []
        self._version = 0

    def make(self, megabytes: int) -> None:
        """Hold that many MB: matrices of 4 MB, and what is left over in one more."""
        import torch

        side = TENSOR_MB * MB // 4
        sizes = [side] * (megabytes * MB // 4 // side)
        rest = megabytes * MB // 4 - sum(sizes)
        self._hold({f"layer.{i}": torch.randn(n) for i, n in enumerate([*sizes, rest]) if n})

    def make_model(self, architecture: str) -> int:
        """Hold the weights of an untrained model; returns their bytes."""
        from transformers import AutoConfig, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(architecture))
        self._hold({name: tensor.detach().float() for name, tensor in model.state_dict().items()})
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def _hold(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._warm = [tensor.clone() for tensor in tensors.values()]

    def send(self, readers: Sequence[Any]) -> Transport:
        """Publish, and wait until every reader has the tensors; all by this process's clock."""
        start = time.perf_counter()
        load = self._sync.publish(self._tensors.items())
        published = time.perf_counter()
        mapped = ray.get([reader.read.remote(load, index) for index, reader in enumerate(readers)])
        end = time.perf_counter()
        return Transport(end - start, published - start, end - published, max(mapped))

    def load(self, generator: Any) -> float:
        """Publish, and have a real generator take the weights over."""
        self._version += 1
        start = time.perf_counter()
        ray.get(
            generator.load.remote(self._sync.publish(self._tensors.items()), Weights("bench", self._version))
        )
        return time.perf_counter() - start

    def copy(self, way: str) -> float:
        """Seconds that a copy of every tensor takes, in one of the COPIES."""
        import torch

        torch.set_num_threads((os.cpu_count() or 1) if way == "cores" else THREADS)
        start = time.perf_counter()
        if way == "clone":
            copies = [tensor.clone() for tensor in self._tensors.values()]
        else:
            copies = self._warm
            for target, tensor in zip(copies, self._tensors.values(), strict=True):
                target.copy_(tensor)
        seconds = time.perf_counter() - start  # before the copies are freed
        torch.set_num_threads(THREADS)
        del copies
        return seconds


class Reader:
    """The receiving side: a generator's process with nothing in it but the seam that loads go through."""

    name = "reader"

    def ready(self) -> None:
        """Answers when torch is imported."""
        import torch

        torch.set_num_threads(THREADS)

    def read(self, load: Load, index: int) -> float:
        """Take the tensors over and touch every page; returns the seconds until they were in hand."""
        self._start = time.perf_counter()
        self._mapped = 0.0
        load.into(self, index)  # type: ignore[arg-type]  # (the part of an engine that a load needs)
        return self._mapped

    def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """What an engine would begin to repack from."""
        import torch

        held = [tensor for _, tensor in tensors]
        self._mapped = time.perf_counter() - self._start
        for tensor in held:
            tensor.flatten().view(torch.uint8)[::PAGE].sum()


NOTES = (
    "transport: publish in the learner's process, calls over Ray, and in each generator's process the tensors in "
    "hand with every page touched (publish + read). mapped: of reading, the time until the tensors are in hand.",
    "torch.clone of every tensor, by one thread, is the denominator: the plain copy a user would write, into new "
    "memory, which the kernel has to hand out first. Transport does the same into the object store's memory, "
    "which is new at the first transport alone. The store copies with several threads of its own (Ray's default), "
    "hence the copies into warm memory, by one thread and by all cores: the stricter comparisons.",
)
