"""The matrices of some checkpoints, each decomposed once on Ray Data: what comparisons are made from.

Rows carry names and directories, never matrices. Checkpoints and factors stand on storage that every worker
sees. Killed at any moment, the same call finds the factors that are there and makes the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rlheals_ray import tables
from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.spectra.factors import store_factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.null import stored_null_spectrum
from rlheals_ray.spectra.overlay import kept_indices, singular_value_rows
from rlheals_ray.spectra.pipeline import mapped

SECONDS_PER_PRODUCT = 1e-10
"""Time of an exact SVD on one core, over m · n · min(m, n): sizes Ray Data's blocks, nothing else."""

Where = str | Path | Folder


@dataclass(frozen=True)
class Workers:
    """How work on matrices is spread over the cluster, and who is told of its progress.

    concurrency: tasks side by side. num_cpus: reserved by each (fractions allowed), and its threads. num_gpus:
    reserved by each; with any, the linear algebra runs on CUDA (UNTESTED). progress: see `pipeline.mapped`.
    """

    concurrency: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    progress: Callable[[int], None] | None = None
    labels: Mapping[str, str] | None = None
    """Of the nodes that tasks may run on; None: of any."""
    memory: float = 0.0
    """Bytes reserved by each; 0: none."""

    def map(
        self,
        rows: Sequence[Mapping[str, Any]],
        function: Callable[..., pa.Table],
        seconds: float,
        **more: Any,
    ) -> pa.Table:
        """`pipeline.mapped`, the function being told its `device` and `threads` too."""
        return mapped(
            rows,
            function,
            seconds,
            self.concurrency,
            self.num_cpus,
            num_gpus=self.num_gpus,
            labels=self.labels,
            memory=self.memory,
            progress=self.progress,
            device="cuda" if self.num_gpus else "cpu",
            threads=max(1, int(self.num_cpus)),
            **more,
        )


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix whose factors are stored: their key, its shape, and S on the grid of `overlay.kept_indices`."""

    key: str
    shape: tuple[int, int]
    sigma: tuple[float, ...]


@dataclass(frozen=True)
class Stock:
    """Every matrix of the roles asked for, of every checkpoint: directory (URI) -> matrix -> what is stored."""

    matrices: Mapping[str, Mapping[str, StoredMatrix]]

    def singular_values(self, named: Sequence[tuple[int | None, str, Where]]) -> pa.Table:
        """The table `singular_values` of these (seed, name of the checkpoint, directory), thinned."""
        rows = []
        for seed, checkpoint, directory in named:
            for matrix, stored in self.matrices[Folder.of(directory).uri].items():
                # As `singular_value_rows` of the whole S: it looks at no others.
                whole = torch.zeros(min(stored.shape), dtype=torch.float64)
                whole[torch.from_numpy(kept_indices(len(whole)) - 1)] = torch.tensor(
                    stored.sigma, dtype=torch.float64
                )
                rows += singular_value_rows(seed, checkpoint, matrix, whole)
        return tables.table("singular_values", rows)


def stocked(
    directories: Sequence[Where], roles: Sequence[str], factors: Where, workers: Workers | None = None
) -> Stock:
    """Decompose every matrix of these roles in these checkpoints, unless that was done.

    factors: where factors and simulated null spectra are kept. Raises InputError for a checkpoint that cannot be
    read, has no matrix of these roles, or holds NaN or Inf.
    """
    shapes = {uri: matrix_shapes(uri, roles) for uri in dict.fromkeys(Folder.of(d).uri for d in directories)}
    matrices: list[dict[str, Any]] = [
        {"directory": uri, "matrix": name, "shape": list(shape)}
        for uri, of_uri in shapes.items()
        for name, shape in of_uri.items()
    ]
    if not matrices:
        return Stock({})
    # First what takes longest: nobody else waits for it then, and nobody does it twice.
    sizes = sorted({(max(shape), min(shape)) for of_uri in shapes.values() for shape in of_uri.values()})
    spectra: list[dict[str, Any]] = [
        {"directory": None, "matrix": None, "shape": list(size)} for size in reversed(sizes)
    ]
    found = (workers or Workers()).map(
        spectra + matrices,
        _stock_rows,
        sum(seconds(row["shape"]) for row in matrices),
        factors=Folder.of(factors).uri,
    )
    if wrong := next((text for text in found["wrong"].to_pylist() if text), None):
        raise InputError(wrong)
    stock: dict[str, dict[str, StoredMatrix]] = {uri: {} for uri in shapes}
    for row in found.slice(len(spectra)).to_pylist():
        shape = shapes[row["directory"]][row["matrix"]]
        stock[row["directory"]][row["matrix"]] = StoredMatrix(row["key"], shape, tuple(row["sigma"]))
    return Stock(stock)


def matrix_shapes(directory: str, roles: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Matrix -> shape of those of a checkpoint that have these roles, from its headers; raises InputError."""
    found = Matrices.of(directory)
    found.checkpoint.check()
    shapes = {name: found.shape(name) for name in found.names(roles)}
    if not shapes:
        raise InputError(
            f"spectra.roles (got {list(roles)}): checkpoint {directory!r} has no such matrix; its tensors are named "
            f"like {found.checkpoint.names()[0]!r}, unlike Llama's or Qwen's."
        )
    return shapes


def seconds(shape: Sequence[int]) -> float:
    """Roughly how long a decomposition takes on one core."""
    return math.prod(shape) * min(shape) * SECONDS_PER_PRODUCT


def _stock_rows(batch: pa.Table, factors: str, device: str, threads: int) -> pa.Table:
    torch.set_num_threads(threads)
    folder, opened = Folder.of(factors), cache(Matrices.of)
    rows = []
    for row in batch.to_pylist():
        key, sigma, wrong = None, None, None
        if row["directory"] is None:
            stored_null_spectrum(tuple(row["shape"]), folder)
        else:
            try:
                key, sigma = _store(opened(row["directory"]), row["matrix"], folder, device)
            except InputError as error:
                wrong = str(error)
            except ValueError as error:
                wrong = f"checkpoint {row['directory']!r}: {row['matrix']!r}: {error}; leave out its role."
        # What is wrong goes as data: Ray rewrites the text of exceptions.
        rows.append(
            {
                "directory": row["directory"],
                "matrix": row["matrix"],
                "key": key,
                "sigma": sigma,
                "wrong": wrong,
            }
        )
    return pa.Table.from_pylist(rows, schema=_STOCKED)


_STOCKED = pa.schema(
    {
        "directory": pa.string(),
        "matrix": pa.string(),
        "key": pa.string(),
        "sigma": pa.list_(pa.float64()),
        "wrong": pa.string(),
    }
)


def _store(matrices: Matrices, name: str, folder: Folder, device: str) -> tuple[str, list[float]]:
    key, S = store_factors(matrices.tensor(name), folder, device)
    return key, [float(S[index - 1]) for index in kept_indices(len(S))]
