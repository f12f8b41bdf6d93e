"""Edits span grids: what a study may ask for, and which points and names that gives."""

import pytest

from rlheals_ray.config import EditSettings, EditVariant, InputError, edit_kinds, load_study
from rlheals_ray.grid.units import edit_group, edit_name
from rlheals_ray.lineage import Trunk

ROLES = ("q", "v")
TRUNK = Trunk("plain", 0)


def edit(text: str) -> EditSettings:
    """The one edit of a study that asks for it."""
    return load_study("tiny", [f"edits=[{text}]"]).edits[0]


def test_an_edit_without_lists_is_one_point_of_all_of_the_study_s_matrices() -> None:
    assert edit("{}").variants(ROLES) == (EditVariant("UV", "concatenate", "top", None, 1.0, ROLES, 0, 1),)


def test_lists_span_a_grid_in_a_fixed_order() -> None:
    grid = edit("{mode: [concatenate, orthonormal], k: [2, 0.5], roles: [[q], [v]], blocks: 2}")
    points = [(v.mode, v.roles, v.block, v.k) for v in grid.variants(ROLES)]
    assert points == [
        (mode, (role,), block, k)
        for mode in ("concatenate", "orthonormal")
        for role in ROLES
        for block in (0, 1)
        for k in (2, 0.5)
    ]


@pytest.mark.parametrize(("layers", "blocks"), [(3, 3), (30, 4), (28, 4), (7, 2)])
def test_blocks_cut_the_layers_without_gap_or_overlap(layers: int, blocks: int) -> None:
    found = [v.layers(layers) for v in edit(f"{{blocks: {blocks}}}").variants(ROLES)]
    assert sum((block or () for block in found), ()) == tuple(range(layers))
    sizes = [len(block or ()) for block in found]
    assert max(sizes) - min(sizes) <= 1


def test_one_block_is_all_layers_and_what_lies_in_none() -> None:
    assert edit("{}").variants(ROLES)[0].layers(3) is None


def test_a_number_of_directions_is_not_a_fraction_of_them() -> None:
    one, all_of_them = edit("{k: [1, 1.0]}").variants(ROLES)
    assert (type(one.k), type(all_of_them.k)) == (int, float)


def test_the_plain_edit_keeps_its_name_and_every_choice_is_in_it() -> None:
    def names(text: str) -> list[str]:
        return [edit_group(TRUNK, edit(text), variant, ROLES) for variant in edit(text).variants(ROLES)]

    assert names("{}") == ["seed=0_peak-into-latest_UV_k=all"]
    assert names("{mode: rotate, k: 8, t: [0.5, 1.0]}") == [
        "seed=0_peak-into-latest_UV_rotate_k=8_t=0.5",
        "seed=0_peak-into-latest_UV_rotate_k=8",
    ]
    assert names("{donor: latest, recipient: rl-12-2, part: tail, k: 0.25, blocks: 2, roles: [q]}") == [
        f"seed=0_latest-into-rl-12-2_UV_k=0.25_tail_layers={block}of2_roles=q" for block in (1, 2)
    ]


def test_edits_of_the_same_matrices_share_their_weight_swap_and_nothing_else() -> None:
    grid = edit("{mode: rotate, k: [4, 8], t: [0.5, 1.0]}")
    names = [
        edit_name(TRUNK, grid, variant, kind, ROLES)
        for variant in grid.variants(ROLES)
        for kind in edit_kinds(variant.factors)
    ]
    assert len(names) == 4 * 5
    assert len(set(names)) == 4 * 4 + 1


def test_singular_values_alone_have_no_control_of_equal_angle() -> None:
    assert "random_angle" not in edit_kinds(edit("{factors: S}").factors)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{donor: best}", ["edits.0.donor", "'best'", "sft-60"]),
        ("{donor: sft-5}", ["edits.0.donor", "'sft-5'", "[0, 4, 12]"]),
        ("{donor: peak, recipient: rl-12-7}", ["edits.0.recipient", "'rl-12-7'", "[1, 2]"]),
        ("{donor: rl-4-2}", ["edits.0.donor", "'rl-4-2'", "[0, 12]"]),
        ("{k: 0}", ["edits.0.k", "0"]),
        ("{k: 1.5}", ["edits.0.k", "1.5"]),
        ("{k: [2, 2]}", ["edits.0.k", "twice"]),
        ("{t: 0.5}", ["edits.0.t", "0.5", "mode: rotate"]),
        ("{mode: rotate, k: 2, t: [0.0, 1.0]}", ["edits.0.t", "0.0"]),
        ("{mode: rotate}", ["edits.0.k", "fewer than all"]),
        ("{mode: rotate, k: 1.0}", ["edits.0.k", "fewer than all"]),
        ("{mode: rotate, k: 2, factors: S}", ["edits.0.factors", "'S'", "UV or USV"]),
        ("{mode: glue}", ["edits.0.mode", "'glue'", "'orthonormal'"]),
        ("{blocks: 0}", ["edits.0.blocks", "0"]),
        ("{roles: [z]}", ["edits.0.roles", "'z'"]),
    ],
)
def test_an_edit_that_makes_no_sense_is_told_with_field_value_and_remedy(text: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        edit(text)
    message = str(caught.value)
    assert [words for words in said if words not in message] == []
    assert "\n" not in message
