"""`jobs/status.py STUDY [field=value ...] [--storage DIR] [--watch | --json]`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from rlheals_ray.command import guarded
from rlheals_ray.config import InputError, presets
from rlheals_ray.grid.status import Status, Watched
from rlheals_ray.grid.status_asked import asked_study
from rlheals_ray.grid.status_view import render

EVERY_SECONDS = 2.0
"""Between two looks of --watch, at least."""
REST = 10
"""A look that took t seconds is followed by REST·t of rest: a slow disk is not walked all the time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and show the status; returns the exit code.

    0 shown; 1 shown, and some unit failed; 2 the input is wrong, no such study for one; 130 / 143 interrupted.
    """
    parsed = _parser().parse_intermixed_args(arguments)
    return guarded("status", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    if parsed.watch and parsed.json:
        raise InputError("--json (got with --watch): it prints one object; leave one of the two out.")
    asked = asked_study(parsed.study, parsed.overrides, parsed.storage)
    try:
        return _show(parsed, Watched(asked))
    finally:
        if asked.view is not None:
            asked.view.close()


def _show(parsed: argparse.Namespace, watched: Watched) -> int:
    if parsed.watch:
        status = _watch(watched)
    else:
        status = watched.look()
        if parsed.json:
            print(json.dumps(status.plain(), indent=2, ensure_ascii=False))
        else:
            Console(highlight=False).print(render(status))
    return 1 if status.failures else 0


def _watch(watched: Watched) -> Status:
    """Show the status again and again until everything is done, or the run that did not get that far has ended.

    A study at which nothing works and in which nothing failed is waited for: its job may not have started yet.
    """
    ran = False
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            start = time.monotonic()
            status = watched.look_again()
            live.update(render(status), refresh=True)
            if status.holder is None and (status.complete or status.failures or ran):
                return status
            ran = status.holder is not None
            time.sleep(max(EVERY_SECONDS, REST * (time.monotonic() - start)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/status.py",
        description="What is done, running, failed and left of a study, from its directory alone.",
        epilog="Exit codes: 0 shown, 1 shown and some unit failed, 2 wrong input, 130/143 interrupted.",
    )
    parser.add_argument(
        "study",
        metavar="STUDY",
        help=f"a preset ({', '.join(presets())}), a YAML file, or the study's directory",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="field=value",
        help="look at it by other settings than its last run's; name=NAME only says which study",
    )
    parser.add_argument("--storage", metavar="DIR|URI", help="where studies are kept (overrides `storage`)")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show it again every 2 s until everything is done or its run ends",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
