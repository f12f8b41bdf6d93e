"""How every job ends where the disk fails it: in words, with exit code 1; other errors keep their traceback."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from rlheals_ray.command import guarded


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    """Those of this process, which a job changes for its own."""
    of_signal, of_threads = signal.getsignal(signal.SIGTERM), threading.excepthook
    yield
    signal.signal(signal.SIGTERM, of_signal)
    threading.excepthook = of_threads


def fails(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number), "/study/tables/rl.parquet")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_is_told_in_words(capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert guarded("grid", lambda: fails(number)) == 1
    told = capsys.readouterr().err
    assert told.startswith("grid: ") and told.count("\n") == 1
    assert os.strerror(number) in told and "/study/tables/rl.parquet" in told and "resumes" in told


def test_what_a_mistake_of_the_program_raises_is_not_hidden() -> None:
    with pytest.raises(FileNotFoundError):
        guarded("grid", lambda: fails(errno.ENOENT))


def test_a_librarys_thread_that_the_disk_fails_tells_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        thread = threading.Thread(target=fails, args=(errno.ENOSPC,))
        thread.start()
        thread.join()
        return 0

    assert guarded("grid", work) == 0
    told = capsys.readouterr().err
    assert os.strerror(errno.ENOSPC) in told and "Traceback" not in told
