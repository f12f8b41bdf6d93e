"""The command line that checks a task: `jobs/evaluate.py --check-task NAME [option=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from rlheals_ray.command import guarded
from rlheals_ray.config import InputError
from rlheals_ray.tasks.conformance import LAWS, Conformance, Effort
from rlheals_ray.tasks.conformance.apart import check_apart

FLAG = "--check-task"


def asked(arguments: Sequence[str]) -> bool:
    """Whether a command line of jobs/evaluate.py asks for this and not for a study."""
    return any(argument.partition("=")[0] == FLAG for argument in arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the named task and print what was found; returns the exit code.

    0 it keeps every law; 1 it breaks one; 2 it cannot be loaded or its options are wrong; 130 / 143 interrupted.
    """
    parsed = _parser().parse_intermixed_args(arguments)
    return guarded("evaluate", lambda: _run(parsed))


def _run(parsed: argparse.Namespace) -> int:
    if parsed.calls < 1:
        raise InputError(f"--calls (got {parsed.calls}): a check needs answers to judge; give 1 or more.")
    options = dict(map(_option, parsed.options))
    problems = max(Effort().problems, parsed.calls // 20)
    found = check_apart(parsed.check_task, options, Effort(problems=problems, calls=parsed.calls))
    print(render(parsed.check_task, options, found))
    return 0 if found.kept else 1


def render(name: str, options: dict[str, Any], found: Conformance) -> str:
    """A table of laws with how often each was checked and broken, the slowest judge call, and the breaches."""
    lines = [" ".join([f"task {name}", *(f"{option}={value}" for option, value in options.items())]), ""]
    width = max(map(len, LAWS))
    lines.append(f"{'law':<{width}}  {'checked':>7}  {'broken':>6}")
    for law, says in LAWS.items():
        if checked := found.checked.get(law):
            broken = found.broken.get(law, 0)
            lines.append(f"{law:<{width}}  {checked:>7}  {broken or '-':>6}  {says}")
    lines.append("")
    if found.calls:
        slowest = f"the slowest took {found.slowest * 1000:.1f} ms ({found.slowest_answer})"
        lines.append(f"{found.calls} answers judged; {slowest}")
    if found.kept:
        lines.append(f"The task keeps all {len(found.checked)} laws.")
    else:
        lines.append(f"The task breaks {', '.join(found.broken)}:")
        lines += [f"- {breach}" for breach in found.breaches]
        if hidden := sum(found.broken.values()) - len(found.breaches):
            lines.append(f"and {hidden} more of the same")
        if not found.calls:
            lines.append("The laws that are not listed could not be checked.")
    return "\n".join(lines)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"option {text!r}: write option=value, for example cards=3.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(
            f"{name}: the value {value!r} is not valid YAML; quote it or mend the brackets."
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"jobs/evaluate.py {FLAG}",
        usage=f"jobs/evaluate.py {FLAG} NAME [option=value ...] [--calls N]",
        description="Check that a task keeps every promise that studies rely on.",
        epilog="Exit codes: 0 it keeps them, 1 it breaks one, 2 the task cannot be loaded, 130/143 interrupted.",
    )
    parser.add_argument(
        FLAG, metavar="NAME", required=True, help="a task that comes along, or module:Class for your own"
    )
    parser.add_argument(
        "options", nargs="*", metavar="option=value", help="of the task, in YAML, for example cards=3"
    )
    parser.add_argument(
        "--calls", type=int, default=Effort().calls, help="answers to judge (default: %(default)s)"
    )
    return parser
