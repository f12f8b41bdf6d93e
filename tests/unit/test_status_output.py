"""`jobs/status.py`: what it tells in the terminal and as JSON, and how it behaves as a program."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlheals_ray.grid.branch_states import note_failure
from rlheals_ray.grid.status_command import main
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.storage import write_json
from tests.marked_study import MarkedStudy, tiny

JOB = Path(__file__).parents[2] / "jobs" / "status.py"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    monkeypatch.setenv("COLUMNS", "150")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        return Outcome(main([str(argument) for argument in arguments]), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def study(tmp_path: Path) -> MarkedStudy:
    study = tiny(tmp_path / "runs")
    study.base()
    return study


# --- what is told


def test_the_terminal_shows_stages_runs_failures_and_bytes(study: MarkedStudy, command: Command) -> None:
    trunk = Trunk("plain", 0)
    study.trunk(trunk)
    note_failure(study.files, study.units.branch(Branch(trunk, 12, "ppo")), "X: [bold]gone[/bold]", update=1)
    write_json(study.root / "failures.json", {"spectra": "MemoryError: no more"})
    code, out, err = command(study.root)
    assert code == 1 and err == ""
    assert "tiny: not complete" in out and "no process that this machine sees works on it" in out
    assert re.search(r"^base +1 / 1 ", out, re.M) and re.search(r"^edits +0 / ≤13 ", out, re.M)
    assert "✕ 1/2" in out and "X: [bold]gone[/bold]" in out and "MemoryError: no more" in out
    assert re.search(r"on disk .*checkpoints", out)
    assert "no rates were recorded" in out


def test_a_process_at_work_is_shown(study: MarkedStudy, command: Command) -> None:
    with study.files.lock():
        code, out, _ = command(study.root)
        found = json.loads(command(study.root, "--json").out)
    assert code == 0 and f"process {os.getpid()} works on it since" in out
    assert found["holder"]["pid"] == os.getpid() and found["running_seconds"] >= 0


NUMBER, MAYBE = (int, float), (int, float, type(None))
SCHEMA: dict[str, Any] = {
    "study": str, "root": str, "at": NUMBER, "notes": [str], "complete": bool,
    "holder": {"since": NUMBER, "pid": (int, type(None)), "command": (str, type(None))},
    "stages": [{
        "name": str, "units": int, "done": int, "running": int, "begun": int, "failed": int, "left": int,
        "outdated": int, "at_most": bool, "seconds_left": MAYBE, "last_written": {"path": str, "at": NUMBER},
    }],
    "runs": [{
        "stage": str, "recipe": str, "algorithm": (str, type(None)), "seed": int, "sft_step": (int, type(None)),
        "state": str, "step": int, "of": int, "cause": (str, type(None)), "written_at": MAYBE,
    }],
    "failures": [{"unit": str, "cause": str, "log": (str, type(None)), "before_this_run": bool}],
    "recorded_seconds": dict, "running_seconds": MAYBE,
    "left": {"stages": dict, "seconds": MAYBE, "missing": [str]},
    "bytes": dict, "last_written": {"path": str, "at": NUMBER},
}  # fmt: skip
OPTIONAL = {"holder", "last_written"}


def check(value: Any, schema: Any, at: str = "") -> None:
    if isinstance(schema, list):
        assert isinstance(value, list), at
        for item in value:
            check(item, schema[0], at)
    elif isinstance(schema, dict):
        assert isinstance(value, dict) and value.keys() == schema.keys(), at
        for key, of in schema.items():
            if not (key in OPTIONAL and value[key] is None):
                check(value[key], of, f"{at}.{key}")
    else:
        assert isinstance(value, schema), at


@pytest.mark.parametrize("stage", ["begun", "failed", "held", "whole"])
def test_json_is_one_object_of_the_documented_form(study: MarkedStudy, command: Command, stage: str) -> None:
    if stage == "failed":
        write_json(study.root / "failures.json", {"spectra": "y"})
    if stage == "whole":
        study.everything()
    if stage == "held":
        with study.files.lock():
            outcome = command(study.root, "--json")
    else:
        outcome = command(study.root, "--json")
    found = json.loads(outcome.out)
    assert outcome.err == "" and outcome.code == (1 if stage == "failed" else 0)
    check(found, SCHEMA)
    assert found["complete"] == (stage == "whole")
    for one in found["stages"]:
        assert one["units"] == sum(one[state] for state in ("done", "running", "begun", "failed", "left"))
        mine = [run["state"] for run in found["runs"] if run["stage"] == one["name"]]
        assert not mine or mine.count("done") == one["done"]


# --- as a program


def test_it_starts_without_ray_torch_vllm_or_transformers(study: MarkedStudy) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(JOB), str(study.root), "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and json.loads(result.stdout)["study"] == "tiny"
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if "import time:" in line}
    assert "rlheals_ray.grid.status" in imported
    assert not {name.partition(".")[0] for name in imported} & {"torch", "ray", "vllm", "transformers", "trl"}


def test_watching_a_finished_study_ends(study: MarkedStudy) -> None:
    study.everything()
    result = subprocess.run(
        [sys.executable, str(JOB), str(study.root), "--watch"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "tiny: complete" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watching_goes_on_until_it_is_interrupted(study: MarkedStudy, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, str(JOB), str(study.root), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "FORCE_COLOR": "1"},  # as in a terminal: each look is drawn
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        deadline = time.monotonic() + 60
        while "tiny: not complete" not in process.stdout.readline():
            assert time.monotonic() < deadline and process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err and err.startswith("status: ")
