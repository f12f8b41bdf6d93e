"""Which part of the network a tensor is: names of decoder-only transformers to (layer, role).

Known are the names of Llama, Mistral, Qwen2, Qwen2.5, Qwen3, Gemma and their like, the text layers of
models with images (Mllama, Gemma 3, Qwen2-VL), and the fused matrices of Phi-3 and GLM: `qkv_proj` holds the
rows of q, k and v, in this order, and `gate_up_proj` those of gate and up. A part of a fused matrix has a
name of its own, `model.layers.0.self_attn.qkv_proj.weight[q]`; see spectra/matrices.py for its rows.

No role have: biases and norms, which are vectors; vision towers; experts, which are stored in stacks; and
Mllama's cross-attention (`cross_attn.{q,k,v,o}_proj`), which reads images and is skipped without one. The MLPs
of its layers do have their roles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "embed", "head")
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""The roles whose rows a fused matrix holds, in their order."""

# The prefix is spelt out: a vision tower also has layers.N.self_attn.q_proj, and is not meant.
_PREFIX = r"(?:model\.|language_model\.model\.|model\.language_model\.)"
_LAYER = re.compile(
    rf"{_PREFIX}layers\.(\d+)\.(?:self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|up|down|gate_up)_proj)\.weight"
)
_EMBED = re.compile(rf"{_PREFIX}embed_tokens\.weight")
_HEAD = re.compile(r"(?:language_model\.)?lm_head\.weight")
_PART = re.compile(r"(.+)\[(\w+)\]")


def locate(name: str) -> tuple[int | None, str] | None:
    """(layer, role) of a weight matrix, layer None for `embed` and `head`; None for any other tensor.

    A fused matrix has no role, its parts have: `...qkv_proj.weight[q]` is q. An embedding that serves as
    the head too (tied), named `...embed_tokens.weight[head]`, is the head.
    """
    name, part = split_part(name)
    if match := _LAYER.fullmatch(name):
        role = match[2] or match[3]
        if role in FUSED:
            return (int(match[1]), part) if part in FUSED[role] else None
        return None if part else (int(match[1]), role)
    if _EMBED.fullmatch(name):
        return (None, part or "embed") if part in (None, "head") else None
    if _HEAD.fullmatch(name):
        return None if part else (None, "head")
    return None


def split_part(name: str) -> tuple[str, str | None]:
    """A matrix's name as (the stored tensor's name, the part of it that is meant, or None for the whole)."""
    match = _PART.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def parts(name: str) -> list[str]:
    """The names of the matrices that a stored tensor holds: its parts where it is fused, itself where it has
    a role, none otherwise."""
    match = _LAYER.fullmatch(name)
    if match and (fused := FUSED.get(match[2] or match[3])):
        return [f"{name}[{part}]" for part in fused]
    return [name] if locate(name) and split_part(name)[1] is None else []


def select(names: Iterable[str], roles: Collection[str], layers: Collection[int] | None = None) -> list[str]:
    """The matrices of these roles, ordered by layer and role; `layers` None is all of them.

    `names`: of stored tensors or of matrices. With `layers` given, `embed` and `head`, which lie in no layer,
    are left out. Where no tensor is the head, the embedding is (the two are tied): asked for `head` without
    `embed`, it comes as `...embed_tokens.weight[head]`; asked for both, it comes once, as `embed`.
    Raises ValueError for an unknown role.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise ValueError(f"roles {unknown} are unknown; choose from {list(ROLES)}")
    matrices = [matrix for name in names for matrix in (parts(name) or [name])]
    places = {matrix: place for matrix in matrices if (place := locate(matrix))}
    if "head" in roles and "embed" not in roles and (None, "head") not in places.values():
        tied = [matrix for matrix, place in places.items() if place == (None, "embed")]
        places.update({f"{matrix}[head]": (None, "head") for matrix in tied})
    found = [
        (-1 if layer is None else layer, ROLES.index(role), matrix)
        for matrix, (layer, role) in places.items()
        if role in roles and (layers is None or layer in layers)
    ]
    return [matrix for _, _, matrix in sorted(found)]
