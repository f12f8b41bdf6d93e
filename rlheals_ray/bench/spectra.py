"""Spectra and edits beside what one would otherwise run: an ablation, a worker's memory, Ray's share.

Its parts: spectra_ablation.py (against the published procedure, published_edit.py), and spectra_workers.py
(memory, and scaling over workers). The checkpoints are written by spectra_models.py.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rlheals_ray.bench.command import positive
from rlheals_ray.bench.measure import Outcome
from rlheals_ray.config import InputError

PARTS = ("ablation", "memory", "scaling")


def add_options(parser: ArgumentParser) -> None:
    parser.set_defaults(repetitions=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--layers", type=positive, default=30, help="of the checkpoints; SmolLM2-135M has 30")
    parser.add_argument("--hidden", type=positive, default=576, help="a multiple of 192 or 256")
    parser.add_argument("--intermediate", type=positive, default=1536)
    parser.add_argument(
        "--ks", type=positive, default=12, help="ablation: values of k, evenly below min(m, n)"
    )
    parser.add_argument("--blocks", type=positive, default=4, help="ablation: blocks of layers")
    parser.add_argument(
        "--settings",
        type=positive,
        default=4,
        help="ablation: settings that the published procedure runs whole",
    )
    parser.add_argument("--workers", type=positive, help="ablation: of this system; one per core if left out")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="ablation: where both sides decompose; cuda is UNTESTED, and meant for --hidden 4096 "
        "--intermediate 14336 --layers 4",
    )
    parser.add_argument(
        "--memory-layers",
        type=positive,
        nargs=2,
        default=[2, 8],
        metavar="N",
        help="memory: the two model sizes",
    )
    parser.add_argument(
        "--scaling-layers",
        type=positive,
        default=72,
        help="scaling: of its checkpoints; 72 are over a minute's work",
    )
    parser.add_argument("--scaling-workers", type=positive, nargs="+", default=[1, 2], metavar="N")


def run(options: Namespace) -> Outcome:
    if options.hidden % 192 and options.hidden % 256:
        raise InputError(
            f"--hidden (got {options.hidden}): heads are of 64, and three or four share keys; use a multiple of 192 or "
            "256."
        )
    if options.blocks > options.layers or options.settings > options.ks * options.blocks:
        raise InputError(
            f"--blocks, --settings (got {options.blocks}, {options.settings}): at most {options.layers} blocks, one a "
            "layer, and as many settings as --ks times --blocks."
        )
    from rlheals_ray.bench.spectra_models import Shape, write_checkpoints
    from rlheals_ray.connection import connect

    shape = Shape(options.layers, options.hidden, options.intermediate)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        checkpoints = write_checkpoints(directory / "models", shape)
        connect()
        import ray  # after connect, which prepares its environment

        try:
            for part in options.parts:
                if part == "ablation":
                    from rlheals_ray.bench.spectra_ablation import measure_ablation

                    outcomes.append(measure_ablation(checkpoints, directory, options, shape.layers))
                elif part == "memory":
                    from rlheals_ray.bench.spectra_workers import measure_memory

                    outcomes.append(measure_memory(directory, options))
                else:
                    from rlheals_ray.bench.spectra_workers import measure_scaling

                    outcomes.append(measure_scaling(directory, options))
        finally:
            ray.shutdown()
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return Outcome(
        settings,
        [ratio for outcome in outcomes for ratio in outcome.ratios],
        [figure for outcome in outcomes for figure in outcome.figures],
        [note for outcome in outcomes for note in outcome.notes],
    )
