"""A study from start to end, or up to one stage; then its tables, its report, and where the time went."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from rlheals_ray.config import Study, dump_study
from rlheals_ray.grid.edits import edit_stage
from rlheals_ray.grid.export import export_stage
from rlheals_ray.grid.hidden import hidden_stage
from rlheals_ray.grid.preflight import preflight
from rlheals_ray.grid.retention import check_removed, retention_stage
from rlheals_ray.grid.session import Session
from rlheals_ray.grid.spectra import spectra_stage
from rlheals_ray.grid.stages import base_stage, evaluate_stage, rl_stage, sft_stage
from rlheals_ray.grid.status_disk import holder_of
from rlheals_ray.grid.study_tables import tables_stage
from rlheals_ray.mirror import Mirror, mirrored
from rlheals_ray.provenance import git_commit, versions
from rlheals_ray.storage import StudyFiles, write_json, write_text
from rlheals_ray.tasks import ood_rules

STAGES: dict[str, tuple[Callable[[Session], None], ...]] = {
    "sft": (base_stage, sft_stage),
    "rl": (base_stage, sft_stage, rl_stage),
    "evaluate": (base_stage, sft_stage, evaluate_stage),
    "spectra": (base_stage, sft_stage, rl_stage, spectra_stage, hidden_stage),
    "edit": (base_stage, sft_stage, edit_stage),
    "report": (),
    "grid": (base_stage, sft_stage, rl_stage, evaluate_stage, spectra_stage, hidden_stage, edit_stage),
}
"""What each job runs: its stage and what that needs; whatever is done already is skipped."""


def run_study(study: Study, job: str = "grid", address: str | None = None) -> int:
    """Run `job` of a study; returns the exit code: 0 done, 1 a unit failed (the others are kept).

    Raises InputError, having written nothing, when the input is wrong.
    """
    files = preflight(study)
    if holder_of(files.root) is not None:
        # Already here: nodes that an autoscaler brings for a second run are paid for. The lock below decides.
        raise files.held()
    mirror = Mirror.of(study, files)
    session = Session(study, files, address)
    if mirror is None:
        check_removed(session)
    else:
        mirror.check()
    session.check_resources()
    with files.lock(), mirrored(mirror):
        if mirror is not None:
            check_removed(session)  # only now the directory is what the run goes on from
        is_known = (files.root / "study.yaml").exists()
        if STAGES[job] or not is_known:
            _record_study(study, files)
        session.events.add("study", "resumed" if is_known else "started")
        try:
            with session.timings.stage("total"):
                # A stage that broke off ends the run: later ones build on it.
                all(_run(session, stage) for stage in STAGES[job])
        finally:
            session.close()
        _run(session, tables_stage)
        _run(session, export_stage)  # before the report, which names it
        _record_timings(session)  # before the report, which shows them
        _run(session, report_stage)
        if job == "grid":
            _run(session, retention_stage)
        logs = _log_failures(session)
        failed = ", ".join(session.failures) or None
        session.events.add("study", "failed" if failed else "done", cause=failed)
        session.events.close()
        if mirror is not None and (cause := mirror.end()):
            session.fail("mirror", cause)
            session.events.close()
            logs = _log_failures(session)
        _summary(session, logs)
    return 1 if session.failures else 0


def _run(session: Session, stage: Callable[[Session], None]) -> bool:
    """Run one stage; its unforeseen error is a failure with a log, not a traceback over the user's terminal."""
    name = stage.__name__.removesuffix("_stage")
    session.events.add(name, "started")
    with session.timings.stage(name):
        try:
            stage(session)
        except Exception:
            session.tell_restarts()
            session.fail(name, traceback.format_exc())
            return False
    session.tell_restarts()
    session.events.add(name, "done")
    return True


def _record_timings(session: Session) -> None:
    try:
        session.files.add_timings(session.timings.seconds)
    except OSError:
        session.fail("timings", traceback.format_exc())


def _log_failures(session: Session) -> dict[str, Path]:
    """Write failures.json and each failure's log; returns the logs by unit.

    Where the disk takes no more, what failed is still told in the terminal.
    """
    logs = {}
    try:
        for unit, cause in session.failures.items():
            path = session.files.root / "logs" / f"{unit.replace('/', '_')}.log"
            write_text(path, cause)
            logs[unit] = path
        causes = {unit: _last_line(cause) for unit, cause in session.failures.items()}
        write_json(session.files.root / "failures.json", causes)
    except OSError:
        session.fail("logs", traceback.format_exc())
    return logs


def report_stage(session: Session) -> None:
    """The report, from the tables."""
    from rlheals_ray.report import build_report

    build_report(session.files.root)


def _record_study(study: Study, files: StudyFiles) -> None:
    path = files.root / "study.yaml"
    # Where this run's commit is not known, an earlier run's stays: it tells more than none.
    commit = git_commit() or _recorded_commit(path)
    record: dict[str, Any] = dump_study(study) | {"versions": versions(), "git_commit": commit}
    write_text(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))


def _recorded_commit(path: Path) -> str | None:
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return record.get("git_commit") if isinstance(record, dict) else None


def _summary(session: Session, logs: Mapping[str, Path]) -> None:
    """The boundary, the stages' times, the failures and the report's path, in the terminal."""
    console = Console()
    pooled = [
        r
        for r in session.files.read_table("boundary").to_pylist()
        if r["scope"] == "pooled" and r["algorithm"] == session.study.rl.algorithm
    ]
    last = max((row["rl_step"] for row in pooled), default=0)
    for rule in ood_rules(session.task):
        name = "OOD" if rule == "ood" else f"OOD ({rule})"
        _print(console, f"{name} accuracy@1, seeds {list(session.study.seeds)}, after {last} RL updates",
               ("SFT step", "after SFT", "after RL", "healing", "95 % over problems", "verdict"),
               [(str(r["sft_step"]), f"{r['ood_sft']:.3f}", f"{r['ood_rl']:.3f}", f"{r['healing']:+.3f}",
                 f"{r['healing_low']:+.3f} to {r['healing_high']:+.3f}", r["verdict"])
                for r in pooled if r["rule"] == rule and r["rl_step"] == last])  # fmt: skip
    _print(console, "Where the time went", ("stage", "seconds"),
           [(stage, f"{seconds:.1f}") for stage, seconds in session.timings.seconds.items()])  # fmt: skip
    for unit, cause in session.failures.items():
        console.print(
            f"[red]failed[/red] {unit}: {_last_line(cause)} (log: {logs.get(unit, 'none')})",
            highlight=False,
            soft_wrap=True,
        )
    if "report" not in session.failures:
        console.print(f"report: {session.files.root / 'report.html'}", highlight=False, soft_wrap=True)


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else text
