"""A study's status counts what its plan counts, moves with its markers, and takes the time that its plan estimates."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlheals_ray.grid.plan_counts import counts
from rlheals_ray.grid.plan_time import estimates
from rlheals_ray.grid.rates import UNITS
from rlheals_ray.grid.status_disk import Disk
from rlheals_ray.grid.status_runs import Evidence, KnownUnits
from rlheals_ray.grid.status_time import time_left
from rlheals_ray.grid.status_units import Inventory
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import write_text
from tests.marked_study import MarkedStudy, counted, tiny

TRUNK = Trunk("plain", 0)
BRANCH = Branch(TRUNK, 12, "ppo")
CONTROL = Branch(TRUNK, 12, "continued_sft")


@pytest.fixture
def study(tmp_path: Path) -> MarkedStudy:
    return tiny(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MarkedStudy:
    """A finished study, not to be changed for good."""
    return tiny(tmp_path_factory.mktemp("whole"), "seeds=[0,1]").everything()


# --- counts


@pytest.mark.parametrize(
    "overrides", [(), ("seeds=[0,1,2]", "sft.recipe=[plain,lora]"), ("hidden=null", "edits=[]")]
)
def test_a_study_that_has_not_begun_has_as_much_left_as_its_plan_counts(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    study = tiny(tmp_path, *overrides)
    planned, status = counts(study.study), study.status()
    assert not status.complete and status.failures == ()
    found = counted(status)
    assert all(done == 0 for done, _ in found.values())
    everything = {name: units for name, (_, units) in found.items()}
    wanted = {
        "base": 1,
        "sft": planned.trunks,
        "losses": planned.trunks,
        "rl": planned.branches,
        "controls": planned.controls,
        "probes": planned.probes + planned.control_probes,
        "spectra": planned.trunks,
        # Beside the checkpoints: the answers that they are asked about, and the measures.
        "hidden": planned.hidden + 2 if planned.hidden else 0,
        "edits": planned.edits,
        "edit probes": planned.edits,
    }
    assert everything == {name: units for name, units in wanted.items() if units}


def test_a_finished_study_is_complete(whole: MarkedStudy) -> None:
    status = whole.status()
    assert status.complete and status.notes == ()
    assert all(done == units for done, units in counted(status).values())
    assert status.recorded_seconds == {"base": 3.0, "sft": 4.0, "total": 7.5}
    assert status.left.seconds == 0.0


def test_every_edit_is_counted_once_though_controls_are_shared(whole: MarkedStudy) -> None:
    assert counted(whole.status())["edits"] == (counts(whole.study).edits,) * 2


MARKERS = st.sets(st.integers(0, 200), max_size=30)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MARKERS)
def test_what_has_no_marker_is_not_done_and_nothing_else(whole: MarkedStudy, taken: set[int]) -> None:
    """Removed are only markers that no other unit's existence depends on."""
    paths = [
        path
        for path in sorted((whole.root / "markers").rglob("*.json"))
        if path.parent.name == "losses" or path.relative_to(whole.root).parts[1:3] == ("probe", "control")
    ]
    mine = {paths[index % len(paths)] for index in taken}
    before = {path: path.read_text() for path in mine}
    try:
        for path in mine:
            path.unlink()
        found = counted(whole.status())
    finally:
        for path, text in before.items():
            path.write_text(text)
    full = counted(whole.status())
    lost = {stage: units - done for stage, (done, units) in found.items() if done != units}
    losses = sum(path.parent.name == "losses" for path in mine)
    assert lost == {k: v for k, v in {"losses": losses, "probes": len(mine) - losses}.items() if v}
    assert {s: units for s, (_, units) in found.items()} == {s: units for s, (_, units) in full.items()}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("rl.learning_rate=1e-5", {"rl", "controls", "probes", "spectra", "hidden"}),
        ("evaluation.seed=7", {"losses", "probes", "spectra", "hidden", "edit probes"}),
        ("spectra.k=[4]", {"spectra"}),
        ("rl.micro_batch=4", set()),
    ],
)
def test_by_other_settings_exactly_what_depends_on_them_is_outdated(
    whole: MarkedStudy, override: str, redone: set[str]
) -> None:
    status = whole.status(override)
    assert {stage.name for stage in status.stages if stage.done < stage.units} == redone
    assert bool(redone) == any("from other settings" in note for note in status.notes)


