"""Integer matrices for tests: of every rank, and near-copies of one."""

import random

from hypothesis import strategies as st

from rlheals_ray.tasks.integer_matrix import Matrix


@st.composite
def integer_matrices(draw: st.DrawFn) -> Matrix:
    """Products of factors, so that every rank occurs, 0 included."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rank = draw(st.integers(1, 5))
    entries = st.integers(-5, 5)
    left = draw(st.lists(st.lists(entries, min_size=rank, max_size=rank), min_size=height, max_size=height))
    right = draw(st.lists(st.lists(entries, min_size=width, max_size=width), min_size=rank, max_size=rank))
    columns = list(zip(*right, strict=True))
    return tuple(
        tuple(sum(a * b for a, b in zip(row, column, strict=True)) for column in columns) for row in left
    )


def near_copy(rows: Matrix, rng: random.Random) -> Matrix:
    """The matrix with its rows and its columns reordered, some of them negated."""
    order = rng.sample(range(len(rows[0])), len(rows[0]))
    row_signs, column_signs = ([rng.choice((1, -1)) for _ in line] for line in (rows, rows[0]))
    signed = [
        [s * t * x for t, x in zip(column_signs, r, strict=True)]
        for s, r in zip(row_signs, rows, strict=True)
    ]
    return tuple(tuple(row[j] for j in order) for row in rng.sample(signed, len(signed)))
