"""Rows of names through Ray Data: the one way in which matrices are worked on side by side."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray.data

SECONDS_PER_BLOCK = 5.0


def mapped(
    rows: Sequence[Mapping[str, Any]],
    function: Callable[..., pa.Table],
    seconds: float,
    concurrency: int,
    num_cpus: float = 1.0,
    *,
    num_gpus: float = 0.0,
    memory: float = 0.0,
    labels: Mapping[str, str] | None = None,
    max_errored_blocks: int = 0,
    progress: Callable[[int], None] | None = None,
    **arguments: Any,
) -> pa.Table:
    """function(block of rows as a table, **arguments) over all rows on Ray Data, in their order.

    seconds: roughly how long one core would take for all of it; sizes the blocks. concurrency: blocks at one
    time, each reserving num_cpus, num_gpus (UNTESTED) and bytes of memory. labels: of the nodes to run on. progress:
    told how many rows of output came, block by block. Rows of up to max_errored_blocks blocks (-1: any number) may be
    lost, by an exception or with their worker; one more raises what Ray raises.
    """
    blocks = min(len(rows), max(4 * concurrency, math.ceil(seconds / SECONDS_PER_BLOCK)))
    limits = ray.data.ExecutionResources(cpu=concurrency * num_cpus, gpu=concurrency * num_gpus)
    with _settings(max_errored_blocks, limits, labels):
        dataset = ray.data.from_items([dict(row) for row in rows], override_num_blocks=blocks).map_batches(
            function,
            fn_kwargs=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=concurrency),
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            memory=memory or None,
            label_selector=dict(labels) if labels else None,
        )
        dataset.set_name(getattr(function, "__name__", "matrices").strip("_"))  # for Ray's dashboard
        found = []
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            found.append(block)
            if progress:
                progress(block.num_rows)
        return pa.concat_tables(found)


@contextmanager
def _settings(
    max_errored_blocks: int, limits: ray.data.ExecutionResources, labels: Mapping[str, str] | None
) -> Iterator[None]:
    """Ray Data without progress bars and execution reports, in the order of its input.

    Within limits: without them it would ask an autoscaler for nodes as long as its tasks wait.
    """
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.execution_options, logger.level
    errored = context.max_errored_blocks
    context.enable_progress_bars, context.execution_options = False, copy.copy(context.execution_options)
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = limits
    context.execution_options.label_selector = dict(labels) if labels else None
    context.max_errored_blocks = max_errored_blocks
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.execution_options = before[:2]
        context.max_errored_blocks = errored
        logger.setLevel(before[2])
