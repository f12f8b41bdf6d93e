"""A study is read quickly, and everything wrong with it is said in one paragraph: field, value, remedy."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from rlheals_ray.config import (
    NAMED_MODELS,
    InputError,
    MLflowSettings,
    WandbSettings,
    dump_study,
    load_study,
    presets,
)
from rlheals_ray.config.load import STUDIES

HEAVY = ("torch", "ray", "vllm", "transformers", "pyarrow", "numpy")


def test_reading_a_study_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rlheals_ray.config import load_study; load_study('nano'); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_a_valid_study_of_its_own_name(preset: str) -> None:
    assert load_study(preset).name == preset


def test_the_default_study_and_the_smallest_one_are_there() -> None:
    assert {"nano", "tiny"} <= set(presets())
    nano = load_study("nano")
    assert nano.seeds == (0, 1, 2)
    assert nano.task.options == {"cards": 3, "targets": [18, 24], "wording": "compact"}


def test_a_yaml_file_is_a_study_and_what_it_leaves_out_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nseeds: [7]\n")
    study = load_study(str(path))
    assert (study.name, study.seeds) == ("mine", (7,))
    assert study.sft == load_study("nano").sft


def test_a_dumped_study_reads_back_as_itself(tmp_path: Path) -> None:
    study = load_study("nano", ["sft.learning_rate=2e-4", "edits.0.k=8"])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(dump_study(study)))
    assert load_study(str(path)) == study


def test_overrides_reach_every_depth_and_the_last_one_wins() -> None:
    overrides = [
        "seeds=[0]",
        "sft.learning_rate=1e-4",
        "sft.learning_rate=2e-4",
        "task.targets=[24]",
        "edits.0.factors=S",
        "sft.warmup_steps=3",
    ]
    study = load_study("tiny", overrides)
    assert study.seeds == (0,)
    assert study.sft.learning_rate == 2e-4
    assert study.sft.warmup_steps == 3  # not in the preset's file
    assert study.task.options["targets"] == [24]
    assert study.edits[0].factors == "S"
    assert study.sft.steps == load_study("tiny").sft.steps


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load_study("tiny", ["base.model=/models/a=b"]).base.model == "/models/a=b"


def test_local_paths_are_absolute_from_the_beginning_whichever_directory_a_process_works_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study(
        "tiny",
        [
            "base.model=models/mine", "sft.data.path=../rows.parquet", "sft.checkpoints={4: 'runs/{seed}/a'}",
            "rl.from_steps=[4]", "edits=[]",
        ],
    )  # fmt: skip
    assert study.base.model == str(tmp_path / "models/mine")
    assert study.sft.data is not None and study.sft.data.path == str(tmp_path.parent / "rows.parquet")
    assert study.sft.checkpoints == {4: str(tmp_path / "runs/{seed}/a")}
    assert [load_study("tiny", [f"base.model={name}"]).base.model for name in NAMED_MODELS] == list(
        NAMED_MODELS
    )


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_study("tiny").sft.learning_rate = 1.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft.learning_rat=1e-4", ["sft.learning_rat", "no such field", "'learning_rate'"]),
        ("rl.foo=1", ["rl.foo", "no such field", "Known here", "budgets"]),
        ("edits.0.donnor=peak", ["edits.0.donnor", "'donor'"]),
        ("seed=[0]", ["seed", "'seeds'"]),
        ("sft.batch_size=lots", ["sft.batch_size", "'lots'", "valid integer"]),
        ("sft=5", ["sft", "5", "valid dictionary"]),
        ("rl.clip=1.5", ["rl.clip", "1.5", "less than 1"]),
        ("sft.learning_rate=0", ["sft.learning_rate", "0", "greater than 0"]),
        ("sft.learning_rate=.inf", ["sft.learning_rate", "inf", "finite"]),
        ("sft.learning_rate=.nan", ["sft.learning_rate", "nan"]),
        ("rl.algorithm=reinforce", ["rl.algorithm", "'reinforce'", "'ppo'"]),
        ("sft.steps=[0,12,4]", ["sft.steps", "[0, 12, 4]", "strictly increasing", "write [0, 4, 12]"]),
        ("sft.steps=[0,4,4,12]", ["sft.steps", "strictly increasing", "write [0, 4, 12]"]),
        ("sft.steps=[-1,12]", ["sft.steps", "[-1, 12]", "remove the negative ones"]),
        ("sft.steps=[]", ["sft.steps", "[]", "at least 1"]),
        ("rl.budgets=[2,1]", ["rl.budgets", "strictly increasing", "write [1, 2]"]),
        ("rl.from_steps=[0,5]", ["rl.from_steps", "[5]", "sft.steps", "[0, 4, 12]"]),
        ("sft.workers=3", ["sft.batch_size", "16", "3 workers", "use sft.batch_size=15"]),
        ("rl.workers=5", ["16", "5 workers", "rl.workers", "=15"]),
        ("seeds=[0,1,1]", ["seeds", "[0, 1, 1]", "distinct", "write [0, 1]"]),
        ("seeds=[-1]", ["seeds", "[-1]", "not negative"]),
        ("edits.0.donor=latest", ["edits.0.donor", "'latest'", "two different checkpoints"]),
        ("name=../up", ["name", "'../up'", "pattern"]),
        (f"name={'a' * 300}", ["name", "at most"]),
        ("edits=[{k: 3}, {k: 3}]", ["edits", "twice", "remove"]),
        ("spectra.k=[8,8]", ["spectra.k", "[8, 8]", "distinct", "write [8]"]),
        ("spectra.roles=[q,q]", ["spectra.roles", "distinct", "write ['q']"]),
        ("sft.steps", ["'sft.steps'", "write field=value"]),
        ("=3", ["'=3'", "write field=value"]),
        ("seeds=[0", ["seeds", "'[0'", "not valid YAML", "brackets"]),
        ("sft.learning_rate.x=1", ["sft.learning_rate.x", "no field 'x'"]),
        ("edits.7.k=1", ["edits.7.k", "no field '7'"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_every_mistake_names_field_value_and_remedy(override: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_study("tiny", [override])
    message = str(caught.value)
    assert [words for words in said if words not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "begins", "said"),
    [
        (["rl.minibatches=3"], "rl.minibatches (got 3)", ["16 episodes", "[1, 2, 4, 8, 16]"]),
        (["rl.workers=2", "rl.minibatches=16"], "rl.minibatches (got 16)", ["8 episodes", "[1, 2, 4, 8]"]),
        (["rl.minibatches=4", "rl.micro_batch=3"], "rl.micro_batch (got 3)", ["4 episodes", "[1, 2, 4]"]),
        (["rl.gamma=1.5"], "rl.gamma (got 1.5)", ["less than or equal to 1"]),
        (["rl.gamma=0"], "rl.gamma (got 0)", ["greater than 0"]),
        (["rl.max_attempts=0"], "rl.max_attempts (got 0)", ["greater than 0"]),
        (["rl.algorithm=reinforce"], "rl.algorithm (got 'reinforce')", ["'ppo'", "'grpo'", "'rloo'"]),
        (["rl.level=word"], "rl.level (got 'word')", ["'turn'", "'token'"]),
        (
            ["rl.top_p=0.9"],
            "rl.top_p (got 0.9)",
            ["log-probabilities", "leave it at 1.0", "evaluation.top_p"],
        ),
        (["rl.top_k=5"], "rl.top_k (got 5)", ["leave it at 0", "evaluation.top_k"]),
        (["rl.repetition_penalty=1.1"], "rl.repetition_penalty (got 1.1)", ["leave it at 1.0"]),
        (["rl.critic_warmup=2"], "rl.critic_warmup (got 2)", ["never learn", "use at most 1"]),
        (["sft.sharding=none", "rl.workers=2"], "sft.sharding (got 'none')", ["ddp, fsdp2, zero2 or zero3"]),
        (["rollout.weight_sync=rdma"], "rollout.weight_sync (got 'rdma')", ["'object_store'", "'nccl'"]),
        (
            ["rollout.weight_sync=nccl", "rollout.engine=transformers"],
            "rollout.weight_sync (got 'nccl')",
            ["'transformers'", "object_store"],
        ),
        (
            ["rollout.generators=6", "rollout.generators_per_branch=4"],
            "rollout.generators_per_branch (got 4)",
            ["rollout.generators=6", "[1, 2, 3, 6]"],
        ),
        (["tracking.wandb={}"], "tracking.wandb.project", ["required"]),
        (["tracking.mlflow={experiment: x}"], "tracking.mlflow.tracking_uri", ["required"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_would_stop_or_mislead_rl_is_refused(overrides: list[str], begins: str, said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_study("tiny", overrides)
    message = str(caught.value)
    assert message.startswith(begins) and message.endswith(".") and "\n" not in message
    assert [words for words in said if words not in message] == []


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("override", "begins", "said"),
    [
        ("rl.group_size=1", "rl.group_size (got 1)", ["compares the episodes of one problem", "at least 2"]),
        ("rl.group_size=3", "rl.episodes (got 16)", ["rl.group_size=3", "use rl.episodes=15"]),
        ("rl.group_size=20", "rl.episodes (got 16)", ["rl.group_size=20", "use rl.episodes=20"]),
        ("rl.level=token", "rl.level (got 'token')", ["ignored", "rl.level=turn", "rl.algorithm=ppo"]),
        ("rl.entropy_coefficient=0.01", "rl.entropy_coefficient (got 0.01)", ["ignored", "=0 ", "ppo"]),
        ("rl.critic_warmup=1", "rl.critic_warmup (got 1)", ["ignored", "no critic", "=0 ", "ppo"]),
    ],
)
def test_a_setting_that_the_algorithm_cannot_honour_is_refused(
    algorithm: str, override: str, begins: str, said: list[str]
) -> None:
    assert load_study("tiny", [f"rl.algorithm={algorithm}"]).rl.algorithm == algorithm
    with pytest.raises(InputError) as caught:
        load_study("tiny", [f"rl.algorithm={algorithm}", override])
    message = str(caught.value)
    assert message.startswith(begins) and message.endswith(".") and "\n" not in message
    assert [words for words in [algorithm, *said] if words not in message] == []


def test_one_episode_of_each_problem_is_what_ppo_learns_from_and_no_mistake() -> None:
    assert load_study("tiny", ["rl.group_size=1"]).rl.group_size == 1


@pytest.mark.parametrize("tracker", [WandbSettings, MLflowSettings])
def test_no_tracker_takes_a_secret_from_the_study(tracker: type[BaseModel]) -> None:
    """study.yaml is kept, shown and shared: keys come from the trackers' own environment variables."""
    secret = re.compile("key|token|password|secret|credential", re.IGNORECASE)
    assert [name for name in tracker.model_fields if secret.search(name)] == []
    kind = tracker.__name__.removesuffix("Settings").lower()
    with pytest.raises(InputError, match=rf"tracking\.{kind}\.api_key: there is no such field"):
        load_study("tiny", [f"tracking.{kind}.api_key=hush"])


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    address = "tracking.mlflow={tracking_uri: 'https://ann:hush@host', experiment: e}"
    with pytest.raises(
        InputError, match=r"^tracking\.mlflow\.tracking_uri.*MLFLOW_TRACKING_PASSWORD"
    ) as caught:
        load_study("tiny", [address])
    assert "hush" not in str(caught.value)


