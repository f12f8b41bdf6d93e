"""A changed judge is another task: the code of one's own task, and of what it imports beside it, is in its hash."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rlheals_ray.tasks.source import source_hash

TASK = """
'''A task.'''
import json
from my_judges import strict

def judge(text):
    return strict.judge(text)
"""
FILES = {
    "my_task.py": TASK,
    "my_judges/__init__.py": "",
    "my_judges/strict.py": "from .words import WORDS\n\ndef judge(text):\n    return text in WORDS\n",
    "my_judges/words.py": "WORDS = {'yes'}\n",
    "my_judges/unused.py": "def judge(text):\n    return True\n",
    "unrelated.py": "VALUE = 1\n",
}


def write(directory: Path) -> Path:
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


def hash_in(directory: Path, module: str = "my_task") -> str:
    """Of the module as a process that is started in `directory` imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        for name in [name for name in sys.modules if name.startswith("my_")]:
            patch.delitem(sys.modules, name)
        importlib.import_module(module)
        try:
            return source_hash(module)
        finally:
            for name in [name for name in sys.modules if name.startswith("my_")]:
                del sys.modules[name]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "differs"),
    [
        ("my_task.py", FILES["my_task.py"] + "\nREWARD = 2\n", True),
        ("my_judges/strict.py", FILES["my_judges/strict.py"].replace("in", "not in"), True),
        ("my_judges/words.py", "WORDS = {'yes', 'no'}\n", True),
        ("my_judges/__init__.py", "STRICT = True\n", True),
        ("my_task.py", "# a comment\n" + FILES["my_task.py"].replace("judge(text)", "judge( text )"), False),
        ("my_judges/unused.py", "def judge(text):\n    return False\n", False),
        ("unrelated.py", "VALUE = 2\n", False),
    ],
)
def test_only_code_that_the_task_can_run_is_in_its_hash(
    directory: Path, file: str, text: str, differs: bool
) -> None:
    before = hash_in(directory)
    (directory / file).write_text(text)
    assert (hash_in(directory) != before) == differs


def test_where_it_stands_does_not_matter(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = write(tmp_path_factory.mktemp("elsewhere"))
    assert hash_in(directory) == hash_in(elsewhere) != ""


def test_a_module_in_a_package_counts_its_package(directory: Path) -> None:
    before = hash_in(directory, "my_judges.strict")
    (directory / "my_judges" / "words.py").write_text("WORDS = set()\n")
    assert hash_in(directory, "my_judges.strict") != before
