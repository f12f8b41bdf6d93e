"""The log of events: whole lines, only ever added, of one form, without secrets; its failure is nobody else's."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlheals_ray.config import load_study
from rlheals_ray.event_log import (
    CAUSE_CHARACTERS,
    EVENTS,
    Event,
    EventLog,
    event_line,
    read_events,
    without_secrets,
)
from rlheals_ray.grid.branch_states import note_failure
from rlheals_ray.grid.progress import StageProgress
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.sweep import SweepWatch
from rlheals_ray.lineage import Branch, Trunk, branches
from rlheals_ray.storage import StudyFiles, Unit

FIELDS = ["time", "study", "stage", "cell", "event", "seconds", "cause"]
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, texts, texts, st.sampled_from(EVENTS), st.none() | st.floats(0, 1e6), st.none() | texts)
def test_an_event_is_one_line_of_json_whatever_its_texts_hold(
    study: str, stage: str, cell: str, event: Event, seconds: float | None, cause: str | None
) -> None:
    line = event_line(study, stage, cell, event, seconds, cause)
    assert len(line.encode().splitlines()) == 1
    found = json.loads(line)
    assert list(found) == FIELDS
    assert [found[name] for name in ("study", "stage", "cell", "event")] == [study, stage, cell, event]
    assert (found["seconds"] is None) == (seconds is None) and (found["cause"] is None) == (cause is None)


def test_its_time_is_that_of_now_in_utc() -> None:
    said = datetime.fromisoformat(json.loads(event_line("tiny", "rl", "", "started"))["time"])
    assert said.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - said) < timedelta(minutes=1)


def test_of_a_traceback_its_error_is_the_cause() -> None:
    try:
        raise ValueError("gradient is not finite")
    except ValueError:
        import traceback

        line = event_line("tiny", "rl", "seed=0", "failed", cause=traceback.format_exc() + "\n\n")
    assert json.loads(line)["cause"] == "ValueError: gradient is not finite"


@given(st.text("ab \n", min_size=CAUSE_CHARACTERS))
def test_a_cause_is_bounded(cause: str) -> None:
    assert len(json.loads(event_line("tiny", "rl", "", "failed", cause=cause))["cause"]) <= CAUSE_CHARACTERS


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_no_secret_of_the_environment_gets_into_a_cause(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "5up3r-s3cr3t")
    cause = json.loads(event_line("tiny", "rl", "", "failed", cause="denied: key=5up3r-s3cr3t, again"))[
        "cause"
    ]
    assert cause == "denied: key=***, again"


@given(st.text("abc123:%", min_size=1))
def test_no_password_of_an_address_does(password: str) -> None:
    cleaned = without_secrets(f"no answer from https://someone:{password}@host:5000/path")
    assert cleaned == "no answer from https://***@host:5000/path"


def test_what_ends_has_the_seconds_since_it_began(tmp_path: Path) -> None:
    log = EventLog("tiny", tmp_path)
    log.unit("rl/seed=0/sft_step=000004", "started")
    log.unit("rl/seed=1/sft_step=000004", "done")
    log.unit("rl/seed=0/sft_step=000004", "done")
    log.unit("rl/seed=0/sft_step=000004", "done")
    began, elsewhere, ended, twice = read_events(log.path)
    assert (began["stage"], began["cell"]) == ("rl", "seed=0/sft_step=000004")
    assert began["seconds"] is elsewhere["seconds"] is twice["seconds"] is None
    assert 0 <= ended["seconds"] < 60


def test_a_run_that_resumes_adds_to_what_is_there(tmp_path: Path) -> None:
    first = EventLog("tiny", tmp_path)
    first.add("study", "started")
    before = first.path.read_bytes()
    second = EventLog("tiny", tmp_path)  # the first never closed its file: it was killed
    second.add("study", "resumed")
    assert second.path.read_bytes().startswith(before)
    assert [event["event"] for event in read_events(second.path)] == ["started", "resumed"]


def test_half_a_line_of_a_killed_run_costs_that_line_alone(tmp_path: Path) -> None:
    log = EventLog("tiny", tmp_path)
    log.add("study", "started")
    log.close()
    whole = log.path.read_bytes()
    for cut in range(len(whole) + 1):
        log.path.write_bytes(whole[:cut])
        again = EventLog("tiny", tmp_path)
        again.add("study", "resumed")
        again.close()
        assert again.path.read_bytes().startswith(whole[:cut]), "something was taken away"
        assert [event["event"] for event in read_events(again.path)][-1] == "resumed"


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    log = EventLog("tiny", tmp_path)

    def work(seed: int) -> None:
        for step in range(50):
            log.unit(f"probe/seed={seed}/step={step}", "done", cause="x" * 500)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.path.read_text().splitlines()) == 400
    assert len({event["cell"] for event in read_events(log.path)}) == 400


def test_a_log_that_cannot_be_written_is_told_of_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where the directory should be")
    log = EventLog("tiny", tmp_path)
    for _ in range(3):
        log.add("rl", "started")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "events.jsonl" in err and "the study goes on" in err


def test_there_are_no_events_where_there_is_no_log(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_a_session_tells_of_its_units_as_their_markers_are_written(tmp_path: Path) -> None:
    session = Session(load_study("tiny"), StudyFiles(tmp_path / "tiny"))
    assert not session.files.root.exists(), "a session that does nothing writes nothing"
    fresh, kept, broken = (Unit(f"edit/{name}", name) for name in ("fresh", "kept", "broken"))
    session.files.state(kept).mkdir(parents=True)
    for unit in (fresh, kept, broken):
        session.started(unit)
    session.done(fresh, seconds=1.0)
    session.fail(broken.name, "Traceback:\n  line 3\nOSError: disk is full\n")
    session.fail("spectra", "RuntimeError: no factors")
    assert session.files.is_done(fresh) and list(session.failures) == [broken.name, "spectra"]
    told = [(e["stage"], e["cell"], e["event"], e["cause"]) for e in read_events(session.events.path)]
    assert told == [
        ("edit", "fresh", "started", None),
        ("edit", "kept", "resumed", None),
        ("edit", "broken", "started", None),
        ("edit", "fresh", "done", None),
        ("edit", "broken", "failed", "OSError: disk is full"),
        ("spectra", "", "failed", "RuntimeError: no factors"),
    ]


class Trial:
    """What the sweep asks a trial for: its branch, and what ended its process."""

    def __init__(self, branch: Branch, error: str | None = None) -> None:
        self.config = {"branch": branch.plain()}
        self._error = error

    def get_error(self) -> Exception | None:
        return RuntimeError(self._error) if self._error else None


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(load_study("tiny"), StudyFiles(tmp_path / "tiny"))


def watching(session: Session) -> SweepWatch:
    return SweepWatch(StageProgress("rl", 1, "updates"), session.study, session.files, session.events)


def told(session: Session) -> list[tuple[str, str, str | None]]:
    """Of every event of a branch or control: its unit, what happened, why."""
    return [(f"{e['stage']}/{e['cell']}", e["event"], e["cause"]) for e in read_events(session.events.path)]


def test_a_branch_is_told_of_from_start_to_end(session: Session) -> None:
    watch, branch = watching(session), next(branches(session.study))
    trial: Any = Trial(branch)
    watch.on_trial_start(1, [], trial)
    session.files.mark_done(session.units.branch(branch))
    watch.on_trial_complete(2, [], trial)
    assert told(session) == [(branch.name, "started", None), (branch.name, "done", None)]


def test_a_branch_that_has_state_is_resumed(session: Session) -> None:
    branch = next(branches(session.study))
    session.files.state(session.units.branch(branch)).mkdir(parents=True)
    watching(session).on_trial_start(1, [], Trial(branch))
    assert told(session) == [(branch.name, "resumed", None)]


def test_a_trial_that_only_probes_a_finished_branch_is_no_event_of_the_branch(session: Session) -> None:
    watch, branch = watching(session), next(branches(session.study))
    session.files.mark_done(session.units.branch(branch))
    watch.on_trial_start(1, [], Trial(branch))
    watch.on_trial_complete(2, [], Trial(branch))
    assert told(session) == []


def test_a_lost_process_is_a_restart_and_a_failed_branch_is_not(session: Session) -> None:
    """Tune tries again after both."""
    watch, branch = watching(session), next(branches(session.study))
    trial: Any = Trial(branch, "The actor died")
    watch.on_trial_start(1, [], trial)
    watch.on_trial_recover(2, [], trial)
    note_failure(
        session.files, session.units.branch(branch), "Traceback\nFloatingPointError: gradient is nan\n"
    )
    watch.on_trial_recover(3, [], trial)
    watch.on_trial_error(4, [], trial)
    assert told(session) == [
        (branch.name, "started", None),
        (branch.name, "restarted", "The actor died"),
        (branch.name, "failed", "FloatingPointError: gradient is nan"),
    ]


def test_a_control_without_its_branch_fails_for_that(session: Session) -> None:
    watch = watching(session)
    control = Branch(Trunk("plain", 0), session.study.rl.from_steps[0], "continued_sft")
    watch.on_trial_start(1, [], Trial(control))
    watch.on_trial_complete(2, [], Trial(control))
    assert told(session)[-1] == (control.name, "failed", "its RL branch failed")
