"""Decomposition and comparison on CUDA give what they give on the CPU. UNTESTED: written without a GPU at hand."""

import numpy as np
import pytest
import torch

from rlheals_ray.spectra import decompose, principal_angles
from rlheals_ray.spectra.linalg import singular_values
from rlheals_ray.spectra.null import null_spectrum
from rlheals_ray.spectra.pairwise import compare_matrices

pytestmark = pytest.mark.gpu


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 64), (512, 512), (4096, 300), (300, 2000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_decomposes_as_exactly_as_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = gaussian(*shape).to(dtype)
    U, S, Vh = decompose(weight.cuda())
    assert {U.device.type, S.device.type, Vh.device.type} == {"cuda"}
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(S.cpu(), expected, rtol=1e-6)
    rebuilt = (U.double() * S.double()) @ Vh.double()
    np.testing.assert_allclose(rebuilt.cpu(), weight.double(), atol=1e-6 * expected[0])
    np.testing.assert_allclose(singular_values(weight.cuda()).cpu(), expected, atol=1e-7 * expected[0])


def test_cuda_compares_as_the_cpu() -> None:
    a = gaussian(400, 300)
    b = a + 0.01 * gaussian(400, 300, 1)
    null = null_spectrum(400, 300)
    rows = []
    for device in ("cpu", "cuda"):
        weights = a.to(device), b.to(device)
        factors = [decompose(weight) for weight in weights]
        rows.append(
            compare_matrices(
                lambda w=weights: w[0],  # type: ignore[misc]
                lambda w=weights: w[1],  # type: ignore[misc]
                factors[0],
                factors[1],
                null,
                (4, 32),
            )
        )
        assert principal_angles(factors[0][0][:, :8], factors[0][0][:, :8])[-1] < 1e-12
    for on_cpu, on_cuda in zip(*rows, strict=True):
        assert on_cuda == {name: pytest.approx(value, rel=1e-3, abs=1e-6) for name, value in on_cpu.items()}
