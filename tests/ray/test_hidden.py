"""The stage of hidden states with real parts: engines that ask the base, Ray tasks that collect and measure."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from rlheals_ray.config import Study
from rlheals_ray.evaluation.collected import fingerprint_of
from rlheals_ray.grid import hidden as stage
from rlheals_ray.grid.hidden import hidden_stage, hidden_unit
from rlheals_ray.grid.peaks import peak_step
from rlheals_ray.grid.probes import run_probe
from rlheals_ray.grid.session import Session
from rlheals_ray.lineage import Branch, Trunk
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.need import Need
from rlheals_ray.rollout.pool import Pool
from rlheals_ray.storage import StudyFiles
from tests.toy_lab import start_pool, toy_study
from tests.toy_model import write_toy_model

TRUNK = Trunk("plain", 0)
BRANCH = Branch(TRUNK, 0, "ppo")
SFT, RL = "sft/seed=0/step={:06d}", "rl/seed=0/sft_step=000000/rl_step=000064"


@dataclass(frozen=True)
class Toy:
    """The base, and a warm engine for it."""

    model: Path
    pool: Pool


@pytest.fixture(scope="module")
def toy(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    model = write_toy_model(tmp_path_factory.mktemp("hidden-toy") / "model")
    pool = start_pool(light_study("toy", model, [0, 1]), model)
    yield Toy(model, pool)
    pool.close()


def light_study(name: str, model: Path, steps: list[int]) -> Study:
    """A study of one seed, on the engine that starts fastest."""
    written = toy_study(name, model).model_dump()
    written["sft"]["steps"], written["seeds"], written["edits"] = steps, [0], []
    written["rollout"]["engine"] = "transformers"
    return Study.model_validate(written)


def make_study(folder: Path, toy: Toy, steps: list[int]) -> tuple[Study, StudyFiles]:
    """A study whose checkpoints are there: step 0 and the base are one, the others differ."""
    study = light_study(folder.name, toy.model, steps)
    files = StudyFiles(folder)
    units = Session(study, files).units
    makers = {unit.fingerprint: unit for unit in (units.base, units.trunk(TRUNK), units.branch(BRANCH))}
    for number, probe in enumerate(units.probes()):
        directory = files.checkpoint(probe.checkpoint)
        if probe.checkpoint in ("base", SFT.format(0)):
            shutil.copytree(toy.model, directory)
        else:
            write_toy_model(directory, seed=number)
        files.stamp(directory, makers[probe.made_by])
    return study, files


def session_of(study: Study, files: StudyFiles, toy: Toy | None) -> Session:
    session = Session(study, files)
    if toy is not None:
        session.__dict__["pool"] = toy.pool
    return session


def times(files: StudyFiles) -> Mapping[Path, int]:
    """When everything that the stage writes was last written."""
    return {
        path: path.stat().st_mtime_ns
        for folder in ("hidden", "parts/hidden", "parts/similarity", "parts/shift", "markers/hidden")
        for path in (files.root / folder).rglob("*.*")
    }


def test_the_stage_leaves_three_tables_and_has_nothing_left_to_do(toy: Toy, tmp_path: Path) -> None:
    study, files = make_study(tmp_path / "hidden", toy, [0, 1])
    session = session_of(study, files, toy)
    for probe in session.units.probes():
        run_probe(study, files, toy.pool, probe)
    hidden_stage(session)
    assert session.failures == {}

    chat = ChatFormat.of(toy.model)
    asked = {
        row["problem_id"]: row for row in pq.read_table(files.root / "hidden/answers.parquet").to_pylist()
    }
    problems = [p for rule in ("id", "ood") for p in session.task.problems(rule, "eval", 8, seed=0)]
    assert list(asked) == [problem.id for problem in problems]
    for problem in problems:
        assert asked[problem.id]["prompt"] == chat.first_turn(session.task.prompt(problem))

    unit = hidden_unit(session)
    assert unit is not None
    hidden, similarity, shift = (
        files.read_part(name, unit).to_pylist() for name in ("hidden", "similarity", "shift")
    )
    members = ["base", SFT.format(0), SFT.format(1), RL]
    keys = [(rule, layer, name) for rule in ("id", "ood") for layer in (0, 1) for name in members]
    assert [(row["rule"], row["layer"], row["checkpoint"]) for row in hidden] == keys
    assert all(row["pca_share_1"] >= row["pca_share_2"] >= 0 and row["tsne_1"] is None for row in hidden)

    peak = SFT.format(peak_step(session, TRUNK))
    pairs = {(a, b) for a in ("base", peak) for b in members[1:] if a != b} | {(SFT.format(0), RL)}
    for rule in ("id", "ood"):
        for layer in (0, 1):
            rows = [row for row in similarity if (row["rule"], row["layer"]) == (rule, layer)]
            assert {(row["a"], row["b"]) for row in rows} == pairs
            assert len(rows) == len(pairs)
            same = next(row for row in rows if (row["a"], row["b"]) == ("base", SFT.format(0)))
            assert (same["cka"], same["mmd2"], same["cosine"]) == pytest.approx((1, 0, 1), abs=1e-9)
            other = next(row for row in rows if (row["a"], row["b"]) == ("base", RL))
            assert other["mmd2"] > 0.1 and other["cka"] < 0.99 and other["cosine"] < 0.9

    assert [row["checkpoint"] for row in shift] == [name for name in members for _ in range(2)]
    for row in shift:
        if row["checkpoint"] in members[:2]:
            assert row["forward_kl"] == row["forward_kl_low"] == row["forward_kl_high"] == 0
        else:
            assert 0 < row["forward_kl_low"] <= row["forward_kl"] <= row["forward_kl_high"]
        assert row["n"] == 8 <= row["tokens"]

    before = times(files)
    again = session_of(study, files, None)
    hidden_stage(again)
    assert times(files) == before
    assert "pool" not in again.__dict__


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_named_and_taken_up_when_mended(toy: Toy, tmp_path: Path) -> None:
    study, files = make_study(tmp_path / "hidden-damaged", toy, [0, 1])
    weights = files.checkpoint(RL) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:1000])
    session = session_of(study, files, toy)
    hidden_stage(session)
    assert list(session.failures) == [f"hidden/{RL}"]
    unit = hidden_unit(session)
    assert unit is not None
    assert set(files.read_part("shift", unit)["checkpoint"].to_pylist()) == {"base", *map(SFT.format, (0, 1))}

    before = times(files)
    weights.write_bytes(good)
    session = session_of(study, files, None)
    hidden_stage(session)
    assert session.failures == {}
    after, unit = times(files), hidden_unit(session)
    assert unit is not None and RL in files.read_part("shift", unit)["checkpoint"].to_pylist()
    kept = [path for path in before if path.suffix == ".safetensors" or path.name == "answers.parquet"]
    assert len(kept) == 4 and all(after[path] == before[path] for path in kept)


@pytest.mark.slow
def test_a_killed_worker_s_checkpoints_are_taken_up_where_it_was(toy: Toy, tmp_path: Path) -> None:
    study, files = make_study(tmp_path / "hidden-killed", toy, list(range(40)))
    session = session_of(study, files, toy)
    probes = session.units.probes()
    after = random.randrange(1, 20)
    killed: list[psutil.Process] = []
    kept: dict[Path, int] = {}

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed:
            there = list((files.root / "hidden").rglob("[!.]*.safetensors"))
            if len(there) >= after:
                kept.update({path: path.stat().st_mtime_ns for path in there})
                for process in psutil.Process().children(recursive=True):
                    if any("_collect_share" in word for word in process.cmdline()):
                        process.kill()
                        killed.append(process)
                        return
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    hidden_stage(session)
    thread.join()
    print(f"killed {killed} after {after} of {len(probes)} checkpoints")
    assert killed
    assert session.failures == {}
    for probe in probes:
        found = fingerprint_of(files.root / "hidden" / f"{probe.checkpoint}.safetensors")
        assert found == session.units.hidden_states(probe).fingerprint
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was there was made again"


def test_a_model_that_no_node_has_the_memory_for_is_refused_rather_than_waited_for(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, files = make_study(tmp_path / "hidden-large", toy, [0, 1])
    monkeypatch.setattr(stage, "BYTES_PER_PARAMETER", 1 << 40)
    with pytest.raises(RuntimeError, match=r"the largest node for tasks \(1 CPUs\) offers [1-9]\d*\.\d GiB"):
        hidden_stage(session_of(study, files, toy))
    assert not list((files.root / "hidden").rglob("*.safetensors"))


def test_the_memory_of_nodes_that_tasks_may_not_use_does_not_count(toy: Toy, tmp_path: Path) -> None:
    study, files = make_study(tmp_path / "hidden-labels", toy, [0, 1])
    session = session_of(study, files, toy)
    session.__dict__["needs"] = {"tasks": Need(labels={"role": "tasks"})}
    with pytest.raises(RuntimeError, match=r"labels \{'role': 'tasks'\}\) offers 0\.0 GiB"):
        hidden_stage(session)