def test_both_stages_must_divide_over_the_workers_that_they_share() -> None:
    """One group of workers does both, so its size is the larger of the two."""
    assert load_study("tiny", ["sft.workers=2", "rl.workers=4"]).rl.workers == 4
    with pytest.raises(InputError, match=r"rl\.episodes \(got 15\).*the 2 workers.*use rl\.episodes=14"):
        load_study("tiny", ["sft.workers=2", "rl.episodes=15"])


def test_several_mistakes_are_all_told_at_once() -> None:
    with pytest.raises(InputError, match=r"sft\.batch_size.*rl\.episodes"):
        load_study("tiny", ["sft.batch_size=x", "rl.episodes=y"])


def test_an_unknown_study_is_told_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"no preset 'nanno'.*Did you mean 'nano'.*tiny"):
        load_study("nanno")
    with pytest.raises(InputError, match=r"no preset 'zebra'\. Use one of"):
        load_study("zebra")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"", "holds a NoneType"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"1: 2", "Keys should be strings"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_study(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_study_file_reaches_as_far_as_a_command_line_and_loading_it_runs_nothing(tmp_path: Path) -> None:
    """docs/security.md: it names code and paths, and is trusted as what one types."""
    named = {"task.name": "somebodys:Task", "storage": "/elsewhere/runs", "base.model": "/elsewhere/model",
             "sft.data": {"path": "/elsewhere/data.jsonl"}}  # fmt: skip
    file = tmp_path / "study.yaml"
    values: dict[str, Any] = yaml.safe_load((STUDIES / "tiny.yaml").read_text())
    for field, value in named.items():
        *parents, leaf = field.split(".")
        (values[parents[0]] if parents else values)[leaf] = value
    file.write_text(yaml.safe_dump(values))
    typed = [f"{field}={yaml.safe_dump(value, default_flow_style=True)}" for field, value in named.items()]
    assert load_study(str(file)) == load_study("tiny", [one.removesuffix("\n...\n") for one in typed])
    assert "somebodys" not in sys.modules


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml.*cannot be read.*check the path"):
        load_study(str(tmp_path / "absent.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(InputError, match=r"folder\.yaml.*cannot be read"):
        load_study(str(tmp_path / "folder.yaml"))
