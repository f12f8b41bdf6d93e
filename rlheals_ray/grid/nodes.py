"""The cluster's nodes: what they have, and waiting for those that an autoscaler brings."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rlheals_ray.config import InputError
from rlheals_ray.grid.plan_memory import GIB
from rlheals_ray.grid.resources import Resources
from rlheals_ray.need import Need


def cluster_words() -> str:
    """What the connected cluster has now, its head included."""
    total, alive = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    gpus = f", {total['GPU']:g} GPUs" if total.get("GPU") else ""
    return (
        f"the cluster has {total.get('CPU', 0):g} CPUs{gpus} and {total.get('memory', 0) / GIB:.1f} GiB on "
        f"{alive} node{'' if alive == 1 else 's'}"
    )


def await_nodes(needed: Resources, needs: Mapping[str, Need], seconds: float) -> None:
    """Wait until the cluster has room for all that the study asks for at once; raises InputError after `seconds`.

    The demand is a placement group of this job: it makes an autoscaler start nodes, and ends with the driver, so
    that nobody pays for nodes that a killed study asked for. The nodes stay for their idle timeout, within which
    engines and workers take them.
    """
    asked = [needs["generator"]] * needed.generators
    asked += [needs["learner"]] * (needed.groups * needed.workers)
    asked.append(needs["tasks"])
    print(f"nodes        waiting up to {seconds:g} s for {needed.explain()}", file=sys.stderr, flush=True)
    group = placement_group(
        [need.bundle for need in asked],
        strategy="PACK",
        bundle_label_selector=[dict(need.labels) for need in asked],
    )
    try:
        if not group.wait(seconds):
            total = ray.cluster_resources()
            raise InputError(
                f"resources.nodes_seconds (got {seconds:g}): the study asks for {needed.explain()}, and after that "
                f"time the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, not all of them "
                "free or with the labels asked for; raise it, allow more nodes, or ask for less."
            )
    finally:
        remove_placement_group(group)
