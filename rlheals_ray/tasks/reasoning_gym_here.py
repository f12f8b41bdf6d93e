"""reasoning_gym with problems drawn in the process that asks: for a check of a study's two configurations.

Drawing in a process of its own, as studies do, costs the import of the package once for each part. Here the problems
are of the same kind, but which ones they are may depend on the process.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rlheals_ray.tasks.reasoning_gym import ReasoningGym
from rlheals_ray.tasks.reasoning_gym_draw import Draw, DrawError, Item, drawn

NAME = f"{__name__}:DrawnHere"
"""As `get_task` takes it."""


def _draw(wanted: Draw) -> list[Item]:
    """As `reasoning_gym_draw.drawn`; the random states are then what they were."""
    import numpy

    state, numpys = random.getstate(), numpy.random.get_state()
    try:
        return drawn(wanted)
    except Exception as error:  # generators raise whatever comes
        raise DrawError(" ".join(f"{type(error).__name__}: {error}".split())) from None
    finally:
        random.setstate(state)
        numpy.random.set_state(numpys)


class DrawnHere(ReasoningGym):
    """The task; the same options, prompts and verdicts."""

    def _drawing(self) -> Callable[[Draw], list[Item]]:
        return _draw
