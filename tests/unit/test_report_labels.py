"""Names of lines stand free of what is drawn, wherever there is room."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlheals_ray.report.labels import along, free_place

HALF = (1.0, 0.03)
WITHIN = (np.array([-0.6, 0.0]), np.array([11.6, 1.1]))


def covers(centre: tuple[float, float], points: np.ndarray) -> bool:
    return bool((np.abs(points - centre) < HALF).all(axis=1).any())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=12, max_size=12), st.floats(0, 1))
def test_a_name_keeps_inside_the_panel_and_off_both_lines(values: list[float], level: float) -> None:
    line, other = along(range(12), values), along(range(12), [level] * 12)
    centre = free_place(line, [other], HALF, WITHIN)
    assert (np.array(centre) - HALF >= WITHIN[0] - 1e-9).all()
    assert (np.array(centre) + HALF <= WITHIN[1] + 1e-9).all()
    smooth = np.abs(np.diff(values)).max() < 0.3
    if smooth:
        assert not covers(centre, line) and not covers(centre, other)


def test_a_line_is_sampled_through_its_corners() -> None:
    points = along([0, 1, 5], [0.0, 1.0, 0.0], pieces=4)
    assert points.shape == (9, 2)
    assert points[[0, 4, 8]].tolist() == [[0, 0], [1, 1], [5, 0]]
    assert along([3], [0.5]).tolist() == [[3, 0.5]]


def test_without_room_the_name_stands_on_the_line_rather_than_nowhere() -> None:
    assert free_place(along([0, 1], [0.5, 0.5]), [], (9.0, 9.0), WITHIN) == (0.0, 0.5)
