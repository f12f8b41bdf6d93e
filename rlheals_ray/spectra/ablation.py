"""Many edits at once: every distinct matrix of them made once on Ray Data, then each checkpoint put together.

Rows carry names and directories, never matrices. A row is one matrix of one donor and one recipient, with all
variants that any edit needs of it (see pieces.py). Checkpoints, factors and pieces stand on storage that every
worker sees. Killed at any moment, the same call finds the pieces that are there and makes the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa
import torch

from rlheals_ray.config import InputError
from rlheals_ray.folder import Folder
from rlheals_ray.models.checkpoint import Checkpoint
from rlheals_ray.spectra.assembly import Assembly
from rlheals_ray.spectra.edit import EditReport, Variant
from rlheals_ray.spectra.factors import leading_factors, store_factors
from rlheals_ray.spectra.linalg import Factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.orders import Order, Plan
from rlheals_ray.spectra.pieces import Made, keep, make_pieces

__all__ = ["Order", "run_edits"]

SECONDS_PER_PRODUCT = 6e-10
"""Time of two decompositions on one core, over m · n · min(m, n): sizes Ray Data's blocks, nothing else."""


def run_edits(
    orders: Sequence[Order],
    factors_directory: str,
    pieces_directory: str,
    concurrency: int = 1,
    num_cpus: float = 1.0,
    *,
    memory: float = 0.0,
    labels: Mapping[str, str] | None = None,
    sharding: Literal["linked", "recipient"] = "linked",
) -> list[EditReport | str]:
    """Write every ordered checkpoint, atomically, in its recipient's dtypes; how far each went, in order.

    Every tensor that is not edited, the configuration and the tokenizer are the recipient's. A checkpoint that
    is there with exactly the `extra` files of its order is not written again.
    pieces_directory: where edited matrices are kept and found again; it may be deleted afterwards.
    concurrency: matrices at one time, each reserving num_cpus and using one thread, on nodes with these `labels`;
    0: one after the other in this process, without Ray.
    sharding: "linked": one shard for each edited matrix, hard links of the pieces where `out` is on their
    filesystem, so that a checkpoint costs an index; "recipient": the recipient's own shards, those without
    an edited matrix copied.
    Raises InputError, before any checkpoint is written, when an order's edit names no matrix, its checkpoints
    differ in architecture or do not differ in these matrices at all, hold NaN or Inf or cannot be read, or k
    exceeds min(m, n). Any other failure costs the orders that it touches alone: its text stands in their place.
    """
    plan = Plan.of(orders, keeps=sharding == "linked")
    if not orders:
        return []
    arguments: dict[str, Any] = {
        "catalogue": [asdict(variant) for variant in plan.catalogue],
        "factors_directory": Folder.of(factors_directory).uri,
        "pieces_directory": Folder.of(pieces_directory).uri,
    }
    if concurrency == 0:
        made = make_rows(pa.Table.from_pylist(plan.rows), **arguments)
    else:
        from rlheals_ray.spectra.pipeline import mapped  # imports Ray, for which the other way has no use

        seconds = SECONDS_PER_PRODUCT * plan.elements
        placed: dict[str, Any] = {"labels": labels, "memory": memory, "max_errored_blocks": -1}
        made = mapped(plan.rows, make_rows, seconds, concurrency, num_cpus, **placed, **arguments)
    results = [json.loads(text) for text in made["result"].to_pylist()]
    if wrong := next((result["wrong"] for result in results if "wrong" in result), None):
        raise InputError(wrong)
    work = Assembly(plan, results)
    with ThreadPoolExecutor(max(1, concurrency)) as threads:
        return list(threads.map(lambda number: _assembled(work, number), range(len(plan.orders))))


def _assembled(work: Assembly, number: int) -> EditReport | str:
    try:
        return work.write(number)
    except Exception as error:  # whatever it is, it is this order's alone
        return _told(error)


def make_rows(
    batch: pa.Table, catalogue: Sequence[Mapping[str, Any]], factors_directory: str, pieces_directory: str
) -> pa.Table:
    """What became of each of a plan's rows, as JSON; failures too, since Ray rewrites the text of exceptions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        variants = [Variant(**fields) for fields in catalogue]
        pieces = Folder.of(pieces_directory)
        results = []
        for row in batch.to_pylist():
            try:
                result = _made(row, variants, factors_directory, pieces)
            except InputError as error:
                result = {"wrong": str(error)}
            except Exception as error:  # whatever it is, it costs the orders that need this row alone
                result = {"failed": _told(error)}
            place = {key: row[key] for key in ("recipient", "donor", "tensors")}
            results.append(json.dumps({**place, **result}))
    finally:
        torch.set_num_threads(threads)
    return pa.table({"result": pa.array(results, pa.string())})


def _made(
    row: Mapping[str, Any], catalogue: Sequence[Variant], factors_directory: str, pieces: Folder
) -> dict[str, Any]:
    if not row["donor"]:
        checkpoint = Checkpoint(row["recipient"])
        tensors = {name: checkpoint.tensor(name, finite=False) for name in row["tensors"]}
        return {"kept": asdict(keep(tensors, f"{row['name']}.safetensors", pieces))}
    (name,) = row["tensors"]
    own, other = Matrices.of(row["recipient"]), Matrices.of(row["donor"])
    recipient, donor = own.tensor(name), other.tensor(name)
    made = make_pieces(
        row["name"],
        recipient,
        donor,
        [catalogue[index] for index in row["variants"]],
        lambda: _factors(recipient, donor, factors_directory),
        pieces,
    )
    return {
        "made": {
            variant.name: asdict(one) if isinstance(one, Made) else {"failed": _told(one)}
            for variant, one in made.items()
        }
    }


def _factors(recipient: torch.Tensor, donor: torch.Tensor, where: str) -> tuple[Factors, Factors]:
    # First all work, then mapped files: nothing of the first decomposition is held during the second.
    keys = [store_factors(weight, where)[0] for weight in (recipient, donor)]
    rank = min(recipient.shape)
    return leading_factors(keys[0], rank, where, lambda: recipient), leading_factors(
        keys[1], rank, where, lambda: donor
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
