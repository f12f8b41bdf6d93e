"""Stored factors: once per content, whole or in part, on any filesystem, mended where damaged."""

from pathlib import Path

import pytest
import torch

from rlheals_ray.folder import Folder
from rlheals_ray.spectra import decompose
from rlheals_ray.spectra.factors import leading_factors, store_factors, stored_factors
from rlheals_ray.spectra.kept import kept


@pytest.fixture(params=["local", "memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.of(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


def never() -> torch.Tensor:
    raise AssertionError("the matrix was read again")


def test_factors_are_found_again_whole_and_in_part(folder: Folder) -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(0))
    key, S = store_factors(weight, folder)
    expected = decompose(weight)
    assert torch.equal(S, expected[1])
    assert store_factors(weight.clone(), folder)[0] == key
    for found, factor in zip(stored_factors(weight, folder), expected, strict=True):
        assert torch.equal(found, factor)
    for k, columns in ((4, 4), (9, 9), (50, 9)):
        U, S, Vh = leading_factors(key, k, folder, never)
        assert torch.equal(U, expected[0][:, :columns])
        assert torch.equal(S, expected[1])
        assert torch.equal(Vh, expected[2][:columns])


@pytest.mark.parametrize("left", [b"", b"damaged", None])
def test_what_was_damaged_is_made_anew(folder: Folder, left: bytes | None) -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    key, S = store_factors(weight, folder)
    name = f"{key[:2]}/{key}.safetensors"
    whole = folder.read(name)
    folder.write(name, whole[:-7] if left is None else left)
    assert torch.equal(leading_factors(key, 2, folder, lambda: weight)[1], S)
    assert folder.read(name) == whole


def test_a_matrix_of_another_dtype_is_another_matrix(tmp_path: Path) -> None:
    weight = torch.ones(3, 2)
    keys = {store_factors(weight.to(dtype), tmp_path)[0] for dtype in (torch.float32, torch.bfloat16)}
    assert len(keys) == 2


def test_what_was_found_is_kept_under_all_that_it_depends_on(folder: Folder) -> None:
    made = []

    def make() -> list[dict[str, object]]:
        made.append(1)
        return [{"k": 4, "value": 0.1, "none": None}]

    first = kept(folder, make, code=1, a="x", ks=[4])
    assert kept(folder, make, ks=[4], a="x", code=1) == first and len(made) == 1
    kept(folder, make, code=2, a="x", ks=[4])
    kept(folder, make, code=1, a="x", ks=[4, 8])
    kept(None, make, code=1, a="x", ks=[4])
    assert len(made) == 4
