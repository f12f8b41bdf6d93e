"""Drawing items of reasoning-gym, in a process of its own.

Some datasets draw from the global `random` or numpy state, print, set the decimal context, or walk through sets
of strings, whose order is each process's own. A process started for the purpose, with its hash seed and its
states set, gives the same items everywhere, and leaves the caller's state alone.

Item `i` of a stream is the package's `dataset[i]`, which seeds itself with the dataset's seed plus `i`; every
`CHUNK` items the stream goes on with another dataset seed. Seeds of streams are digests, so streams of
neighbouring seeds share no items.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from rlheals_ray.tasks.reasoning_gym_config import CHUNK, Config, make
from rlheals_ray.tasks.reasoning_gym_verify import verifier

LIMIT_S = 1_800
"""After this many seconds a draw is given up."""
_PATIENCE = 500
_PATIENCE_EACH = 4
_UNSOLVED = 50
# Beyond this the package's own seeds, dataset's seed plus index, may pass numpy's 32 bits.
_SEEDS = 2**31


@dataclass(frozen=True)
class Draw:
    """What to draw: `count` items of one side of the split."""

    dataset: str
    config: Config
    stream: str
    held_out: float
    evaluated: bool
    count: int


@dataclass(frozen=True)
class Item:
    question: str
    answer: str
    metadata: bytes
    """Pickled: tuples, numbers as keys and dates would not survive JSON."""


class DrawError(Exception):
    """The items cannot be drawn; the message is a clause that says why."""


def held_out(question: str, share: float) -> bool:
    """Whether a question belongs to the evaluation: a fixed draw per question, whatever else is drawn."""
    digest = hashlib.blake2b(f"reasoning_gym/{question}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def draw(wanted: Draw) -> list[Item]:
    """Distinct items whose own answer is right, at most `count`; fewer when the stream brings nothing new.

    It is given up after 500 items in a row without a new question and 4 more for each question seen, so that
    among n equally likely questions one is overlooked with probability below exp(-4). Raises DrawError.
    """
    paths = [os.getcwd(), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)}
    try:
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__],
            input=json.dumps(asdict(wanted)).encode(), capture_output=True, env=environment, timeout=LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DrawError(f"drawing them takes more than {LIMIT_S} s") from None
    if child.returncode:
        last = " ".join(child.stderr.decode(errors="replace").strip().splitlines()[-1:])
        told = textwrap.shorten(last, 300) or f"exit code {child.returncode}"
        raise DrawError(f"drawing them fails ({told})")
    return [Item(*fields) for fields in pickle.loads(child.stdout)]


def drawn(wanted: Draw) -> list[Item]:
    """As `draw`, in this process, whose hash seed and global state it then depends on and changes."""
    items: list[Item] = []
    seen: set[bytes] = set()
    unsolved = idle = index = 0
    chunk: Any = None
    solved: Any = None
    while len(items) < wanted.count and idle < _PATIENCE + _PATIENCE_EACH * len(seen):
        if index % CHUNK == 0:
            chunk = make(wanted.dataset, wanted.config, seed_of(f"{wanted.stream}/{index // CHUNK}"))
            solved = verifier(wanted.dataset, chunk)
        _set_states(f"{wanted.stream}/{index}")
        entry = chunk[index % CHUNK]
        index += 1
        key = hashlib.blake2b(entry["question"].encode(), digest_size=16).digest()
        if key in seen:
            idle += 1
            continue
        seen.add(key)
        idle = 0
        if held_out(entry["question"], wanted.held_out) != wanted.evaluated:
            continue
        if not (isinstance(entry["answer"], str) and solved(entry["answer"].strip(), entry)):
            unsolved += 1
            if unsolved >= _UNSOLVED and not items:
                raise ValueError(f"of the first {unsolved} items none has an answer that counts as right")
            continue
        items.append(Item(entry["question"], entry["answer"].strip(), pickle.dumps(entry["metadata"], 5)))
    return items


def seed_of(text: str) -> int:
    """A dataset's seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % _SEEDS


def _set_states(text: str) -> None:
    import numpy

    random.seed(text)
    numpy.random.seed(seed_of(text))


def _main() -> None:
    wanted = Draw(**json.loads(sys.stdin.buffer.read()))
    # Generators print; the items must be alone on the standard output.
    with os.fdopen(os.dup(1), "wb") as output, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        items = drawn(wanted)
        output.write(pickle.dumps([(one.question, one.answer, one.metadata) for one in items], 5))


if __name__ == "__main__":
    try:
        _main()
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
