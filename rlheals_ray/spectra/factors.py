"""Stored SVD factors: each distinct matrix is decomposed once, whichever checkpoints hold it.

The key is the content of the matrix, so a matrix that training left alone, or that two directories
share, is found again, and a changed one never is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlheals_ray.models.checkpoint import content_hash
from rlheals_ray.spectra.linalg import Factors, decompose


def stored_factors(weight: torch.Tensor, directory: str | Path) -> Factors:
    """U (m, r), S (r,), Vh (r, n) of a matrix, float32: read when stored, else decomposed and stored.

    Files appear whole; processes that race write the same bytes. Raises ValueError as `decompose` does.
    """
    key = content_hash(weight)
    path = Path(directory) / key[:2] / f"{key}.safetensors"
    if path.exists():
        try:
            stored = load_file(path)
            return stored["U"], stored["S"], stored["Vh"]
        except (SafetensorError, KeyError):
            path.unlink(missing_ok=True)  # damaged from outside: decompose anew
    U, S, Vh = decompose(weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{key}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    save_file({"U": U, "S": S, "Vh": Vh}, temporary)
    temporary.replace(path)
    return U, S, Vh
