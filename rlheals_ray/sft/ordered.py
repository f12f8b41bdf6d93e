"""Blocks of rows through Ray Data in their order: how the user's data reach the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ExecutionResources

from rlheals_ray.need import Need
from rlheals_ray.placement import options_here

AHEAD = 256 << 20
"""Bytes of finished blocks that may wait in the object store for one reader."""


def ordered(
    blocks: Sequence[pa.Table],
    function: Callable[..., pa.Table],
    tasks: int,
    need: Need | None = None,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """function(block, **arguments) of each block, in their order, made by up to `tasks` tasks ahead of the reader.

    Each task reserves the CPUs and memory of `need`, on a node with its labels. Without it they reserve nothing and
    run on the reader's own node, beside a worker that may have reserved all of its CPUs and mostly waits for them: what
    reserves nothing would else run on a head too, which is to run no work.
    """
    if need is None:
        place = {"num_cpus": 0, **options_here()}
    else:
        place = {name: asked for name, asked in need.options().items() if name != "num_gpus"}
    with _settings(None if need is None else tasks * need.cpus):
        dataset = ray.data.from_arrow(list(blocks)).map_batches(
            function,
            fn_kwargs=arguments,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(size=tasks),
            **place,
        )
    # The data set has its settings for itself from here on.
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=tasks)


@contextmanager
def _settings(cpus: float | None) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    options = context.execution_options
    before = context.enable_progress_bars, options.preserve_order, options.resource_limits
    context.enable_progress_bars, options.preserve_order = False, True
    options.resource_limits = ExecutionResources(cpu=cpus, object_store_memory=AHEAD)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, options.preserve_order, options.resource_limits = before
