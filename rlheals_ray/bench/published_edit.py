"""The published procedure of direction edits, as a baseline: everything anew for every setting.

From the scripts svd_recover_dir.py and its variant by layer blocks (reference: the authors' repository, described in
docs/benchmarks.md): both models loaded whole, the base in float32; for every 2-D parameter of the block two
full float32 SVDs; base's k leading singular vectors beside the target's rest, under the target's singular
values; `save_pretrained`. Their code copied a matrix whole where k ≥ min(m, n); no k here goes so far.
Left out, in its favour: a process and its imports for every setting, and the embedding that the variant
by layer blocks always edits too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


@dataclass(frozen=True)
class Published:
    """What one setting took, in seconds, and how many matrices it edited."""

    load: float
    edit: float
    save: float
    matrices: int

    @property
    def without_writing(self) -> float:
        return self.load + self.edit

    @property
    def with_writing(self) -> float:
        return self.load + self.edit + self.save


def edit_as_published(
    base: str, target: str, share: float, matrices: Collection[str], out: Path, device: str = "cpu"
) -> Published:
    """Write `target` with the leading directions of `base` in these matrices: one setting, from start to end.

    share: k over min(m, n) of a matrix, rounded up, below 1. device: where the SVDs run ("cuda": UNTESTED).
    """
    logging.disable_progress_bar()
    start = time.perf_counter()
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: parameter.detach() for name, parameter in base_model.named_parameters()}
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    loaded = time.perf_counter()
    edited = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name in matrices:
                k = math.ceil(share * min(parameter.shape))
                ours = published_matrix(weights[name].to(device), parameter.to(device, torch.float32), k)
                parameter.copy_(ours)
                edited += 1
    finished = time.perf_counter()
    model.save_pretrained(out)
    return Published(loaded - start, finished - loaded, time.perf_counter() - finished, edited)


def published_matrix(base: torch.Tensor, target: torch.Tensor, k: int) -> torch.Tensor:
    """One matrix: (m, n) float32 each; base's k leading vectors, target's other vectors and all its S."""
    U_b, _, Vh_b = torch.linalg.svd(base, full_matrices=False)
    U_t, S_t, Vh_t = torch.linalg.svd(target, full_matrices=False)
    U = torch.cat([U_b[:, :k], U_t[:, k:]], dim=1)
    Vh = torch.cat([Vh_b[:k], Vh_t[k:]], dim=0)
    return U @ torch.diag(S_t) @ Vh


def seconds_of_svds(matrix: torch.Tensor, threads: int, goes: int = 2) -> float:
    """Two SVDs with so many threads, the best of so many goes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    taken = []
    for _ in range(goes):
        start = time.perf_counter()
        for _ in range(2):
            torch.linalg.svd(matrix.float(), full_matrices=False)
        taken.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return min(taken)
