"""What a comparison found, as short tables for a terminal: means over the matrices of a role."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from rlheals_ray.spectra.roles import ROLES

Rows = list[dict[str, Any]]


def print_spectra(table: pa.Table) -> None:
    """Of the table `spectra`: a line for each pair, role and k. Angles in degrees."""
    rows = table.to_pylist()
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in rows):
        shown = Table(title=f"{a} → {b}: means over matrices", title_justify="left")
        for column in ("role", "k", "drift", "angle u", "noise u", "null u", "turn", "|ΔW|", "looks random"):
            shown.add_column(column, justify="left" if column == "role" else "right")
        for role, k, members in _groups([row for row in rows if (row["a"], row["b"]) == (a, b)]):
            shown.add_row(
                role,
                str(k),
                _mean(members, "drift_mean", ".2e"),
                _degrees(members, "angle_u_mean"),
                _degrees(members, "noise_angle_u"),
                _degrees(members, "null_angle"),
                _mean(members, "turn", ".3f"),
                _mean(members, "delta_norm", ".3g"),
                f"{sum(row['looks_random'] for row in members)} of {len(members)}",
            )
        _show(shown)


def print_updates(table: pa.Table) -> None:
    """Of the table `updates`: a line for each role and k of its first chain. Angles in degrees."""
    rows = table.to_pylist()
    names = " → ".join(rows[0][side] for side in "abc") if rows else ""
    shown = Table(title=f"{names}: ΔW₁ beside ΔW₂, means over matrices", title_justify="left")
    for column in ("role", "k", "cosine", "angle u", "null u", "angle v", "null v", "|ΔW₁|", "|ΔW₂|"):
        shown.add_column(column, justify="left" if column == "role" else "right")
    for role, k, members in _groups(rows):
        shown.add_row(
            role,
            str(k),
            _mean(members, "cosine", "+.3f"),
            *(_degrees(members, name) for name in ("angle_u_mean", "null_angle_u", "angle_v_mean", "null_angle_v")),
            _mean(members, "delta_norm_1", ".3g"),
            _mean(members, "delta_norm_2", ".3g"),
        )  # fmt: skip
    _show(shown)


def _groups(rows: Rows) -> list[tuple[str, int, Rows]]:
    """(role, k, their rows) in the order of roles and k."""
    found: dict[tuple[int, str, int], Rows] = {}
    for row in rows:
        role = str(row["role"])
        found.setdefault((ROLES.index(role), role, row["k"]), []).append(row)
    return [(role, k, members) for (_, role, k), members in sorted(found.items(), key=lambda item: item[0])]


def _mean(rows: Rows, column: str, form: str, of: Callable[[float], float] = float) -> str:
    values = [of(value) for row in rows if isinstance(value := row[column], int | float)]
    return format(sum(values) / len(values), form) if values else "-"


def _degrees(rows: Rows, column: str) -> str:
    text = _mean(rows, column, ".3g", math.degrees)
    return text if text == "-" else f"{text}°"


def _show(table: Table) -> None:
    # Wide enough for all columns where the output is a file.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