def test_another_seed_leaves_what_is_done(whole: MarkedStudy) -> None:
    status = whole.status("seeds=[0,1,2]")
    assert counted(status)["sft"] == (2, 3) and counted(status)["rl"] == (4, 6)
    assert sum(stage.outdated for stage in status.stages) == 0


# --- peaks


def test_edits_of_the_latest_into_itself_are_no_work(tmp_path: Path) -> None:
    study = tiny(tmp_path)
    study.peaks = {TRUNK: 12}  # the last step
    study.everything(edits=False)
    status = study.status()
    assert "edits" not in counted(status) and status.complete


def test_how_many_edits_there_are_is_a_bound_until_the_peak_is_known(study: MarkedStudy) -> None:
    assert {s.name: s.at_most for s in study.status().stages}["edits"]
    study.everything()
    assert not any(stage.at_most for stage in study.status().stages)


def test_edits_tell_the_peak_where_no_comparison_does(study: MarkedStudy) -> None:
    study.everything()
    (study.root / "markers" / "spectra" / "seed=0.json").unlink()
    found = counted(study.status())
    assert found["spectra"] == (0, 1) and found["edits"][0] == found["edits"][1]
    assert found["hidden"][0] == found["hidden"][1]


def test_edits_of_what_rl_healed_are_found_and_are_no_work_where_it_healed_nothing(tmp_path: Path) -> None:
    edits = "edits=[{donor: latest, recipient: healed, factors: S, k: null}]"
    healed = tiny(tmp_path / "a", edits).everything()
    assert counted(healed.status())["edits"] == (4, 4) and healed.status().complete
    late = tiny(tmp_path / "b", edits)
    late.peaks = {TRUNK: 12}  # no branch starts past it
    late.everything(edits=False)
    assert "edits" not in counted(late.status()) and late.status().complete


# --- time


def left(study: MarkedStudy, rates: dict[str, float]) -> dict[str, float | None]:
    found = Inventory(Evidence(KnownUnits(study.study), Disk.walk(study.root), {})).found
    return dict(time_left(study.study, found, rates).stages)


def test_of_a_study_that_has_not_begun_what_is_left_is_what_the_plan_estimates(study: MarkedStudy) -> None:
    rates = {name: 0.1 * number for number, name in enumerate(UNITS, 1)}
    mine = {stage: seconds or 0.0 for stage, seconds in left(study, rates).items()}
    planned = {stage: one.seconds for stage, one in estimates(study.study, rates).items()}
    assert mine["base"] == pytest.approx(planned["base"])
    assert mine["spectra"] == pytest.approx(planned["spectra"])
    assert mine["edits"] + mine["edit probes"] == pytest.approx(planned["edit"])
    # The plan's `sft` and `rl` hold the probes of their checkpoints.
    training = mine["sft"] + mine["rl"] + mine["controls"] + mine["probes"]
    assert training == pytest.approx((planned["sft"] or 0) + (planned["rl"] or 0))


def test_without_rates_no_time_is_told(study: MarkedStudy) -> None:
    status = study.status()
    assert status.left.seconds is None and set(status.left.stages.values()) == {None}
    assert set(status.left.missing) == set(UNITS.values())


def test_what_is_done_takes_no_more_time(study: MarkedStudy) -> None:
    study.base()
    write_text(study.files.state(study.units.trunk(TRUNK)) / "checkpoint-8" / "COMPLETE", "of a whole model")
    found = left(study, dict.fromkeys(UNITS, 1.0))
    assert "base" not in found
    assert found["sft"] == 12 - 8 + 1  # updates, and the start of engines and workers


def test_rates_that_this_storage_has_are_taken(whole: MarkedStudy, tmp_path: Path) -> None:
    from rlheals_ray.grid.rates import store_rates

    study = tiny(tmp_path)
    store_rates(study.study, tmp_path, dict.fromkeys(UNITS, 2.0), "a test")
    status = study.status()
    assert status.left.missing == () and status.left.stages["base"] == 2.0 * study.study.base.steps
    assert status.left.seconds is not None
