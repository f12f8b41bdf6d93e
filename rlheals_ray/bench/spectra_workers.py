"""What comparing and editing cost in a worker: its peak memory, and its speed beside a loop without Ray."""

from __future__ import annotations

import gc
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from rlheals_ray.bench.measure import Figure, Outcome, Ratio, alternate, at_least, at_most
from rlheals_ray.bench.spectra_models import Checkpoints, Shape, write_checkpoints
from rlheals_ray.folder import Folder
from rlheals_ray.spectra.ablation import Order, make_rows
from rlheals_ray.spectra.compare import Pair, compare, compare_one
from rlheals_ray.spectra.edit import Edit
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.null import stored_null_spectrum
from rlheals_ray.spectra.orders import Plan

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
MIB = 2**20
KS = (8, 32, 128)
EDIT_SHARES = (0.25, 0.5, 0.75)
SMALL = Shape(1, 192, 256, vocabulary=64)
"""A model on which a worker meets all its code before its memory is watched."""


def measure_memory(directory: Path, options: Namespace) -> Outcome:
    """Peak memory of comparing and of editing, at two model sizes and two sizes of matrices. Ray is connected."""
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    short, long = options.memory_layers
    for layers, factor in ((short, 1), (long, 1), (short, 2)):
        shape = Shape(layers, 576 * factor, 1536 * factor, vocabulary=1024)
        largest = 4 * shape.largest / MIB
        for name, values in _peaks(directory / "memory", shape, options.repetitions).items():
            label = f"memory of {name}, {layers} layers, {shape.hidden} × {shape.intermediate}"
            peak = Figure(f"{label}: peak beyond before", "MiB", tuple(values))
            matrix = Figure("largest", "MiB", (largest,) * len(values))
            ratios.append(peak.over(matrix, f"{label}: peak ÷ largest matrix", target=at_most(12)))
            figures.append(peak)
    note = (
        "memory: the high-water mark of a Ray worker's resident memory over its work on all matrices of the model, "
        "one after the other, less what it held before: programs and libraries, since it had done the same on a "
        "model of 192 × 256. The largest matrix is counted in float32. Memory-mapped files are part of the peak."
    )
    return Outcome({}, ratios, figures, [note])


@dataclass(frozen=True)
class Job:
    """Work as a worker gets it: a function of rows, one after the other."""

    function: Callable[..., pa.Table]
    rows: Sequence[Mapping[str, Any]]
    arguments: Mapping[str, Any]

    def run(self) -> None:
        self.function(pa.Table.from_pylist([dict(row) for row in self.rows]), **self.arguments)


def _compare_job(checkpoints: Checkpoints, place: Path) -> Job:
    return Job(_compare_rows, _pair_rows(checkpoints), {"factors": str(place)})


def _edit_job(checkpoints: Checkpoints, place: Path) -> Job:
    edits = [Edit(checkpoints.peak, checkpoints.late, k=share) for share in EDIT_SHARES]
    plan = Plan.of([Order(edit, str(place / "out")) for edit in edits], keeps=False)
    folders = {f"{name}_directory": str(place / name) for name in ("factors", "pieces")}
    return Job(
        make_rows, plan.rows, {"catalogue": [asdict(variant) for variant in plan.catalogue], **folders}
    )


def _peaks(place: Path, shape: Shape, repetitions: int) -> dict[str, list[float]]:
    """MiB, one value a repetition, of comparing and of editing in a worker that starts for it."""
    checkpoints = write_checkpoints(place / "models", shape)
    small = write_checkpoints(place / "small", SMALL)

    def peak(job: Callable[[Checkpoints, Path], Job], _: int) -> float:
        # A process of its own: memory that earlier work freed and the allocator kept would hide some of this.
        task = ray.remote(max_calls=1, num_cpus=1)(_watched)
        taken: float = ray.get(task.remote(job(small, place / "first"), job(checkpoints, place / "work")))
        shutil.rmtree(place / "first")
        shutil.rmtree(place / "work")
        return taken

    made = alternate({"compare": partial(peak, _compare_job), "edit": partial(peak, _edit_job)}, repetitions)
    shutil.rmtree(place)
    return made


def _watched(first: Job, job: Job) -> float:
    """MiB that `job` takes at its peak, beyond what this process holds once `first` has loaded all code."""
    torch.set_num_threads(1)
    first.run()
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is resident now
    job.run()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{field}:")) / 1024


def _pair_rows(checkpoints: Checkpoints) -> list[dict[str, Any]]:
    pair = _pair(checkpoints)
    return [{**vars(pair), "matrix": matrix} for matrix in Matrices.of(checkpoints.peak).names(ROLES)]


def _pair(checkpoints: Checkpoints) -> Pair:
    return Pair(0, "peak", "late", checkpoints.peak, checkpoints.late)


def _compare_rows(batch: pa.Table, factors: str) -> pa.Table:
    rows = [row for pair in batch.to_pylist() for row in compare_one(pair, KS, factors)]
    return pa.table({"rows": [len(rows)]})


def measure_scaling(directory: Path, options: Namespace) -> Outcome:
    """`compare` with 1 and 2 workers beside the loop over its matrices, from nothing each time. Ray is connected."""
    shape = Shape(options.scaling_layers, options.hidden, options.intermediate, vocabulary=1024)
    checkpoints = write_checkpoints(directory / "scaling", shape)
    place = directory / "factors"
    matrices = Matrices.of(checkpoints.peak)
    rows = _pair_rows(checkpoints)

    def timed(work: Callable[[], object]) -> float:
        for shape in {matrices.shape(row["matrix"]) for row in rows}:
            stored_null_spectrum(shape, Folder.of(place))
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        shutil.rmtree(place)
        return seconds

    def bare() -> None:
        before, opened = torch.get_num_threads(), cache(Matrices.of)
        torch.set_num_threads(1)
        with threadpool_limits(1):
            for row in rows:
                compare_one(row, KS, place, opened=opened)
        torch.set_num_threads(before)

    arms: dict[str, Callable[[int], float]] = {"bare": lambda _: timed(bare)}
    for n in options.scaling_workers:
        ours = partial(compare, [_pair(checkpoints)], ROLES, KS, place, n)
        arms[f"{n}"] = partial(lambda work, _: timed(work), ours)
    made = alternate(arms, options.repetitions)
    loop = Figure("scaling: bare loop, one thread", "s", tuple(made["bare"]))
    figures, ratios = [loop], []
    for n in options.scaling_workers:
        figures.append(Figure(f"scaling: Ray Data, {n} worker(s)", "s", tuple(made[f"{n}"])))
        cores = Figure("core seconds", "s", tuple(n * seconds for seconds in made[f"{n}"]))
        ratios.append(
            loop.over(cores, f"scaling, {n} worker(s): Ray Data ÷ bare loop, per core", target=at_least(0.85))
        )
    note = (
        f"scaling: `compare` of {len(rows)} matrices at k = {KS}, decompositions included, factors written; the time "
        "of Ray's workers to start is in it; Ray itself, and simulations made once per shape, come before. The "
        "target is meant for a bare loop of more than 60 s."
    )
    return Outcome({}, ratios, figures, [note])
