"""Blocks of rows through Ray Data in their order: how the user's data reach the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

AHEAD = 256 << 20
"""Bytes of finished blocks that may wait in the object store for one reader."""


def ordered(
    blocks: Sequence[pa.Table], function: Callable[..., pa.Table], tasks: int, **arguments: Any
) -> Iterator[pa.Table]:
    """function(block, **arguments) of each block, in their order, made by up to `tasks` tasks ahead of the reader.

    The tasks reserve no CPU: they stand beside workers that may have reserved all of them, and mostly wait.
    """
    with _settings():
        dataset = ray.data.from_arrow(list(blocks)).map_batches(
            function,
            fn_kwargs=arguments,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=tasks),
            num_cpus=0,
        )
    # The data set has its settings for itself from here on.
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=tasks)


@contextmanager
def _settings() -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = context.enable_progress_bars, options.preserve_order, options.resource_limits
    context.enable_progress_bars, options.preserve_order = False, True
    options.resource_limits = ExecutionResources(object_store_memory=AHEAD)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, options.preserve_order, options.resource_limits = before
