"""The leading singular directions of a base model, as one file, for the SFT recipe `rotation` that holds them.

The factors come from the store in which every matrix is decomposed once, so that comparisons with the base find
them there; sft reads the file alone and knows nothing of spectra.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rlheals_ray.config import InputError, Study
from rlheals_ray.folder import Folder
from rlheals_ray.lineage import BASE
from rlheals_ray.spectra.factors import leading_factors
from rlheals_ray.spectra.matrices import Matrices
from rlheals_ray.spectra.stock import Where, Workers, stocked
from rlheals_ray.storage import StudyFiles

FACTORS = "factors"
"""Below the study's directory: the store of factors."""


def prepare(study: Study, files: StudyFiles, workers: Workers | None = None) -> None:
    """Write the file of the study's base for the recipe `rotation`; does nothing where it is there.

    Ray must be up; checkpoints/base must be complete. Raises InputError as `stocked` does.
    """
    settings = study.sft.rotation
    target = files.root / ANCHORS
    stamp = files.checkpoint(BASE) / "provenance.json"
    made_of = stamp.read_text() if stamp.exists() else ""
    write(files.checkpoint(BASE), settings.roles, settings.k, files.root / FACTORS, target, workers, made_of)


ANCHORS = "factors/rotation.safetensors"
"""Below the study's directory; sft/recipes/rotation.py says the same."""


def write(
    base: Where,
    roles: Sequence[str],
    k: int,
    factors: Where,
    target: Path,
    workers: Workers | None = None,
    made_of: str = "",
) -> None:
    """Write U_k (m, k), S (k,) and V_k (n, k) of every matrix W₀ of these roles, float32, as one safetensors file.

    Tensors are named `<parameter>.U`, `.S` and `.V`; U_kᵀ W₀ V_k = diag(S). k beyond a matrix's rank is its rank.
    made_of: what else the file depends on; one that is there, for the same, is left alone. Fused matrices,
    whose parts are no parameters, raise InputError.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    metadata = {"k": str(k), "roles": json.dumps(list(roles)), "made_of": made_of}
    if target.exists():
        with safe_open(str(target), "pt") as opened:
            if opened.metadata() == metadata:
                return
    matrices = Matrices.of(base)
    stock = stocked([base], roles, factors, workers).matrices[Folder.of(base).uri]
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in stock.items():
        if "[" in name:
            raise InputError(
                f"sft.recipe (got 'rotation'): the base stores {name!r} in one tensor with others; leave its role out "
                "of sft.rotation.roles."
            )
        U, S, Vh = leading_factors(stored.key, k, factors, lambda name=name: matrices.tensor(name))  # type: ignore[misc]
        tensors |= {
            f"{name}.U": U.contiguous(),
            f"{name}.S": S[:k].contiguous(),
            f"{name}.V": Vh.mT.contiguous(),
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    save_file(tensors, str(temporary), metadata)
    temporary.replace(target)
