"""Rotations between subspaces and the modes of recombination: laws, and scipy's principal angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import logm, subspace_angles

from rlheals_ray.spectra import decompose, recombine
from rlheals_ray.spectra.measures import noisy
from rlheals_ray.spectra.recombination import Recombination
from rlheals_ray.spectra.rotation import Rotation, complete, minimal_rotation, random_rotation

few = settings(max_examples=40, deadline=None)


def bases(m: int, k: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two orthonormal (m, k) bases, the second as far from the first as a Gaussian step of this size leads."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(m, k, generator=generator, dtype=torch.float64)
    second = first + distance * torch.randn(m, k, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(first)[0], torch.linalg.qr(second)[0]


def matrices(m: int, n: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(m, n, generator=generator, dtype=torch.float64)
    return first, first + distance * torch.randn(m, n, generator=generator, dtype=torch.float64)


def formed(rotation: Rotation, t: float = 1.0) -> torch.Tensor:
    return rotation.apply(torch.eye(rotation.a.shape[0], dtype=torch.float64), t)


shapes = st.tuples(st.integers(2, 14), st.integers(2, 14))
distances = st.sampled_from([1e-8, 1e-4, 0.1, 1.0, 10.0])
seeds = st.integers(0, 10_000)


@few
@given(m=st.integers(2, 16), data=st.data(), distance=distances, seed=seeds)
def test_the_minimal_rotation_leads_from_one_subspace_to_the_other(
    m: int, data: st.DataObject, distance: float, seed: int
) -> None:
    source, target = bases(m, data.draw(st.integers(1, m)), distance, seed)
    rotation = minimal_rotation(source, target)
    turned = rotation.apply(source)
    assert np.allclose(subspace_angles(turned.numpy(), target.numpy()), 0, atol=1e-7)
    whole = formed(rotation)
    assert torch.allclose(whole.T @ whole, torch.eye(m, dtype=torch.float64), atol=1e-9)
    expected = np.sort(subspace_angles(source.numpy(), target.numpy()))
    # scipy's own angles are off by up to 1.5e-8 where they should be 0.
    assert np.allclose(np.sort(rotation.angles.numpy()), expected, rtol=1e-5, atol=3e-8)


@few
@given(m=st.integers(3, 12), data=st.data(), seed=seeds)
def test_it_is_the_shortest_and_half_of_it_twice_is_the_whole(m: int, data: st.DataObject, seed: int) -> None:
    """Its generator has the norm sqrt(2 Σθ²), the least of any rotation between the two (Davis and Kahan)."""
    source, target = bases(m, data.draw(st.integers(1, m // 2)), 0.3, seed)
    rotation = minimal_rotation(source, target)
    length = np.linalg.norm(logm(formed(rotation).numpy()))
    angles = subspace_angles(source.numpy(), target.numpy())
    assert length == pytest.approx(math.sqrt(2 * float((angles**2).sum())), rel=1e-6)
    half = rotation.apply(rotation.apply(source, 0.5), 0.5)
    assert torch.allclose(half, rotation.apply(source), atol=1e-9)


def test_orthogonal_subspaces_have_a_rotation_too() -> None:
    whole = torch.linalg.qr(
        torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    for source, target in ((whole[:, :3], whole[:, 3:6]), (whole[:, :3], whole[:, [0, 3, 4]])):
        rotation = minimal_rotation(source, target)
        assert np.allclose(subspace_angles(rotation.apply(source).numpy(), target.numpy()), 0, atol=1e-6)
        assert torch.allclose(
            formed(rotation).T @ formed(rotation), torch.eye(8, dtype=torch.float64), atol=1e-9
        )


@few
@given(m=st.integers(4, 16), data=st.data(), seed=seeds)
def test_a_random_rotation_has_the_angles_asked_for(m: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, m // 2))
    source, target = bases(m, k, 0.5, seed)
    angles = torch.as_tensor(subspace_angles(source.numpy(), target.numpy()).copy())
    turned = random_rotation(source, angles, torch.Generator().manual_seed(seed)).apply(source)
    assert np.allclose(subspace_angles(source.numpy(), turned.numpy()), angles, atol=1e-7)


@few
@given(m=st.integers(2, 14), data=st.data(), distance=distances, seed=seeds)
def test_completion_is_orthonormal_and_as_near_as_can_be(
    m: int, data: st.DataObject, distance: float, seed: int
) -> None:
    r = data.draw(st.integers(1, m))
    k = data.draw(st.integers(0, r))
    own, other = bases(m, r, distance, seed)
    completed, smallest = complete(other[:, :k], own[:, k:])
    mixed = torch.cat([other[:, :k], completed], dim=1)
    assert torch.allclose(mixed.T @ mixed, torch.eye(r, dtype=torch.float64), atol=1e-9)
    raw = torch.cat([other[:, :k], own[:, k:]], dim=1)
    assert smallest == pytest.approx(float(torch.linalg.svdvals(raw)[-1]), abs=1e-7)
    # Any other orthonormal completion within the same complement lies no nearer.
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(r - k, r - k, generator=generator, dtype=torch.float64))[0]
    near = torch.linalg.norm(completed - own[:, k:])
    assert near <= torch.linalg.norm(completed @ turn - own[:, k:]) + 1e-9


def test_a_lost_direction_is_reported_and_completed_all_the_same() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    completed, smallest = complete(identity[:, [3]], identity[:, 1:])
    assert smallest == pytest.approx(0, abs=1e-12)
    mixed = torch.cat([identity[:, [3]], completed], dim=1)
    assert torch.allclose(mixed.T @ mixed, identity, atol=1e-12)


@few
@given(shape=shapes, data=st.data(), distance=distances, seed=seeds, mode=st.sampled_from(["orthonormal", "rotate"]),
       part=st.sampled_from(["top", "tail"]))  # fmt: skip
def test_modes_with_orthonormal_bases_keep_the_singular_values(
    shape: tuple[int, int], data: st.DataObject, distance: float, seed: int, mode: str, part: str
) -> None:
    weight, other = matrices(*shape, distance, seed)
    k = data.draw(st.integers(0, min(shape) - (mode == "rotate")))
    t = data.draw(st.floats(0, 1)) if mode == "rotate" else 1.0
    edited = recombine(decompose(weight), decompose(other), k, "UV", mode, part=part, t=t)
    before, after = torch.linalg.svdvals(weight), torch.linalg.svdvals(edited.double())
    assert float((before - after).abs().max()) <= 1e-5 * float(before[0])


@few
@given(shape=shapes, data=st.data(), distance=st.sampled_from([0.1, 1.0]), seed=seeds)
def test_the_orthonormal_mode_keeps_the_donors_leading_directions_exactly(
    shape: tuple[int, int], data: st.DataObject, distance: float, seed: int
) -> None:
    """The k leading σ_i u_i v_iᵀ of the result are the recipient's σ_i on the donor's directions."""
    weight, other = matrices(*shape, distance, seed)
    k = data.draw(st.integers(1, min(shape)))
    own, donor = decompose(weight), decompose(other)
    edited = recombine(own, donor, k, "UV", "orthonormal").double()
    through = edited @ donor[2][:k].double().T
    assert torch.allclose(through, (donor[0][:, :k] * own[1][:k]).double(), atol=1e-5 * float(own[1][0]))


@few
@given(shape=shapes, data=st.data(), distance=st.sampled_from([1e-4, 0.1, 1.0]), seed=seeds)
def test_the_whole_way_of_rotate_gives_the_recipient_the_donors_subspaces(
    shape: tuple[int, int], data: st.DataObject, distance: float, seed: int
) -> None:
    weight, other = matrices(*shape, distance, seed)
    own, donor = decompose(weight), decompose(other)
    k = data.draw(st.integers(1, max(1, min(shape) - 1)))
    if k >= min(shape):
        return
    none, whole = (recombine(own, donor, k, "UV", "rotate", t=t).double() for t in (0.0, 1.0))
    assert torch.allclose(none, weight, atol=2e-6 * float(own[1][0]))
    # The image of the donor's right subspace is the donor's left subspace, with the recipient's σ_1 … σ_k.
    image = whole @ donor[2][:k].double().T
    outside = image - donor[0][:, :k].double() @ (donor[0][:, :k].double().T @ image)
    assert float(outside.abs().max()) <= 1e-5 * float(own[1][0])
    assert torch.allclose(torch.linalg.svdvals(image), own[1][:k].double(), atol=1e-5 * float(own[1][0]))


def test_the_tail_is_the_top_of_the_reversed_order() -> None:
    """With k of the tail and r − k of the top replaced one after the other, everything is the donor's."""
    weight, other = matrices(9, 6, 0.5, 0)
    own, donor = decompose(weight), decompose(other)
    tail = recombine(own, donor, 2, "USV", part="tail").double()
    expected = sum(
        float(S[i]) * torch.outer(U[:, i], Vh[i]).double()
        for i in range(6)
        for U, S, Vh in [donor if i >= 4 else own]
    )
    assert torch.allclose(tail, torch.as_tensor(expected), atol=1e-5)


