"""The command line: wrong input ends with 2, one paragraph and nothing written; --plan only tells."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from rlheals_ray.config import InputError, load_study
from rlheals_ray.folder import Folder
from rlheals_ray.grid import preflight as preflight_module
from rlheals_ray.grid.command import main
from rlheals_ray.grid.preflight import check_tracking
from rlheals_ray.grid.preflight_base import NANO_HIDDEN, NANO_POSITIONS
from rlheals_ray.grid.resources import local_gpus, resources_of
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.nano import architecture, tokenizer
from rlheals_ray.tasks import get_task
from tests.local_cluster import free_port

JOBS = Path(__file__).parents[2] / "jobs"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Where the study would be kept; it is not there yet."""
    return tmp_path / "runs"


@pytest.fixture
def grid(storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`jobs/grid.py` in this process, unable to start Ray."""
    import ray

    def never(*_: object, **__: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", never)
    monkeypatch.setenv("COLUMNS", "110")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str, where: Path = storage) -> Outcome:
        code = main("grid", "test", [*arguments, "--storage", str(where)])
        return Outcome(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


def is_one_paragraph(err: str) -> bool:
    return (
        err.startswith("grid: ") and err.endswith(".\n") and err.count("\n") == 1 and "Traceback" not in err
    )


def plan_s_study(out: str) -> dict[str, Any]:
    """The resolved study that --plan prints first."""
    study: dict[str, Any] = yaml.safe_load(out[: out.index("stages of")])
    return study


AVAILABLE = get_task("general_points", cards=3, targets=[18, 24], wording="compact").available("ood", "eval")

WRONG = [
    (["nanno"], ["STUDY", "'nanno'", "'nano'"]),
    (["tiny", "sft.learningrate=1"], ["sft.learningrate", "'learning_rate'"]),
    (["tiny", "sft.batch_size=lots"], ["sft.batch_size", "'lots'"]),
    (["tiny", "sft.steps=[0,12,4]"], ["sft.steps", "[0, 12, 4]", "write [0, 4, 12]"]),
    (["tiny", "task.name=chess"], ["task.name", "'chess'", "general_points"]),
    (["tiny", "task.cards=9"], ["task.cards", "9", "less than or equal to 6"]),
    (["tiny", "task.card=3"], ["task.card", "no such option"]),
    (["tiny", "task.cards=0"], ["task.cards", "got 0", "greater than or equal to 2"]),
    (["tiny", "task.targets=[18,1001]"], ["task.targets", "1001", "no 3 cards make 1001", "deal more cards"]),
    (
        ["tiny", "task={name: reasoning_gym, dataset: chess, id: {}, ood: {}}"],
        ["task.dataset", "'chess'", "no such dataset"],
    ),
    (
        ["tiny", "task={name: determinant, ood_size: 2, ood_entries: [-4, 4]}"],
        ["task.ood_size", "are among those of the ID rule", "another shape"],
    ),
    (
        ["tiny", "task={name: matrix_rank, ood_shape: [4, 5], ood_entries: [-4, 4]}"],
        ["task.ood_shape", "[4, 5]", "are among those of the ID rule", "another shape"],
    ),
    (
        ["tiny", "task={name: reasoning_gym, dataset: chain_sum, ood: {}}"],
        ["task.ood", "the same rule as id", "change a field"],
    ),
    (
        ["tiny", "task={name: general_points, ood: target, ood_targets: [36, 9999]}"],
        ["task.ood_targets", "[36, 9999]", "can make 9999", "write other numbers"],
    ),
    (
        ["tiny", "task={name: general_points, cards: 2, targets: [1]}"],
        ["task.cards", "got 2", "fewer than 100", "deal more cards"],
    ),
    (
        ["tiny", "task={name: navigation, routes: /no/such/routes.json}"],
        ["task.routes", "'/no/such/routes.json'", "cannot be read", "give the path"],
    ),
    (
        ["tiny", f"task={{name: navigation, routes: {JOBS.parent / 'pyproject.toml'}}}"],
        ["task.routes", "pyproject.toml", "no JSON", "give a file like route_infos.json"],
    ),
    (["tiny", "task.wording=paper"], ["base.model", "'nano'", "task.wording=compact"]),
    (["tiny", "base.model=/"], ["base.model", "'/'", "no config.json"]),
    (["tiny", "base.model=/no/such/model"], ["base.model", "'/no/such/model'", "no such directory"]),
    (
        ["tiny", f"evaluation.problems={AVAILABLE + 1}"],
        ["evaluation.problems", f"{AVAILABLE + 1}", "at most"],
    ),
    (["tiny", "sft.examples=100000"], ["sft.examples", "100000", "at most"]),
    (["tiny", "rl.max_attempts=9"], ["rl.max_attempts", "9", "rollout.max_model_len", "rl.max_attempts=4"]),
    (["tiny", "evaluation.max_attempts=9"], ["evaluation.max_attempts", "9", "longer context"]),
    (["tiny", "rollout.max_model_len=512"], ["rollout.max_model_len", "512", "256"]),
    (["tiny", "rl.minibatches=3"], ["rl.minibatches", "3", "[1, 2, 4, 8, 16]"]),
    (["tiny", "rl.algorithm=grpo", "rl.group_size=1"], ["rl.group_size", "1", "at least 2"]),
    (["tiny", "rl.algorithm=rloo", "rl.group_size=5"], ["rl.episodes", "16", "rl.episodes=15"]),
    (["tiny", "rl.algorithm=grpo", "rl.level=token"], ["rl.level", "'token'", "rl.level=turn"]),
    (["tiny", "rl.gamma=1.1"], ["rl.gamma", "1.1", "less than or equal to 1"]),
    (["tiny", "rl.max_attempts=0"], ["rl.max_attempts", "0", "greater than 0"]),
    (["tiny", "rl.algorithm=trpo"], ["rl.algorithm", "'trpo'", "'ppo', 'grpo' or 'rloo'"]),
    (["tiny", "rl.top_p=0.9"], ["rl.top_p", "0.9", "leave it at 1.0"]),
    (["tiny", "sft.sharding=none", "rl.workers=2"], ["sft.sharding", "'none'", "fsdp2"]),
    (["tiny", "edits=[{k: 65}]"], ["edits.0.k", "65", "64 singular directions", "0.5"]),
    (["tiny", "edits=[{mode: rotate, k: 64}]"], ["edits.0.k", "64", "mode rotate 63"]),
    (["tiny", "rollout.generators_per_branch=2"], ["rollout.generators_per_branch", "2", "[1]"]),
]


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
@pytest.mark.parametrize(
    ("arguments", "said"), WRONG, ids=[" ".join(arguments)[:40] for arguments, _ in WRONG]
)
def test_wrong_input_is_told_in_one_paragraph_and_nothing_is_written(
    grid: Run, tmp_path: Path, arguments: list[str], said: list[str], plan: tuple[str, ...]
) -> None:
    code, out, err = grid(*arguments, *plan)
    assert code == 2
    assert is_one_paragraph(err) and out == ""
    assert [words for words in said if words not in err] == []
    assert list(tmp_path.iterdir()) == []


SLOW = """
import time
from rlheals_ray.tasks.reasoning_gym_here import DrawnHere

class Slow(DrawnHere):
    def judge(self, problem, text):
        began = time.thread_time()
        while problem.rule == "ood" and len(text) > 900 and time.thread_time() - began < 0.08:
            pass
        return super().judge(problem, text)
"""


def test_a_dataset_whose_answers_take_too_long_to_judge_in_the_study_s_configuration_is_refused(
    grid: Run, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "task={name: reasoning_gym, dataset: chain_sum, ood: {min_terms: 7, max_terms: 8}}"
    (tmp_path / "slow_gym.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as replaced:
        replaced.setattr(preflight_module, "DRAWN_HERE", "slow_gym:Slow")
        code, out, err = grid("tiny", task, "--plan")
    assert code == 2 and is_one_paragraph(err) and out == ""
    assert re.search(r"task\.ood \(got \{'min_terms': 7.*takes \d+ ms \(bounded\)\. Make its problems", err)
    assert not storage.exists()
    # As it is, nothing is wrong with it: what is refused next is a base model that knows no such words.
    code, out, err = grid("tiny", task, "--plan")
    assert code == 2 and "base.model" in err


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
def test_gpu_to_gpu_weights_need_a_gpu(
    grid: Run, storage: Path, monkeypatch: pytest.MonkeyPatch, plan: tuple[str, ...]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if local_gpus():
        pytest.skip("this machine has a GPU")
    code, _, err = grid("tiny", "rollout.weight_sync=nccl", *plan)
    assert code == 2 and is_one_paragraph(err)
    assert "rollout.weight_sync (got 'nccl')" in err and "use auto or object_store" in err
    assert not storage.exists()


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
def test_a_cluster_that_does_not_answer_is_told(grid: Run, storage: Path, plan: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{free_port()}"
    code, _, err = grid("tiny", "--address", address, *plan)
    assert code == 2 and is_one_paragraph(err)
    assert f"--address (got {address!r}): no Ray cluster answers there" in err
    assert not storage.exists()


TRACKERS = {
    "wandb": ("tracking.wandb={project: p, mode: offline}", "pip install wandb"),
    "mlflow": ("tracking.mlflow={tracking_uri: /tmp, experiment: e}", "pip install mlflow"),
}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_not_installed_is_told_with_its_command(
    grid: Run, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    """Also where a directory of its name lies about, as W&B leaves one: that is no package."""
    override, remedy = TRACKERS[tracker]
    found = importlib.util.find_spec(tracker)
    if found is not None and found.origin is not None:
        pytest.skip(f"{tracker} is installed here")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / tracker).mkdir(parents=True)
    monkeypatch.syspath_prepend(elsewhere)
    code, _, err = grid("tiny", override)
    assert code == 2 and is_one_paragraph(err)
    assert f"tracking.{tracker}" in err and remedy in err and f"tracking.{tracker}=null" in err
    assert not storage.exists()


def test_online_tracking_needs_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_module, "_is_installed", lambda name: True)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracking = load_study("tiny", ["tracking.wandb={project: p}"]).tracking
    with pytest.raises(
        InputError, match=r"tracking\.wandb\.mode.*WANDB_API_KEY.*tracking\.wandb\.mode=offline"
    ):
        check_tracking(tracking)
    monkeypatch.setenv("WANDB_API_KEY", "present")
    check_tracking(tracking)


def test_generators_lent_together_feed_one_worker_group() -> None:
    """Four generators in teams of two serve two branches at a time, so two groups learn side by side."""
    needed = resources_of(
        load_study("nano", ["rollout.generators=4", "rollout.generators_per_branch=2", "rl.workers=2"])
    )
    assert (needed.generators, needed.groups, needed.workers) == (4, 2, 2)
    assert needed.cpus == 4 + 2 * 2 + 1


def test_a_model_with_pickled_weights_only_is_refused(grid: Run, tmp_path: Path, storage: Path) -> None:
    model = tmp_path / "pickled"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    code, _, err = grid("tiny", f"base.model={model}")
    assert code == 2 and is_one_paragraph(err)
    assert "base.model" in err and str(model) in err and "safetensors" in err
    assert not storage.exists()


def test_what_is_said_of_the_nano_model_is_true_of_its_architecture() -> None:
    config = architecture([24])
    assert config.max_position_embeddings == NANO_POSITIONS
    assert config.hidden_size == config.num_attention_heads * config.head_dim == NANO_HIDDEN
    assert config.intermediate_size >= NANO_HIDDEN


def test_directions_that_a_model_of_one_s_own_lacks_are_refused_before_training(
    grid: Run, tmp_path: Path, storage: Path
) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 200}
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "text_config": sizes}))
    (tmp_path / "model.safetensors").touch()
    code, _, err = grid("tiny", f"base.model={tmp_path}", "spectra.roles=[q, k]", "edits=[{k: 33}]")
    assert code == 2 and is_one_paragraph(err)
    assert "edits.0.k (got 33)" in err and "the k matrices" in err and "at most 32" in err
    assert not storage.exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"max_position_embeddings": 128}', "has 128 positions"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
    ],
)
def test_a_context_longer_than_the_model_s_is_refused(
    grid: Run, tmp_path: Path, storage: Path, config: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").touch()
    code, _, err = grid("tiny", "rollout.max_model_len=256", f"base.model={tmp_path}")
    assert code == 2 and is_one_paragraph(err) and said in err
    assert not storage.exists()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_storage_is_refused_and_kept(grid: Run, tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    code, _, err = grid("tiny", where=file / below)
    assert code == 2 and is_one_paragraph(err)
    assert "storage" in err and str(file) in err and "--storage" in err
    assert file.read_text() == "precious"


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
@pytest.mark.parametrize("how", ["field", "option"])
def test_a_storage_that_no_filesystem_knows_is_refused(
    capsys: pytest.CaptureFixture[str], grid: Run, tmp_path: Path, how: str, plan: tuple[str, ...]
) -> None:
    where = ["storage=nosuch://bucket/runs"] if how == "field" else ["--storage", "nosuch://bucket/runs"]
    assert main("grid", "test", ["tiny", f"work={tmp_path / 'work'}", *where, *plan]) == 2
    out, err = capsys.readouterr()
    assert is_one_paragraph(err) and out == "" and "storage (got 'nosuch://bucket/runs')" in err
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_may_not_be_written_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], grid: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(Folder, "write", refuse)
    assert main("grid", "test", ["tiny", "--storage", "memory://refused/runs", f"work={tmp_path}/work"]) == 2
    err = capsys.readouterr().err
    assert is_one_paragraph(err) and "memory://refused/runs" in err and "Access Denied" in err
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_a_study_at_a_uri_says_where_it_is_worked_on_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], grid: Run, tmp_path: Path
) -> None:
    where = ["--storage", "memory://planned/runs", f"work={tmp_path}/work"]
    assert main("grid", "test", ["tiny", "--plan", *where]) == 0
    out = capsys.readouterr().out
    assert f"worked on in {tmp_path}/work/tiny and mirrored from there to memory://planned/runs" in out
    assert list(tmp_path.iterdir()) == [] and not Folder.of("memory://planned").exists()


def test_fields_may_stand_before_and_behind_options(grid: Run) -> None:
    for arguments in (["tiny", "seeds=[0,1]", "--plan"], ["--plan", "tiny", "seeds=[0,1]"],
                      ["tiny", "--plan", "seeds=[0,1]"]):  # fmt: skip
        code, out, _ = grid(*arguments)
        assert code == 0 and "cells: 12" in out


def test_the_storage_option_is_taken_as_it_is_written(grid: Run, tmp_path: Path) -> None:
    odd = tmp_path / "2024 #1: a"
    code, out, _ = grid("tiny", "--plan", where=odd)
    assert code == 0 and plan_s_study(out)["storage"] == str(odd)


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
def test_a_study_that_does_not_fit_is_told_with_the_sum(
    grid: Run, storage: Path, plan: tuple[str, ...]
) -> None:
    code, _, err = grid("tiny", "rollout.generators=1000", *plan)
    assert code == 2 and is_one_paragraph(err)
    # One worker group for each of the two branches, of one worker; and one CPU for tasks.
    assert "1000 generators + 2 worker groups x 1 workers + 1 for tasks = 1003 CPUs" in err
    assert "rollout.generators" in err and "--address" in err
    assert not storage.exists()


def test_the_longest_episode_that_preflight_lets_through_fits_the_context(grid: Run) -> None:
    """The exact bound, from the texts themselves: the longest prompt, answers and feedback."""
    study = load_study("tiny")
    task = get_task("general_points", cards=3, targets=[18, 24], wording="compact")
    chat = ChatFormat(tokenizer([18, 24]))
    prompt = max(len(chat.first_turn(task.prompt(p))) for p in task.problems("id", "train", 300))
    feedback = len(chat.next_turn("failed invalid 1 2 3 unused 4 5 6", ended=False))
    longest = prompt + 2 * study.rl.max_new_tokens + feedback
    said = f"need about {longest} tokens"
    code, _, err = grid("tiny", "--plan", f"rollout.max_model_len={longest - 1}")
    assert code == 2 and said in err
    code, _, err = grid("tiny", "--plan", f"rollout.max_model_len={longest}")
    assert code == 0


def test_a_missing_study_is_argparse_s_error(grid: Run) -> None:
    with pytest.raises(SystemExit) as caught:
        grid()
    assert caught.value.code == 2


# --- --plan


def test_the_plan_tells_the_study_its_stages_and_writes_nothing(
    grid: Run, tmp_path: Path, storage: Path
) -> None:
    code, out, err = grid("tiny", "--plan", "sft.learning_rate=2e-4")
    assert code == 0 and err == ""
    assert list(tmp_path.iterdir()) == []
    resolved = plan_s_study(out)
    assert resolved["sft"]["learning_rate"] == 2e-4 and resolved["storage"] == str(storage)
    rows = {words[1]: words[3] for words in (line.split() for line in out.splitlines()) if len(words) > 5}
    # 1 base; 1 trunk; 2 branches; probes of the base, 3 SFT steps and 2 branches x 2 budgets; 3 edits of the same
    # matrices, which share one weight swap and have 3 controls more each.
    expected = {"base": "1", "sft": "1", "rl": "2", "probe": "8", "spectra": "1", "edit": "13"}
    assert {stage: rows[stage] for stage in expected} == expected
    assert "GiB" in out and "MiB" in out and "CPUs" in out


def test_the_plan_tells_what_sharing_saves(grid: Run) -> None:
    _, out, _ = grid("nano", "--plan")
    study = load_study("nano")
    cells = [(s, f, b) for s in study.seeds for f in study.rl.from_steps for b in study.rl.budgets]
    trained = [(f, b) for _, f, b in cells if b > 0]
    told = re.search(
        r"cells: (\d+); SFT updates (\d+) \(each cell by itself: (\d+)\); "
        r"RL updates (\d+) \(each cell by itself: (\d+)\)",
        out,
    )
    assert told is not None
    assert [int(number) for number in told.groups()] == [
        len(cells),
        len(study.seeds) * study.sft.steps[-1],
        sum(f for f, _ in trained),
        len(study.seeds) * len(study.rl.from_steps) * study.rl.budgets[-1],
        sum(b for _, b in trained),
    ]


def test_neither_the_plan_nor_a_wrong_study_waits_for_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys; from rlheals_ray.grid.command import main; "
        f"codes = [main('grid', '', [*a, '--storage', {str(tmp_path)!r}]) for a in "
        "(['tiny', '--plan'], ['tiny', 'sft.examples=100000'])]; "
        "print(codes, [m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 2] []"


# --- interruptions


def test_an_interrupt_ends_with_130_and_a_termination_with_143(
    grid: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlheals_ray.grid import study_run

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    def terminated(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        return 0

    # The process ends at once, whatever its threads wait for; here the test takes the place of the end.
    monkeypatch.setattr(os, "_exit", sys.exit)
    for stopped, code, said in ((interrupted, 130, "interrupted"), (terminated, 143, "terminated")):
        monkeypatch.setattr(study_run, "run_study", stopped)
        with pytest.raises(SystemExit) as caught:
            grid("tiny")
        assert caught.value.code == code
        assert capsys.readouterr().err == f"grid: {said}; the same command resumes.\n"


# --- the jobs themselves


def test_a_job_of_its_own_process_ends_with_2_from_any_directory(tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / "grid.py"), "nanno"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert is_one_paragraph(done.stderr) and "Did you mean 'nano'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_job_of_a_study_takes_the_same_arguments(tmp_path: Path) -> None:
    jobs = sorted(path.name for path in JOBS.glob("*.py"))
    assert {"sft.py", "rl.py", "evaluate.py", "spectra.py", "edit.py", "report.py", "grid.py"} <= set(jobs)
    command = [sys.executable, str(JOBS / "edit.py"), "tiny", "seeds=[0,1]", "--plan", "--storage", "kept"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "cells: 12" in done.stdout and done.stderr == ""
    assert list(tmp_path.iterdir()) == []
