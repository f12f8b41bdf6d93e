"""The command line of the benchmarks: `jobs/bench.py NAME [options]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rlheals_ray.bench.measure import record, render, surroundings
from rlheals_ray.bench.registry import BENCHMARKS
from rlheals_ray.config import InputError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark and print what it found; returns the exit code.

    0 measured, whatever came out; 1 it failed, with a traceback; 2 the input is wrong; 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] and given[0] in BENCHMARKS:
            return _run(given[0], given[1:])
        parsed, _ = _parser().parse_known_args(given)
        if not parsed.list:
            wrong = "is missing" if parsed.name is None else f"(got {parsed.name!r}) is no benchmark"
            raise InputError(f"NAME {wrong}; use one of {', '.join(BENCHMARKS)}, and options behind it.")
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:10} {benchmark.summary}")
        return 0
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:10} {benchmark.summary}" for name, benchmark in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="jobs/bench.py",
        description="Measure this system beside what one would otherwise use.",
        epilog=f"benchmarks:\n{names}\n\n`jobs/bench.py NAME --help` lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the benchmark")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    return parser


def _run(name: str, arguments: Sequence[str]) -> int:
    benchmark = BENCHMARKS[name]
    parser = argparse.ArgumentParser(
        prog=f"jobs/bench.py {name}",
        description=benchmark.summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repetitions", type=positive, default=5, help="how often each side is measured")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    module = benchmark.load()
    module.add_options(parser)
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise InputError(f"--json (got {str(options.json)!r}): there is no such directory; make it first.")
    around = surroundings()
    outcome = module.run(options)
    print(render(name, outcome, around), flush=True)
    if options.json is not None:
        options.json.write_text(
            json.dumps(record(name, outcome, around), indent=1, ensure_ascii=False, default=str) + "\n"
        )
    return 0


def positive(text: str) -> int:
    """An option's value that must be an integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
