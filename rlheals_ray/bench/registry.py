"""The benchmarks by name. A new one is a file of this package and a line here."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from rlheals_ray.bench.measure import Outcome


class Module(Protocol):
    """What a benchmark's file offers. Importing it loads nothing heavy: `--help` answers at once."""

    def add_options(self, parser: ArgumentParser) -> None:
        """Declare the options; `--repetitions` and `--json` are there already."""
        ...

    def run(self, options: Namespace) -> Outcome:
        """Measure."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that has not been imported yet."""

    summary: str
    module: str

    def load(self) -> Module:
        return cast(Module, importlib.import_module(f"{__package__}.{self.module}"))


BENCHMARKS: Mapping[str, Benchmark] = {
    "rollout": Benchmark(
        "tokens/s: the pool ÷ bare vLLM, and ÷ transformers one prompt at a time", "rollout"
    ),
    "rl": Benchmark("episodes/s: a whole PPO update ÷ one of TRL's GRPOTrainer", "rl"),
    "sft": Benchmark("tokens/s: a trunk ÷ a bare TRL SFTTrainer; two workers ÷ one", "sft"),
    "sync": Benchmark("seconds: weights from learner to generators ÷ a memory copy of as many bytes", "sync"),
    "spectra": Benchmark(
        "seconds: the published ablation of edits ÷ ours; a worker's peak memory; Ray Data ÷ a bare loop",
        "spectra",
    ),
    "grid": Benchmark(
        "a small map: trunk and branches shared ÷ every cell by itself; and what --plan said", "grid"
    ),
    "tasks": Benchmark("problems/s: dealing ÷ the published environment's solver; judge calls/s", "tasks"),
}
