"""A study's status in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from rlheals_ray.grid.status import Run, Stage, Status
from rlheals_ray.grid.status_disk import Written

_COLOURS = {"done": "green", "running": "cyan", "begun": "yellow", "failed": "red", "left": "dim"}
LEGEND = "✓ done, □ stopped early, ▶ running, ‖ begun, waits for a run, ✕ failed, · left; each with its last update"


def render(status: Status) -> RenderableType:
    """The whole status, top to bottom: who, stages, failures, trunks and branches, bytes."""
    parts: list[RenderableType] = [Text(line, overflow="fold") for line in _head(status)]
    parts.append(_stages(status))
    if status.failures:
        parts.append(_failures(status))
    parts += _maps(status.runs)
    if status.runs:
        parts.append(Text(LEGEND, style="dim"))
    parts.append(Text(_disk_line(status)))
    return Group(*parts)


def _head(status: Status) -> Iterator[str]:
    state = "complete" if status.complete else "not complete"
    yield f"{status.study}: {state}; {status.root}"
    holder = status.holder
    if holder is None:
        yield "no process that this machine sees works on it"
    elif holder.pid is None:
        yield f"a process of another machine works on it, at latest since {_moment(holder.since)}"
    else:
        yield f"process {holder.pid} works on it since {_moment(holder.since)}: {holder.command or 'unknown command'}"
    if status.last_written is not None:
        yield f"last written {_ago(status, status.last_written)} ago: {status.last_written.path}"
    yield from _times(status)
    yield from status.notes


def _times(status: Status) -> Iterator[str]:
    spent = []
    if status.running_seconds is not None:
        spent.append(f"{_span(status.running_seconds)} in this run")
    if "total" in status.recorded_seconds:
        spent.append(f"{_span(status.recorded_seconds['total'])} in runs that ended")
    if spent:
        yield f"time: {', '.join(spent)}"
    if status.complete:
        return
    known = [seconds for seconds in status.left.stages.values() if seconds is not None]
    if status.left.seconds is not None:
        yield f"left: about {_span(status.left.seconds)}, from recorded rates"
    elif known:
        yield f"left: more than {_span(sum(known))}; no rate was recorded {_listed(status.left.missing)}"
    else:
        yield "left: unknown, no rates were recorded for these settings"


def _listed(missing: Sequence[str]) -> str:
    return ", ".join(what if what.startswith("for ") else f"of {what}" for what in missing)


def _stages(status: Status) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("done / all", "running", "begun", "failed", "left", "written", "about"):
        table.add_column(name, justify="right")
    for stage in status.stages:
        about = "" if stage.seconds_left is None else _span(stage.seconds_left)
        written = "" if stage.last_written is None else f"{_ago(status, stage.last_written)} ago"
        table.add_row(
            stage.name,
            _share(stage),
            *(
                Text(str(count) if count else "", style=_COLOURS[state])
                for state, count in (
                    ("running", stage.running),
                    ("begun", stage.begun),
                    ("failed", stage.failed),
                    ("left", stage.left),
                )
            ),
            written,
            about,
        )
    return table


def _share(stage: Stage) -> Text:
    bound = "≤" if stage.at_most else ""
    return Text(f"{stage.done} / {bound}{stage.units}", style="green" if stage.done == stage.units else "")


def _failures(status: Status) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("failed unit", "cause", "log"):
        table.add_column(name, overflow="fold")
    for failure in status.failures:
        when = " (in an earlier run)" if failure.before_this_run else ""
        log = failure.log or "none"
        table.add_row(Text(failure.unit), Text(f"{failure.cause}{when}"), Text(log))
    return table


def _maps(runs: Sequence[Run]) -> Iterator[RenderableType]:
    """A table of the trunks, and one of each algorithm and control: seeds down, SFT steps across."""
    kinds = dict.fromkeys((run.stage, run.algorithm) for run in runs)
    several = len({run.recipe for run in runs}) > 1
    for stage, algorithm in kinds:
        mine = [run for run in runs if (run.stage, run.algorithm) == (stage, algorithm)]
        title = "SFT trunks" if algorithm is None else f"{algorithm} from SFT step"
        table = Table(box=None, pad_edge=False)
        table.add_column("recipe, seed" if several else "seed")
        starts = list(dict.fromkeys(run.sft_step for run in mine))
        for start in starts:
            table.add_column("" if start is None else str(start), justify="right")
        rows: dict[tuple[str, int], dict[int | None, Run]] = {}
        for run in mine:
            rows.setdefault((run.recipe, run.seed), {})[run.sft_step] = run
        for (recipe, seed), cells in rows.items():
            name = f"{recipe}, {seed}" if several else str(seed)
            table.add_row(name, *(_cell(cells[start]) if start in cells else "" for start in starts))
        # No title of the table: that would be broken at the table's own width.
        yield Text(title, style="italic")
        yield table


def _cell(run: Run) -> Text:
    marks = {"done": "✓", "running": "▶", "begun": "‖", "failed": "✕", "left": "·"}
    if run.state == "done" and run.step < run.of:
        return Text(f"□ {run.step}/{run.of}", style="yellow")
    steps = "" if run.state in ("done", "left") else f" {run.step}/{run.of}"
    return Text(f"{marks[run.state]}{steps}", style=_COLOURS[run.state])


def _disk_line(status: Status) -> str:
    parts = [f"{name} {decimal(size)}" for name, size in status.bytes.items() if size]
    return f"on disk {decimal(sum(status.bytes.values()))}: {', '.join(parts)}"


def _ago(status: Status, written: Written) -> str:
    return _span(max(0.0, status.at - written.at))


def _span(seconds: float) -> str:
    """`0:01:05`, `2 days, 3:00:00`."""
    return str(timedelta(seconds=round(seconds)))


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
