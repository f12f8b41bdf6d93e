"""Fingerprints chain: a changed setting redoes exactly the work that depends on it, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlheals_ray.config import TaskSettings, edit_kinds, load_study
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.lineage import Branch, Trunk, branches_of, trunks
from rlheals_ray.storage import Unit

PEAK, HEALED = 8, 15
TRUNK = Trunk("plain", 1)
BRANCH = Branch(TRUNK, 30, "ppo")


def all_units(*overrides: str, peak: int = PEAK, healed: int = HEALED) -> dict[str, str]:
    """Name to fingerprint of every unit of the nano study."""
    study = load_study("nano", overrides)
    units = StudyUnits(study)
    shared: dict[str, str] = {}  # one weight swap is the control of every edit of the same matrices

    def every() -> Iterator[Unit]:
        yield units.base
        for trunk in trunks(study):
            yield units.trunk(trunk)
            yield units.losses(trunk)
            yield units.spectra(trunk, peak, branches_of(study, trunk))
            for edit in study.edits:
                for variant in edit.variants(study.spectra.roles):
                    for kind in edit_kinds(variant.factors):
                        steps = {"peak": peak, "healed": healed}
                        unit, probe = units.edit(trunk, edit, variant, kind, steps)
                        if unit.name not in shared:
                            yield from (unit, probe.unit)
                        assert shared.setdefault(unit.name, unit.fingerprint) == unit.fingerprint
        yield from (unit for _, unit in units.branches())
        yield from (unit for _, unit in units.controls())
        yield from (probe.unit for probe in [*units.probes(), *units.control_probes()])

    listed = list(every())
    named = {unit.name: unit.fingerprint for unit in listed}
    assert len(named) == len(listed), "two units share a name"
    return named


NANO = all_units()


def changed(*overrides: str, peak: int = PEAK, healed: int = HEALED) -> set[str]:
    """Kinds of units (`sft`, `probe/rl`, ...) that exist with and without the change and differ."""
    others = all_units(*overrides, peak=peak, healed=healed)
    common = NANO.keys() & others.keys()
    assert common
    by_kind: dict[str, set[bool]] = {}
    for name in common:
        by_kind.setdefault(kind_of(name), set()).add(NANO[name] != others[name])
    assert all(len(differ) == 1 for differ in by_kind.values()), "a change reaches only some units of a kind"
    return {kind for kind, differ in by_kind.items() if differ == {True}}


def kind_of(name: str) -> str:
    parts = name.split("/")
    healed = " of a branch" if "-into-healed" in name else ""
    return "/".join(parts[: 2 if parts[0] == "probe" else 1]) + healed


BASE = {"base", "probe/base"}
EDITS = {"edit", "probe/edit"}
EDITS_OF_BRANCHES = {"edit of a branch", "probe/edit of a branch"}
SFT = {"sft", "losses", "probe/sft", "spectra"} | EDITS | EDITS_OF_BRANCHES
RL = {"rl", "probe/rl", "control", "probe/control", "spectra"} | EDITS_OF_BRANCHES
PROBES = {f"probe/{of}" for of in ("base", "sft", "rl", "control", "edit", "edit of a branch")}
EVERYTHING = BASE | SFT | RL


def test_the_kinds_named_here_are_all_there_are() -> None:
    assert {kind_of(name) for name in NANO} == EVERYTHING


def test_no_two_units_share_a_fingerprint() -> None:
    """A generator that holds the weights of a fingerprint does not load them again for another unit."""
    assert len(set(NANO.values())) == len(NANO)


def test_the_same_study_has_the_same_fingerprints() -> None:
    assert all_units() == NANO


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        ("base.seed=1", EVERYTHING),
        ("base.steps=1300", EVERYTHING),
        ("task.held_out=0.3", EVERYTHING),
        ("task.second_solution=0.5", EVERYTHING),
        ("sft.learning_rate=1e-4", SFT | RL),
        ("sft.batch_size=24", SFT | RL),
        ("sft.lr_schedule=cosine", SFT | RL),
        ("rl.learning_rate=1e-4", RL),
        ("rl.gamma=0.8", RL),
        ("rl.advantage_floor=1", RL),
        ("rl.temperature=0.9", RL),
        ("rl.algorithm=grpo", RL),
        ("rl.level=token", RL),
        ("rl.kl_coefficient=0.1", RL),
        ("rl.precision=bfloat16", RL),
        ("rollout.dtype=bfloat16", RL | PROBES),
        ("rollout.max_model_len=200", RL | PROBES),
        ("evaluation.problems=400", PROBES | {"losses"}),
        ("evaluation.seed=1", PROBES | {"losses"}),
        ("evaluation.temperature=0.5", PROBES),
        ("evaluation.max_attempts=1", PROBES),
        ("evaluation.max_new_tokens=41", PROBES),
        ("spectra.k=[4]", {"spectra"}),
        ("spectra.roles=[q]", {"spectra"} | EDITS | EDITS_OF_BRANCHES),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(override: str, redone: set[str]) -> None:
    assert changed(override) == redone


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[0,1,2,3]",
        "seeds=[2]",
        "name=another",
        "storage=/elsewhere",
        "rollout.generators=4",
        "rollout.max_num_seqs=8",
        "rollout.kv_cache_mib=64",
        "sft.workers=2",
        "rl.workers=2",
        "rl.micro_batch=4",
        "rl.save_every=5",
        "rl.gradient_checkpointing=true",
        "rollout.generators=2",
        "rollout.weight_sync=object_store",
        "rollout.verify_weights=true",
        "rollout.start_seconds=60",
        "rollout.sync_seconds=60",
        "rollout.stall_seconds=60",
        "rollout.max_failures=0",
        "tracking={tensorboard: false, mlflow: {tracking_uri: /runs, experiment: e}}",
        "edits=[{factors: S}, {factors: UV}]",
        "sft.micro_batch=4",
        "sft.state_every=50",
        "sft.gradient_checkpointing=true",
        "sft.lora.rank=4",
        "sft.rotation.k=4",
        "controls.kinds=[continued_sft]",
        "keep=best",
    ],
)
def test_what_no_result_depends_on_redoes_nothing(override: str) -> None:
    assert changed(override) == set()


def test_another_start_of_rl_adds_branches_and_keeps_those_there() -> None:
    assert changed("rl.from_steps=[0,4,15,30,60,120,200,400]") == {"spectra"}


def test_another_peak_redoes_what_is_measured_from_it() -> None:
    assert changed(peak=10) == {"spectra"} | EDITS
    assert changed(healed=30) == EDITS_OF_BRANCHES


def test_a_probe_is_named_after_the_checkpoint_it_scores() -> None:
    units = StudyUnits(load_study("nano", ["seeds=[1]"]))
    probes = {probe.checkpoint: probe for probe in units.probes()}
    branch = probes["rl/seed=1/sft_step=000120/rl_step=000030"]
    assert (branch.stage, branch.seed, branch.sft_step, branch.rl_step) == ("rl", 1, 120, 30)
    trunk = probes["sft/seed=1/step=000400"]
    assert (trunk.stage, trunk.seed, trunk.sft_step, trunk.rl_step) == ("sft", 1, 400, 0)
    assert (probes["base"].stage, probes["base"].seed) == ("base", None)
    # 1 base, 12 SFT steps, and of 7 branches the budgets above 0: budget 0 is the SFT checkpoint itself.
    assert len(probes) == 1 + 12 + 7 * 2


def test_a_probe_knows_which_unit_makes_its_checkpoint() -> None:
    units = StudyUnits(load_study("nano"))
    assert units.base_probe().made_by == units.base.fingerprint
    assert {probe.made_by for probe in units.trunk_probes(TRUNK)} == {units.trunk(TRUNK).fingerprint}
    assert {probe.made_by for probe in units.branch_probes(BRANCH)} == {units.branch(BRANCH).fingerprint}


def test_spectra_depend_on_the_branches_that_are_compared() -> None:
    units = StudyUnits(load_study("nano"))
    compared = [
        units.spectra(TRUNK, PEAK, [Branch(TRUNK, step, "ppo") for step in steps]).fingerprint
        for steps in ((), (0,), (0, 4), (4,))
    ]
    assert len(set(compared)) == len(compared)


def test_a_model_taken_over_is_another_one_when_its_files_change(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old weights")

    def base() -> str:
        return StudyUnits(load_study("nano", [f"base.model={tmp_path}"])).base.fingerprint

    before = base()
    assert base() == before != NANO["base"]
    weights.write_bytes(b"new weights, the same path")
    assert base() != before


def test_another_recipe_adds_trunks_and_a_recipe_s_settings_are_its_own() -> None:
    """With several recipes each stands under its own name; settings of one redo only what descends from it."""
    recipes = "sft.recipe=[plain,lora,rotation]"
    before, after = all_units(recipes), all_units(recipes, "sft.lora.rank=4")
    assert before.keys() == after.keys()
    differ = {name for name in before if before[name] != after[name]}
    assert {kind_of(name) for name in differ} == EVERYTHING - BASE
    assert all("recipe=lora" in name for name in differ)
    assert all(name in differ for name in before if "recipe=lora" in name)


def test_a_control_is_done_again_with_its_branch_and_alone_when_it_is_added() -> None:
    without = all_units("controls.kinds=[]")
    assert all(NANO[name] == fingerprint for name, fingerprint in without.items())
    assert {kind_of(name) for name in NANO.keys() - without.keys()} == {"control", "probe/control"}


def test_the_controls_of_a_trunk_taken_over_depend_on_the_sft_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    given = [f"sft.checkpoints={{30: {tmp_path}}}", "rl.from_steps=[30]", "edits=[]"]
    before = all_units(*given)
    for change in ("sft.learning_rate=1e-6", "sft.recipe=lora"):
        after = all_units(*given, change)
        assert {kind_of(name) for name in before if before[name] != after.get(name)} >= {
            "control",
            "probe/control",
        }
    after = all_units(*given, "sft.learning_rate=1e-6")
    assert {kind_of(name) for name in before if before[name] != after[name]} == {"control", "probe/control"}


def test_a_task_of_one_s_own_is_another_one_when_its_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(__file__).parents[1] / "toy_task.py"
    module = tmp_path / "own_judge.py"
    module.write_text(source.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    study = load_study("nano").model_copy(update={"task": TaskSettings(name="own_judge:ToyTask")})

    def base() -> str:
        return StudyUnits(study).base.fingerprint

    before = base()
    assert base() == before
    module.write_text(source.read_text().replace("Verdict(1.0, True", "Verdict(2.0, True"))
    assert base() != before


def test_data_of_one_s_own_redo_the_trunks_when_the_file_changes_under_its_path(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "b"}\n')

    def units() -> dict[str, str]:
        return all_units(f"sft.data.path={rows}")

    before = units()
    assert units() == before
    fields = all_units(f"sft.data={{path: {rows}, answer: text}}")
    assert {kind_of(name) for name in before if before[name] != fields[name]} == SFT | RL
    rows.write_text('{"prompt": "a", "answer": "c"}\n{"prompt": "d", "answer": "e"}\n')
    after = units()
    assert {kind_of(name) for name in before if before[name] != after[name]} == SFT | RL


def test_a_trunk_taken_over_is_another_one_when_its_files_change_under_their_path(tmp_path: Path) -> None:
    for step in (30, 60):
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "model.safetensors").write_bytes(b"old weights")

    def units() -> dict[str, str]:
        given = f"{{30: {tmp_path}/30, 60: {tmp_path}/60}}"
        return all_units(f"sft.checkpoints={given}", "rl.from_steps=[30,60]", "edits=[]")

    before = units()
    assert units() == before
    (tmp_path / "60" / "model.safetensors").write_bytes(b"new weights, same path")
    after = units()
    assert {kind_of(name) for name in before if before[name] != after[name]} == (
        SFT | RL
    ) - EDITS - EDITS_OF_BRANCHES
