"""What is collected of a checkpoint, once: a safetensors file that carries the fingerprint of what it was made from.

Tensors, over all prompts in the order in which they are asked: `states` (layers + 1, n, d) float32; `entropy`,
`margin` (n,) and `kl` (n, samples) float64. See hidden_states.py and shift.py.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from rlheals_ray.evaluation.asked import Asked
from rlheals_ray.folder import Folder

if TYPE_CHECKING:
    from rlheals_ray.evaluation.shift import Reference

_FINGERPRINT = "fingerprint"


class Order(NamedTuple):
    """A checkpoint to collect from, and the file to write."""

    directory: str
    out: str
    fingerprint: str


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint that the file at `path` carries; None where there is none, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return str((file.metadata() or {}).get(_FINGERPRINT))
    except (OSError, SafetensorError):
        return None


def collect(orders: Sequence[Order], base: str, asked: Sequence[Asked], last_tokens: int) -> Iterator[str]:
    """Yield, for each order in turn, the traceback of its failure, or nothing where its file is there.

    A file that carries the fingerprint already is not made again. The base is run once for all orders.
    """
    from rlheals_ray.evaluation.shift import Reference

    reference = None
    for order in orders:
        try:
            if fingerprint_of(Path(order.out)) != order.fingerprint:
                reference = reference or Reference.of(base, _written(asked))
                _collect_one(order, reference, asked, last_tokens)
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        yield failure


def _collect_one(order: Order, reference: Reference, asked: Sequence[Asked], last_tokens: int) -> None:
    import safetensors.torch

    from rlheals_ray.evaluation.hidden_states import load_model, prompt_states
    from rlheals_ray.evaluation.shift import forward_kl

    model = load_model(order.directory)
    found = prompt_states(model, [one.prompt for one in asked], last_tokens)._asdict()
    found["kl"] = forward_kl(reference, model, _written(asked)).view(len(asked), -1)
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of {order.directory} is not finite: its weights have diverged")
    data = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in found.items()}, {_FINGERPRINT: order.fingerprint}
    )
    out = Path(order.out)
    Folder.of(out.parent).write(out.name, data)


def _written(asked: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
    return [(one.prompt, answer) for one in asked for answer in one.answers]


def layer_count(path: Path) -> int:
    """How many layers of states a file holds, the embeddings included."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return int(file.get_slice("states").get_shape()[0])


def layer_states(paths: Sequence[Path], layer: int, rows: slice) -> npt.NDArray[np.float32]:
    """(checkpoints, prompts, d): the states of one layer on the prompts in `rows`, of every file in `paths`."""
    from safetensors import safe_open

    found = []
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            found.append(file.get_slice("states")[layer : layer + 1, rows][0])
    return np.stack(found)


def numbers(path: Path, name: str) -> npt.NDArray[np.float64]:
    """`entropy`, `margin` or `kl` of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensor: npt.NDArray[np.float64] = file.get_tensor(name)
    return tensor
