"""What several files of unit tests share: the game of the nano study and its tokens."""

import pytest

from rlheals_ray.tasks.general_points import GeneralPoints

TARGETS = [18, 24]


@pytest.fixture(scope="session")
def game() -> GeneralPoints:
    """The task of the nano study."""
    from rlheals_ray.tasks import get_task

    return get_task("general_points", cards=3, targets=TARGETS, wording="compact")


@pytest.fixture(scope="session")
def chat():  # type: ignore[no-untyped-def]  # (imported late: not every test needs transformers)
    """The nano model's chat format."""
    from rlheals_ray.models.chat import ChatFormat
    from rlheals_ray.models.nano import tokenizer

    return ChatFormat(tokenizer(TARGETS))
