"""What one process reserves on its node. Light: a plan says it without loading Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CORES = "cores"
"""The label by which a node that offers more CPUs than it has cores (`cluster/local`) says how many these are."""


@dataclass(frozen=True)
class Offer:
    """What a node has."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    """Bytes."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Offer:
        """Of one of `ray.nodes()`."""
        has = node["Resources"]
        return cls(has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0), node["Labels"])

    @property
    def cores(self) -> float:
        """CPUs that can compute at one time: all of them, unless the node's label says fewer."""
        told = self.labels.get(CORES, "")
        return min(self.cpus, float(told)) if told.isdecimal() else self.cpus


@dataclass(frozen=True)
class Need:
    """CPUs and GPUs (fractions share one), memory and the labels of the nodes that will do."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    """Bytes; 0: none are reserved."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def fits(self, offer: Offer) -> bool:
        """Whether an empty node of this kind could hold it."""
        enough = self.cpus <= offer.cpus and self.gpus <= offer.gpus and self.memory <= offer.memory
        return enough and selects(self.labels, offer.labels)

    def most_memory(self, offers: Iterable[Offer]) -> float:
        """Bytes of the largest of the nodes that could hold it; 0 where there is none."""
        return max((offer.memory for offer in offers if self.fits(offer)), default=0.0)

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPUs"]
        parts += [f"{self.gpus:g} GPUs"] if self.gpus else []
        parts += [f"{self.memory / 2**30:g} GiB"] if self.memory else []
        parts += [f"labels {dict(self.labels)}"] if self.labels else []
        return ", ".join(parts)

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray Train and placement groups name it."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory)}
        return {name: amount for name, amount in asked.items() if amount}

    def options(self) -> dict[str, Any]:
        """Options of a Ray task or actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options


def side_by_side(nodes: Iterable[Mapping[str, Any]], need: Need | None = None) -> int:
    """How many tasks that compute all the time these `ray.nodes()` can run at one time, by their cores; at least 1."""
    need = need or Need()
    offers = [Offer.of(node) for node in nodes if node["Alive"]]
    return max(1, sum(int(offer.cores / need.cpus) for offer in offers if need.fits(offer)))


def selects(labels: Mapping[str, str], of_node: Mapping[str, str]) -> bool:
    """Whether a node with the labels `of_node` is one of those that `labels` name, as Ray reads them."""

    def one(key: str, value: str) -> bool:
        wanted = value.removeprefix("!")
        among = wanted.removeprefix("in(").removesuffix(")").split(",")
        return (of_node.get(key) in among) != value.startswith("!")

    return all(one(key, value) for key, value in labels.items())
