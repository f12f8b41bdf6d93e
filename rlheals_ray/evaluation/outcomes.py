"""Outcomes of several checkpoints on the same problems, lined up so that every comparison is paired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def first_attempts(
    episodes: pa.Table, rule: str, checkpoints: Sequence[str]
) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Which problems of `rule` each checkpoint solved at its first attempt.

    `episodes`: `tables.EPISODES`. Returns the problem ids, sorted, and (problems, checkpoints)
    booleans, columns in the order of `checkpoints`. Raises ValueError when a checkpoint did not
    face exactly the problems that the others faced, or faced one twice: nothing would be paired.
    """
    wanted = pa.array(checkpoints, pa.string())
    here = episodes.filter(pc.equal(episodes["rule"], rule))
    here = here.filter(pc.is_in(here["checkpoint"], wanted))
    problems = sorted(pc.unique(here["problem_id"]).to_pylist())
    row = pc.index_in(here["problem_id"], pa.array(problems, pa.string())).to_numpy()
    column = pc.index_in(here["checkpoint"], wanted).to_numpy()
    seen = np.zeros((len(problems), len(checkpoints)), dtype=np.int64)
    np.add.at(seen, (row, column), 1)
    for name, times in zip(checkpoints, seen.T, strict=True):
        if not times.size or (times != 1).any():
            raise ValueError(
                f"{name}: expected one {rule} episode for each of {len(problems)} problems, "
                f"{np.count_nonzero(times == 0)} are missing and {np.count_nonzero(times > 1)} are repeated"
            )
    solved = np.zeros(seen.shape, dtype=np.bool_)
    solved[row, column] = pc.fill_null(pc.equal(here["solved_at"], 1), False).to_numpy()
    return problems, solved
