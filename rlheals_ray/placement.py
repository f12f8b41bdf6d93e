"""Where actors and tasks go on a cluster of several nodes.

What the study cannot go on without (queue, pool, the drivers of worker groups) stays on the driver's own node: the loss
of any other node then costs what was at work there, and no more. Engines go beside the learner that they are to serve,
unless the study names the nodes for them by label.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlheals_ray.need import Need


def here() -> NodeAffinitySchedulingStrategy:
    """On the caller's node, and nowhere else. Ray puts what asks for no CPU on any node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def options_here() -> dict[str, Any]:
    """Options by which Ray Data's tasks run on the caller's node while it takes any, and else on another."""
    name, node = "ray.io/node-id", ray.get_runtime_context().get_node_id()
    other = {"label_selector": {name: f"!{node}"}}
    return {"label_selector": {name: node}, "fallback_strategy": [other]}


def beside(node: str) -> NodeAffinitySchedulingStrategy:
    """On that node if it lives and has room, else on any: nothing ever waits for a node."""
    # Without the last argument Ray falls back from a dead node, but waits for ever for one that is full.
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def options_beside(need: Need, node: str | None) -> dict[str, Any]:
    """Options of an actor that reserves `need`, `beside` the node where one is given and no labels say otherwise."""
    placed = {} if need.labels or node is None else {"scheduling_strategy": beside(node)}
    return need.options() | placed


def has_process(actor: ray.actor.ActorHandle) -> bool:
    """Whether the actor has a process on some node, be it starting; else it waits for a node with room for it."""
    # Private to Ray; its public state API asks the dashboard, which a cluster need not have.
    try:
        state = ray._private.state.actors(actor._actor_id.hex())
    except Exception:  # a deadline that runs is the safe side
        return True
    return bool(state.get("Address", {}).get("IPAddress", "unknown"))


def is_spread() -> bool:
    """Whether the connected cluster has more than one node with CPUs."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()) > 1
