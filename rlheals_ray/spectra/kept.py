"""What was found of matrices, kept one by one under all that it depends on, so that killed work goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from rlheals_ray.folder import Folder
from rlheals_ray.spectra.roles import locate

Rows = list[dict[str, Any]]


def kept(folder: Folder | None, make: Callable[[], Rows], **inputs: Any) -> Rows:
    """The rows that `make` returns (JSON values), from the folder where they were made of the same inputs before.

    inputs: JSON values, contents of matrices as their keys, and a version of the code. No folder: nothing is kept.
    """
    if folder is None:
        return make()
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    name = f"{digest[:2]}/{digest}.json"
    try:
        return list(json.loads(folder.read(name)))
    except (FileNotFoundError, ValueError):
        rows = make()
        folder.write(name, json.dumps(rows).encode())
        return rows


def place(matrix: str) -> dict[str, Any]:
    """The columns that say which matrix a row is about."""
    layer, role = locate(matrix) or (None, None)
    return {"matrix": matrix, "layer": layer, "role": role}