@few
@given(shape=shapes, data=st.data(), seed=seeds)
def test_the_control_of_equal_angle_turns_as_far_and_keeps_the_singular_values(
    shape: tuple[int, int], data: st.DataObject, seed: int
) -> None:
    weight, other = matrices(*shape, 0.1, seed)
    k = data.draw(st.none() | st.integers(1, min(shape)))
    own, donor = decompose(weight), decompose(other)
    pair = Recombination(own, donor)
    turned = pair.randomly_turned(pair.count(k), seed)
    assert torch.allclose(torch.linalg.svdvals(turned), own[1].double(), atol=1e-5 * float(own[1][0]))
    if k is not None and 2 * k <= min(shape) and float(own[1][k - 1]) > 1.2 * float(own[1][k]):
        after = decompose(turned)
        for side in (0, 2):
            span = [f[0][:, :k].numpy() if side == 0 else f[2][:k].T.numpy() for f in (own, after, donor)]
            asked, got = subspace_angles(span[0], span[2]), subspace_angles(span[0], span[1])
            assert np.allclose(got, asked, atol=1e-4)
    assert torch.equal(turned, pair.randomly_turned(pair.count(k), seed)), "not seeded"


def test_the_control_of_equal_norm_goes_as_far_in_no_particular_direction() -> None:
    weight, other = matrices(60, 40, 0.1, 0)
    step = noisy(weight, 3.0, seed=1) - weight
    assert float(torch.linalg.norm(step)) == pytest.approx(3.0, rel=1e-6)
    cosine = float((step * (other - weight)).sum() / 3.0 / torch.linalg.norm(other - weight))
    assert abs(cosine) < 0.1


def test_the_mixed_basis_says_how_much_had_to_give_way() -> None:
    weight, near = matrices(12, 8, 1e-6, 0)
    far = matrices(12, 8, 0.1, 1)[0]
    assert Recombination(decompose(weight), decompose(near)).smallest([4])[4] > 0.99
    assert Recombination(decompose(weight), decompose(far)).smallest([4])[4] < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "rotate", "k": None}, "fewer than 4 directions"),
        ({"t": 0.5}, "mode='rotate'"),
        ({"t": 2.0, "mode": "rotate"}, r"0\.\.1"),
        ({"part": "middle"}, "'top' or 'tail'"),
        ({"mode": "glue"}, "concatenate"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    own, donor = (decompose(weight) for weight in matrices(6, 4, 0.1, 0))
    with pytest.raises(ValueError, match=message):
        recombine(own, donor, **{"k": 2, **change})  # type: ignore[arg-type]
