"""A Ray cluster of several nodes on this machine, for tests: each node is a `ray start --block` of its own.

Only processes that descend from these are ever looked at or killed. Its address stands in no file that another
`ray.init()` would find.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    # A lost node is noticed after three seconds instead of fifteen.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # As connection.prepare does for a private cluster.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_prestart_worker_first_driver": "0",
    # Where an autoscaler is asked for: it starts processes, and looks every second.
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
FAKE_HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""What the fake provider takes for the head."""
AUTOSCALER = {
    # The one that `ray up` and KubeRay start. The one before it knows nothing of labels.
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
}
"""Of the head's environment, where it has an autoscaler."""


class _TimedOut(RuntimeError):
    """Of a node's start."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalCluster:
    """A head without CPUs, on which drivers run, and `nodes` nodes of `cpus` CPUs each.

    With `node_types` (their names -> resources, labels, max_workers) Ray's own autoscaler starts and ends nodes of
    these types, by its fake provider: as processes of this machine, all of them children of the head.
    """

    def __init__(
        self,
        nodes: int = 0,
        cpus: int = 1,
        node_types: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables`: of the environment of every node and driver, beside ENVIRONMENT."""
        self._variables = {**ENVIRONMENT, **(variables or {})}
        self._directory = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))  # short: sockets lie in it
        self._started = 0
        self.address = f"127.0.0.1:{free_port()}"
        self.head = self._start(
            "--head", f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0",
            f"--temp-dir={self._directory}", "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}",
            *(self._autoscaling(node_types) if node_types else ()),
            variables=AUTOSCALER if node_types else {},
        )  # fmt: skip
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.role: dict[subprocess.Popen[bytes], str] = {}
        for _ in range(nodes):
            self.add(cpus)

    def add(self, cpus: int, role: str = "") -> subprocess.Popen[bytes]:
        """One more node, with the label `role` where one is given."""
        labels = [f"--labels=role={role}"] if role else []
        node = self._start(f"--address={self.address}", f"--num-cpus={cpus}", *labels)
        self.nodes.append(node)
        self.role[node] = role
        return node

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to join."""
        return {**os.environ, **self._variables, "RAY_ADDRESS": self.address}

    def _autoscaling(self, node_types: Mapping[str, Any]) -> list[str]:
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake",
            "provider": {
                # By its class: of what it calls fake_multinode, Ray's wheel lacks the file of defaults.
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                # Nodes are ready when they are there: no SSH, and no addresses of their own to listen for.
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "worker_liveness_check": False,
                # All nodes have this machine's address; only their ids tell them apart.
                "use_node_id_as_ip": True,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD,
            },
            "available_node_types": {"ray.head.default": head}
            | {name: {"node_config": {}, "min_workers": 0, **each} for name, each in node_types.items()},
            "head_node_type": "ray.head.default",
            "max_workers": sum(each["max_workers"] for each in node_types.values()),
            "idle_timeout_minutes": 0.2,
            "upscaling_speed": 10,
            # What Ray fills in where a launcher file passes its command line.
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{
                f"{of}commands": []
                for of in (
                    "initialization_",
                    "setup_",
                    "head_setup_",
                    "worker_setup_",
                    "head_start_ray_",
                    "worker_start_ray_",
                )
            },
            "cluster_synced_files": [],
        }
        file = self._directory / "autoscaling.json"
        file.write_text(json.dumps(config))
        return [f"--autoscaling-config={file}"]

    def raylets(self) -> list[psutil.Process]:
        """One of each node, the head's included."""
        found = []
        for node in (self.head, *self.nodes):
            for process in self.processes(node):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if Path(process.exe()).name == "raylet":
                        found.append(process)
        return found

    def _start(
        self, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[bytes]:
        """Start a node, again where Ray gave up: it gives a node thirty seconds, however busy the machine."""
        for _ in range(5):
            with suppress(_TimedOut):
                return self._start_once(arguments, variables)
        raise RuntimeError("a node of Ray timed out in five starts")

    def _start_once(self, arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self._started += 1
        log = self._directory / f"node-{self._started}.log"
        node = subprocess.Popen(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1",
                "--disable-usage-stats", f"--object-store-memory={150 << 20}",
                f"--dashboard-agent-listen-port={free_port()}", *arguments,
            ],
            env={**os.environ, **self._variables, **variables}, stdout=log.open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        # One after the other: of two that start at one address at a time, Ray loses one.
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None:
                text = log.read_text()[-2000:]
                raise (_TimedOut if "timed out during startup" in text else RuntimeError)(
                    f"a node of Ray did not start:\n{text}"
                )
            time.sleep(0.1)
        return node

    def processes(self, node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Every process of a node, itself included; none when it is gone."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(node.pid)
            return [own, *own.children(recursive=True)]
        return []

    def named(self, title: str) -> list[tuple[subprocess.Popen[bytes], psutil.Process]]:
        """The processes whose title begins with `title`, with the nodes that they are on."""
        found = []
        for node in (self.head, *self.nodes):
            for process in self.processes(node):
                with suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith(title):
                        found.append((node, process))
        return found

    def holders(self, title: str) -> list[subprocess.Popen[bytes]]:
        """The nodes, not the head, that hold a process whose title begins so."""
        return [node for node in self.nodes if any(each is node for each, _ in self.named(title))]

    def drain(self, node: subprocess.Popen[bytes], seconds: int) -> None:
        """Tell Ray that the node will be taken away after so many seconds, as whoever runs spot nodes does."""
        prefix = "--node_id="
        lines = [process.cmdline() for process in self.processes(node)]
        [name] = [part.removeprefix(prefix) for line in lines for part in line if part.startswith(prefix)]
        subprocess.run(
            [
                sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={self.address}",
                f"--node-id={name}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back",
                f"--deadline-remaining-seconds={seconds}",
            ],
            env=self.environment, check=True, timeout=120,
        )  # fmt: skip

    def titles(self) -> list[str]:
        """Of all workers, for a message."""
        found = []
        for _, process in self.named("ray::"):
            with suppress(psutil.NoSuchProcess):
                found.append(process.cmdline()[0])
        return sorted(found)

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill -9 of a whole node."""
        # The raylet's parent first: it must not shut the others down in good order.
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        for node in (*self.nodes, self.head):
            self.kill(node)
        shutil.rmtree(self._directory, ignore_errors=True)
