"""The command line that all jobs share: a study, overrides, exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlheals_ray.command import EXIT_CODES, guarded
from rlheals_ray.config import InputError, load_study, presets
from rlheals_ray.connection import prepare


def main(job: str, what: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line of `jobs/<job>.py` and run it; returns the exit code.

    0 done; 1 a unit failed, the others are kept; 2 the input is wrong, nothing was written;
    130 / 143 interrupted, the same command resumes.
    """
    # Intermixed: a field may also stand behind an option.
    parsed = _parser(job, what).parse_intermixed_args(arguments)
    return guarded(job, lambda: _run(job, parsed))


def _run(job: str, parsed: argparse.Namespace) -> int:
    study = load_study(parsed.study, parsed.overrides)
    if parsed.storage:
        study = study.model_copy(update={"storage": parsed.storage})
    from rlheals_ray.grid.preflight import preflight

    preflight(study)  # what is wrong is told before the seconds that the next imports take
    if parsed.calibrate and not parsed.plan:
        raise InputError("--calibrate (got without --plan): it measures rates for the plan; add --plan.")
    prepare(parsed.address)
    if parsed.calibrate:
        from rlheals_ray.grid.calibrate import calibrate

        calibrate(study, parsed.address)
    if parsed.plan:
        from rlheals_ray.grid.plan import print_plan

        return print_plan(study, parsed.address)
    from rlheals_ray.grid.study_run import run_study

    return run_study(study, job, parsed.address)


def _parser(job: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"jobs/{job}.py",
        description=what,
        epilog=EXIT_CODES,
    )
    parser.add_argument("study", metavar="STUDY", help=f"a preset ({', '.join(presets())}) or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="field=value", help="for example sft.learning_rate=2e-4"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print what would be done; allocate and write nothing"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="with --plan: first run a miniature of the study and keep its rates in rates.json under `storage`",
    )
    parser.add_argument("--storage", metavar="DIR|URI", help="where studies are kept (overrides `storage`)")
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a Ray cluster to join (default: RAY_ADDRESS, else this machine)"
    )
    return parser
