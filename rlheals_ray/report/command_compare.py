"""`jobs/report.py --compare A B [--out FILE]`: two studies side by side."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rlheals_ray.command import EXIT_CODES, guarded
from rlheals_ray.mirror_remote import remote_folder
from rlheals_ray.mirror_view import View, for_comparison
from rlheals_ray.report.side_by_side import compare_studies
from rlheals_ray.storage import is_uri


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and write the page; returns the exit code (see `guarded`)."""
    parsed = _parser().parse_args(arguments)
    return guarded("report", lambda: _run(parsed))


def usage() -> str:
    """What `--help` says of this use of the job."""
    return _parser().format_help()


def _run(parsed: argparse.Namespace) -> int:
    with ExitStack() as stack:
        a, b = (_directory(where, stack) for where in parsed.compare)
        names = (re.sub(r"[^\w.-]+", "-", path.resolve().name) for path in (a, b))
        out = Path(parsed.out).expanduser() if parsed.out else Path("-vs-".join(names) + ".html")
        print(f"report: {compare_studies(a, b, out)}")
    return 0


def _directory(where: str, stack: ExitStack) -> Path:
    """The study's directory; of one at a URI, what a comparison reads of it."""
    if not is_uri(where):
        return Path(where).expanduser()
    view = View(remote_folder(where), for_comparison)
    stack.callback(view.close)
    return view.root


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/report.py", description="Two studies side by side on one page.", epilog=EXIT_CODES
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        required=True,
        metavar=("A", "B"),
        help="directories of two studies, as runs/nano, or their URIs",
    )
    parser.add_argument("--out", metavar="FILE", help="the page to write (default: A-vs-B.html here)")
    return parser
