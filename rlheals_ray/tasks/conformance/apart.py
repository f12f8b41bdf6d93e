"""Checks of a task in processes of their own, which end also when the task hangs or takes its process down.

The process that checks tells this one what it is about to do, a line of JSON each, over a pipe; who hears nothing
for longer than that may take kills it. As a program, `python -m rlheals_ray.tasks.conformance.apart PIPE`, it is that
process; its standard input says what to check.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rlheals_ray.config import InputError
from rlheals_ray.tasks import get_task
from rlheals_ray.tasks.conformance import check_task
from rlheals_ray.tasks.conformance.laws import LAWS, Breach, Conformance, Effort
from rlheals_ray.tasks.conformance.problems import parts_of
from rlheals_ray.tasks.task import Problem, Task

_START_SECONDS = 120.0
"""What importing a task of one's own and making it may take."""

_ENDING_SECONDS = 10.0

_HASH_SEEDS = ("1", "2")
_COMPARED = 20
"""Problems of each rule and split that are compared between processes."""


@dataclass(frozen=True)
class _Step:
    law: str
    what: str
    problem: str | None
    seconds: float


_START = _Step("total", "making the task", None, _START_SECONDS)


def check_apart(
    name: str, options: dict[str, Any], effort: Effort | None = None, processes: bool = True
) -> Conformance:
    """Check the task of this name (see `tasks.get_task`); with `processes` also in two more, of other hash seeds.

    Raises InputError where there is no such task or its options are wrong.
    """
    request = {"name": name, "options": options, "effort": asdict(effort or Effort())}
    answer = _ask(request)
    if isinstance(answer, Breach):
        return _only(answer)
    found = Conformance.from_json(answer)
    # What is not even the same twice in one process says nothing about two.
    if processes and not {"protocol", "deterministic", "texts"} & set(found.broken):
        _compare(request, found)
    return Conformance(
        **{**vars(found), "checked": {law: found.checked[law] for law in LAWS if law in found.checked}}
    )


def _compare(request: dict[str, Any], found: Conformance) -> None:
    told = [_ask({**request, "effort": None}, hash_seed) for hash_seed in _HASH_SEEDS]
    for answer in told:
        if isinstance(answer, Breach):
            found.add(answer)
            return
    first, second = (dict(answer) for answer in told if not isinstance(answer, Breach))
    for key in first:
        what, _, problem = key.partition(" of ")
        if problem and key not in second:
            continue  # the list of problems is another, which is said once
        if first.get(key) != second.get(key):
            remedy = "use hashlib in place of hash(), and sort sets before they are used"
            found.add(Breach("processes", f"{what} is another in another process", remedy, problem or None))
        else:
            found.checked["processes"] = found.checked.get("processes", 0) + 1


def _only(breach: Breach) -> Conformance:
    found = Conformance()
    found.add(breach)
    return found


def _ask(request: dict[str, Any], hash_seed: str = "random") -> Any:
    """What the other process answers, or the breach by which it ended. Raises InputError where it does."""
    reading, writing = os.pipe()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # of the task's own prints
        pass_fds=(writing,),
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
        text=True,
    )
    os.close(writing)
    try:
        with process.stdin as stdin:  # type: ignore[union-attr]
            stdin.write(json.dumps(request, default=str))
        answer, step = _listen(reading)
        if answer is None:  # it has closed the pipe, and so is about to end
            process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    except BrokenPipeError:
        answer, step = None, _START
    except TimeoutError as error:
        step = error.args[0]
        what = f"{step.what} does not end within {step.seconds:.0f} s"
        return Breach(step.law, what, "find out what it waits for or computes", step.problem)
    finally:
        os.close(reading)
        process.kill()
        process.wait()
    if answer is None:
        code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Breach(step.law, f"{step.what} ends the process ({how})", "let it return", step.problem)
    if "wrong" in answer:
        raise InputError(answer["wrong"])
    return answer["answer"]


def _listen(reading: int) -> tuple[dict[str, Any] | None, _Step]:
    """The answer, None where the pipe is closed first, and the last step; raises TimeoutError(step) if that is long."""
    rest, step = b"", _START
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while True:
            if not selector.select(step.seconds):
                raise TimeoutError(step)
            if not (data := os.read(reading, 1 << 16)):
                return None, step
            *lines, rest = (rest + data).split(b"\n")
            for message in map(json.loads, lines):
                if "doing" not in message:
                    return message, step
                step = _Step(*message["doing"])


def digests(task: Task) -> dict[str, str]:
    """A hash of everything that must be the same in every process, by what it is."""
    seen = {"fingerprint()": _digest(task.fingerprint)}
    for rule, split in parts_of(task):
        seen[f"available({rule!r}, {split!r})"] = _digest(lambda r=rule, s=split: task.available(r, s))  # type: ignore[misc]
        try:
            problems = task.problems(rule, split, min(task.available(rule, split), _COMPARED), seed=3)
        except Exception:
            continue  # another law's breach
        seen[f"problems({rule!r}, {split!r}, {len(problems)}, seed=3)"] = _digest(
            lambda p=problems: [problem.id for problem in p]  # type: ignore[misc]
        )
        for problem in problems:
            calls: dict[str, Callable[[Problem], object]] = {
                "the group": lambda p: p.group,
                "prompt()": task.prompt,
                "demonstration(seed=5)": lambda p: task.demonstration(p, seed=5),
                "judge()": lambda p: repr(task.judge(p, "I do not know.")),
            }
            for what, call in calls.items():
                seen[f"{what} of {problem.id}"] = _digest(lambda c=call, p=problem: c(p))  # type: ignore[misc]
    return seen


def _digest(call: Callable[[], object]) -> str:
    try:
        value = call()
    except Exception as error:  # whether it may raise is another law
        value = type(error).__name__
    return hashlib.blake2b(repr(value).encode(errors="backslashreplace"), digest_size=8).hexdigest()


def _main(pipe: int, request: dict[str, Any]) -> None:
    def send(message: dict[str, Any]) -> None:
        data = f"{json.dumps(message)}\n".encode()
        while data:
            data = data[os.write(pipe, data) :]

    def doing(law: str, what: str, problem: str | None, seconds: float) -> None:
        send({"doing": [law, what, problem, seconds]})

    try:
        task = get_task(request["name"], **request["options"])
    except InputError as error:
        send({"wrong": str(error)})
        return
    if request["effort"] is None:
        send({"doing": ["processes", "asking it for problems, prompts and verdicts", None, 300.0]})
        send({"answer": list(digests(task).items())})
    else:
        send({"answer": check_task(task, effort=Effort(**request["effort"]), doing=doing).as_json()})


if __name__ == "__main__":
    _main(int(sys.argv[1]), json.load(sys.stdin))
