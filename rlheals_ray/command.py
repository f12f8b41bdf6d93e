"""How every job ends: exit codes, one paragraph for wrong input, no traceback for an interrupt."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from rlheals_ray.config import InputError

EXIT_CODES = "Exit codes: 0 done, 1 a unit failed, 2 wrong input, 130/143 interrupted (run again to resume)."
INTERRUPTED, TERMINATED = 130, 143
DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
)
"""What a disk fails with, rather than the program."""


def guarded(job: str, work: Callable[[], int]) -> int:
    """The exit code of `work`, which is that of `jobs/<job>.py`.

    2 where it raises InputError: the input is wrong, nothing was written; 1 where the disk fails outside of any unit;
    130 / 143: interrupted, the same command resumes. The process then ends at once.
    """
    signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _tell_of_thread
    if (here := os.getcwd()) not in sys.path:
        # Where Ray's workers look too: a task of one's own is found here (see tasks.get_task).
        sys.path.insert(0, here)
    try:
        return work()
    except InputError as error:
        print(f"{job}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"{job}: {error}; mend that, and the same command resumes.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _leave(f"{job}: interrupted; the same command resumes.", INTERRUPTED)
    except _Terminated:
        _leave(f"{job}: terminated; the same command resumes.", TERMINATED)


def _leave(message: str, code: int) -> NoReturn:
    """End at once: threads that wait for work which now will never finish must not keep the process."""
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell_of_thread(ended: threading.ExceptHookArgs) -> None:
    """A library's thread that the disk failed, such as TensorBoard's writer: in words, as all else that fails."""
    error = ended.exc_value
    if isinstance(error, OSError) and error.errno in DISK:
        print(f"a thread ended: {error}", file=sys.stderr)
    else:
        threading.__excepthook__(ended)


class _Terminated(BaseException):
    pass


def _terminate(*_: object) -> None:
    raise _Terminated
