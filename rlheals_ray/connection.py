"""The way to Ray: join a cluster, or start a private one on this machine."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

from rlheals_ray.config import InputError

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "DS_ACCELERATOR": "cpu",
    # Who reserves no GPU sees none: otherwise Ray leaves all of them visible, and the first is taken by everybody.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # A trial stays where the job began: a task of one's own may read files by relative paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
SLOTS_PER_CORE = 4
"""Processes that may share one core of a local machine: stages alternate, so most of them wait."""
KNOCK_SECONDS = 20.0
"""In which a named cluster accepts a connection, or is told not to answer."""


def local_slots() -> int:
    return SLOTS_PER_CORE * (os.cpu_count() or 1)


def named_cluster(address: str | None) -> str | None:
    """The cluster to join, if one is named: by `--address` or by RAY_ADDRESS."""
    return address or os.environ.get("RAY_ADDRESS")


def prepare(address: str | None = None) -> None:
    """Set what Ray reads from the environment when it is imported, for a private cluster where none is named.

    Before the first import of ray: with the token mode of another cluster the driver would wait for ever.
    """
    if named_cluster(address):
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a private cluster of this process, on loopback:
    # Ray's way to say that no other machine will join. By default it listens on every interface, and
    # whoever reaches its ports can run code.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Workers are many and mostly wait: start them side by side, and do not warn about their number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(local_slots()))
    # Every worker here has its own environment: those that Ray starts in advance would never be used.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Nobody takes this machine away with notice: one process less for each worker group to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def connect(address: str | None = None) -> None:
    """Join the named cluster, or start Ray on this machine; does nothing when that was done already.

    Raises InputError when no cluster answers there, RuntimeError off the main thread.
    """
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        return  # and the environment stays that of the cluster which was joined
    prepare(address)
    import ray  # seconds: only where there is something to run

    if threading.current_thread() is not threading.main_thread():
        # The kernel ends Ray's processes with the thread that started them, not with the process.
        raise RuntimeError("Ray must be started from the main thread")
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if cluster := named_cluster(address):
        try:
            _knock(cluster)
            ray.init(address=cluster, **common)
        except (OSError, RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise InputError(
                f"--address (got {cluster!r}): no Ray cluster answers there ({cause}); "
                "check the address, or leave it out to run on this machine."
            ) from None
        return
    try:
        _start(common)
    except (
        Exception
    ) as error:  # of no class of its own: Ray gives its processes thirty seconds, however busy the machine
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        _start(common)


def _knock(cluster: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray would try for minutes."""
    parts = urlsplit(cluster if "://" in cluster else f"//{cluster}")
    if parts.hostname and parts.port:  # not "auto" or "local"
        socket.create_connection((parts.hostname, parts.port), KNOCK_SECONDS).close()


def _start(common: dict[str, Any]) -> None:
    import ray

    # "local": without an address Ray joins whatever head `ray start` has left running on this machine.
    ray.init(address="local", num_cpus=local_slots(), include_dashboard=False, **common)
