"""A learner's weights as one flat array, and the same tensors again as views of it."""

import warnings

import numpy as np
import pytest
import torch

from rlheals_ray.rollout.weight_sync import flatten, views
from tests.learning import tiny_llama


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_tensor_comes_back_by_its_name(tied: bool) -> None:
    state = tiny_llama(tied=tied).state_dict()
    back = dict(views(*flatten(state.items())))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_array_is_flat_and_float32() -> None:
    flat, layout = flatten([("a", torch.ones(2, 3, dtype=torch.bfloat16)), ("b", torch.tensor(4.0))])
    assert flat.dtype == np.float32 and flat.tolist() == [1] * 6 + [4]
    assert layout.tensors == (("a", (2, 3)), ("b", ()))


def test_later_training_does_not_reach_into_what_was_sent() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    flat, layout = flatten([("w", weight)])
    with torch.no_grad():
        weight.add_(1)
    assert not dict(views(flat, layout))["w"].any()


def test_views_copy_nothing_even_of_read_only_memory() -> None:
    """Ray's object store hands out read-only arrays."""
    flat, layout = flatten([("a", torch.arange(6.0).reshape(2, 3)), ("b", torch.arange(4.0))])
    flat.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = dict(views(flat, layout))
    address = flat.__array_interface__["data"][0]
    assert tensors["a"].data_ptr() == address and tensors["b"].data_ptr() == address + 6 * 4
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_layout_of_other_weights_is_refused() -> None:
    flat, layout = flatten([("a", torch.ones(4))])
    for wrong in (flat[:-1], np.append(flat, 1).astype(np.float32)):
        with pytest.raises(ValueError, match=r"describes 4 values, the array has [35]"):
            list(views(wrong, layout))


def test_weights_that_are_not_contiguous_keep_their_order() -> None:
    weight = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(dict(views(*flatten([("w", weight)])))["w"], weight)
