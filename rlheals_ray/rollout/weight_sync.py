"""Weights from a learner to generators through Ray's object store: one flat array per version.

One put, many readers, no copy on the reader's side: each generator maps the array and takes views.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from rlheals_ray.rollout.episode import Layout


def flatten(named: Iterable[tuple[str, torch.Tensor]]) -> tuple[np.ndarray, Layout]:
    """Named tensors as one float32 array, shape (parameters,), and their layout."""
    items = [(name, tensor.detach()) for name, tensor in named]
    flat = torch.cat([tensor.reshape(-1).to("cpu", torch.float32) for _, tensor in items])
    return flat.numpy(), Layout(tuple((name, tuple(tensor.shape)) for name, tensor in items))


def views(flat: np.ndarray, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors again, as views of the array; raises ValueError when the sizes do not match."""
    total = sum(int(np.prod(shape)) for _, shape in layout.tensors)
    if total != flat.size:
        raise ValueError(f"the layout describes {total} values, the array has {flat.size}")
    with warnings.catch_warnings():
        # The store's memory is read-only, about which torch warns; nobody writes into the views.
        warnings.simplefilter("ignore", UserWarning)
        whole = torch.from_numpy(flat)
    at = 0
    for name, shape in layout.tensors:
        size = int(np.prod(shape))
        yield name, whole[at : at + size].view(shape)
        at += size
