"""Where a line's name stands free: beside its own line, clear of everything else that is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
"""(points, 2): x and y in the panel's data units."""


def along(xs: Sequence[float], ys: Sequence[float], pieces: int = 32) -> Points:
    """Points along the polyline through (xs, ys), `pieces` to a segment, its corners included."""
    if len(xs) < 2:
        return np.array([[x, y] for x, y in zip(xs, ys, strict=True)], dtype=np.float64).reshape(-1, 2)
    fine = np.linspace(0, len(xs) - 1, (len(xs) - 1) * pieces + 1)
    corners = np.arange(len(xs))
    return np.stack([np.interp(fine, corners, xs), np.interp(fine, corners, ys)], axis=1)


def free_place(
    line: Points, obstacles: Iterable[Points], half: tuple[float, float], within: tuple[Points, Points]
) -> tuple[float, float]:
    """Centre of a text box of half-size `half` beside `line` that covers the fewest obstacle points.

    `within` is the lowest and the highest corner that the box may reach. Among equally free places the
    one nearest to its line wins, then the one furthest from the obstacles.
    """
    width, height = half
    shifts = [
        (dx * width, dy * height) for dx in (-1.15, -0.6, 0, 0.6, 1.15) for dy in (-2.6, -1.7, 1.7, 2.6)
    ]
    centres = (line[::4, None, :] + np.array(shifts)[None, :, :]).reshape(-1, 2)
    low, high = np.array(within[0]) + half, np.array(within[1]) - half
    inside = centres[((centres >= low) & (centres <= high)).all(axis=1)]
    if not len(inside):
        return float(line[0, 0]), float(line[0, 1])
    points = np.concatenate([line, *obstacles])
    away = np.abs(points[None, :, :] - inside[:, None, :]) / np.array(half)
    covered = (away < 1.25).all(axis=2).sum(axis=1)
    own = np.linalg.norm((line[None, :, :] - inside[:, None, :]) / np.array(half), axis=2).min(axis=1)
    others = np.concatenate([points[len(line) :], np.full((1, 2), np.inf)])
    nearest = np.linalg.norm((others[None, :, :] - inside[:, None, :]) / np.array(half), axis=2).min(axis=1)
    best = np.lexsort((-np.minimum(nearest, 9), np.round(own, 0), covered))[0]
    return float(inside[best, 0]), float(inside[best, 1])
