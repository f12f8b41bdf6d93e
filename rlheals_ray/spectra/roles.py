"""Which part of the network a tensor is: names of Llama- and Qwen-like models to (layer, role)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "embed", "head")

# The prefix is spelt out: a vision tower also has layers.N.self_attn.q_proj, and is not meant.
_PREFIX = r"(?:model\.|language_model\.model\.|model\.language_model\.)"
_LAYER = re.compile(rf"{_PREFIX}layers\.(\d+)\.(?:self_attn\.([qkvo])_proj|mlp\.(gate|up|down)_proj)\.weight")
_EMBED = re.compile(rf"{_PREFIX}embed_tokens\.weight")
_HEAD = re.compile(r"(?:language_model\.)?lm_head\.weight")


def locate(name: str) -> tuple[int | None, str] | None:
    """(layer, role) of a weight matrix, layer None for `embed` and `head`; None for any other tensor."""
    if match := _LAYER.fullmatch(name):
        return int(match[1]), match[2] or match[3]
    if _EMBED.fullmatch(name):
        return None, "embed"
    if _HEAD.fullmatch(name):
        return None, "head"
    return None


def select(names: Iterable[str], roles: Collection[str], layers: Collection[int] | None = None) -> list[str]:
    """The matrices of these roles, ordered by layer and role; `layers` None is all of them.

    With `layers` given, `embed` and `head`, which lie in no layer, are left out.
    Raises ValueError for an unknown role.
    """
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        raise ValueError(f"roles {unknown} are unknown; choose from {list(ROLES)}")
    found = []
    for name in names:
        place = locate(name)
        if place and place[1] in roles and (layers is None or place[0] in layers):
            found.append((-1 if place[0] is None else place[0], ROLES.index(place[1]), name))
    return [name for _, _, name in sorted(found)]
