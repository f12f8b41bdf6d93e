"""The user's own data as training examples: prepared once, then streamed to every worker by Ray Data.

Preparing turns whatever format the data have into Arrow files below the study, of which any row can be read
without the others. A worker's stream is a Ray Data pipeline over its own positions of the global order: tasks on
the cluster fetch the rows and tokenise them ahead of training, in order, holding a bounded number.
"""

from __future__ import annotations

import json
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray.config import DataSettings, InputError, Study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.need import Need
from rlheals_ray.sft.data import IGNORE, Example, place
from rlheals_ray.sft.user_files import Piece, content, pieces
from rlheals_ray.sft.user_rows import read_rows
from rlheals_ray.storage import StudyFiles, new_directory, write_json

_BATCH = 512
"""Rows of each record batch of a prepared file, the last one's excepted: a row is found by dividing."""
_BLOCK = 128
"""Rows that a task tokenises at a time."""
_TASKS = 2
"""Tasks that work ahead for one worker."""
_INDEX = "index.json"
_PREPARED = pa.schema({"number": pa.int64(), "turns": pa.list_(pa.string())})
_RECEIVED = pa.schema(
    {
        "problem_id": pa.string(),
        "rule": pa.string(),
        "group": pa.string(),
        "prompt": pa.string(),
        "count": pa.int64(),
    }
)


def prepared_directory(study: Study, files: StudyFiles) -> Path:
    """Where the prepared data stand; another place for other files, or when the same ones were changed."""
    assert study.sft.data is not None
    return files.root / "data" / content(study.sft.data)


def prepare(study: Study, files: StudyFiles, tasks: int = 2, need: Need | None = None) -> None:
    """Write the user's data as files that workers read from; does nothing where that is done.

    By Ray Data where Ray is up, in `tasks` tasks of `need` at a time, else in this process. Raises InputError for
    wrong data, which a preflight has excluded unless they changed since.
    """
    settings = study.sft.data
    if settings is None:
        return
    target = prepared_directory(study, files)
    if (target / _INDEX).exists():
        return
    with new_directory(target) as new:
        blocks = [
            pa.Table.from_pylist([{"part": part, **asdict(piece)}])
            for part, piece in enumerate(pieces(settings))
        ]
        arguments = {"settings": settings.model_dump(), "directory": str(new)}
        made = _mapped(blocks, _prepare_piece, tasks, need, **arguments)
        parts = [row for block in made for row in block.to_pylist()]
        if wrong := next((row["wrong"] for row in parts if row["wrong"]), None):
            raise InputError(wrong)
        write_json(
            new / _INDEX, [{"name": row["name"], "file": row["file"], "rows": row["rows"]} for row in parts]
        )


def _prepare_piece(block: pa.Table, settings: dict[str, Any], directory: str) -> pa.Table:
    """Write the rows of each piece as one Arrow file."""
    out = []
    for row in block.to_pylist():
        part, wrong = row.pop("part"), None
        piece, name = Piece(**row), f"part-{part:06d}.arrow"
        count = 0
        with pa.ipc.new_file(str(Path(directory) / name), _PREPARED) as writer:
            try:
                for rows in _batched(read_rows(DataSettings(**settings), piece), _BATCH):
                    turns = [{"number": found.number, "turns": list(found.turns)} for found in rows]
                    writer.write_batch(pa.RecordBatch.from_pylist(turns, schema=_PREPARED))
                    count += len(rows)
            except InputError as error:
                wrong = str(error)  # goes as data: Ray rewrites the text of exceptions
        out.append({"name": name, "file": piece.file, "rows": count, "wrong": wrong})
    schema = pa.schema({"name": pa.string(), "file": pa.string(), "rows": pa.int64(), "wrong": pa.string()})
    return pa.Table.from_pylist(out, schema=schema)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class PreparedRows:
    """The prepared files; rows are counted from 0 over all of them."""

    directory: Path
    names: tuple[str, ...]
    files: tuple[str, ...]
    """The user's file that each prepared one is of."""
    ends: tuple[int, ...]
    """Rows up to and with each file."""

    @classmethod
    def open(cls, directory: Path) -> PreparedRows:
        """Raises FileNotFoundError where nothing was prepared."""
        parts = json.loads((directory / _INDEX).read_text())
        ends = accumulate(part["rows"] for part in parts)
        return cls(directory, tuple(p["name"] for p in parts), tuple(p["file"] for p in parts), tuple(ends))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def turns(self, row: int) -> list[str]:
        """The texts of a row: a prompt, its answer, and so on by turns."""
        return self._cell(row, 1)[0]

    def name(self, row: int) -> str:
        """`data.jsonl:17`: the file and the row's number in it, counted from 1."""
        number, part = self._cell(row, 0)
        return f"{self.files[part]}:{number}"

    def _cell(self, row: int, column: int) -> tuple[Any, int]:
        part = bisect_right(self.ends, row)
        within = row - (self.ends[part - 1] if part else 0)
        reader = _reader(str(self.directory / self.names[part]))
        size = reader.get_batch(0).num_rows  # of every batch but the last
        return reader.get_batch(within // size).column(column)[within % size].as_py(), part


@lru_cache(maxsize=256)
def _reader(path: str) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(path))


@dataclass(frozen=True)
class UserExamples:
    """The user's rows in the seeded order of each epoch; see `data.Examples`."""

    rows: PreparedRows
    chat: ChatFormat
    seed: int

    @classmethod
    def open(cls, study: Study, files: StudyFiles, chat: ChatFormat, seed: int) -> UserExamples:
        """Raises FileNotFoundError where the data were not prepared."""
        return cls(PreparedRows.open(prepared_directory(study, files)), chat, seed)

    @property
    def count(self) -> int:
        return len(self.rows)

    def row(self, position: int) -> int:
        """The row at a position."""
        return place(self.seed, position, self.count)

    def stream(self, positions: Iterable[int]) -> Iterator[Example]:
        """By Ray Data where Ray is up, else in this process: the same examples."""
        rows = np.fromiter((self.row(position) for position in positions), np.int64)
        if not _ray_is_up():
            yield from (example(self.chat, int(row), self.rows.turns(int(row))) for row in rows)
            return
        import ray

        blocks = [pa.table({"row": rows[start : start + _BLOCK]}) for start in range(0, len(rows), _BLOCK)]
        chat = ray.put(self.chat)  # once, however many tasks
        for block in _mapped(blocks, _tokenise, _TASKS, None, prepared=self.rows, chat=[chat]):
            columns = (block[name].to_pylist() for name in ("row", "input_ids", "answer"))
            for row, ids, answer in zip(*columns, strict=True):
                labels = [token if learnt else IGNORE for token, learnt in zip(ids, answer, strict=True)]
                yield Example(None, ids, labels, row)

    def record(self, path: Path, positions: Iterable[int]) -> None:
        """One line for each row that is trained on: file and number, its prompts, how often it comes."""
        rows, counts = np.unique(
            np.fromiter((self.row(position) for position in positions), np.int64), return_counts=True
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        with pq.ParquetWriter(temporary, _RECEIVED) as writer:
            for batch in _batched(zip(rows.tolist(), counts.tolist(), strict=True), _BATCH):
                found = [self._received(row, count) for row, count in batch]
                writer.write_batch(pa.RecordBatch.from_pylist(found, schema=_RECEIVED))
        temporary.replace(path)

    def _received(self, row: int, count: int) -> dict[str, Any]:
        prompts = "\n\n".join(self.rows.turns(row)[::2])
        return {
            "problem_id": self.rows.name(row),
            "rule": None,
            "group": None,
            "prompt": prompts,
            "count": count,
        }


def example(chat: ChatFormat, row: int, turns: Sequence[str]) -> Example:
    """A conversation as token ids: every answer is learnt, and what stands between answers is not."""
    ids = chat.first_turn(turns[0])
    labels = [IGNORE] * len(ids)
    for index, text in enumerate(turns[1:]):
        if index % 2 == 0:
            more = chat.completion(text)
            labels += more
        else:
            more = chat.next_turn(text, ended=True)
            labels += [IGNORE] * len(more)
        ids = ids + more
    return Example(None, ids, labels, row)


def _tokenise(block: pa.Table, prepared: PreparedRows, chat: list[Any]) -> pa.Table:
    form = _chat(chat[0])
    made = [example(form, row, prepared.turns(row)) for row in block["row"].to_pylist()]
    return pa.table(
        {
            "row": block["row"],
            "input_ids": pa.array([e.input_ids for e in made], pa.list_(pa.int32())),
            "answer": pa.array([[label != IGNORE for label in e.labels] for e in made], pa.list_(pa.bool_())),
        }
    )


@lru_cache(maxsize=4)
def _chat(reference: Any) -> ChatFormat:
    import ray

    found: ChatFormat = ray.get(reference)
    return found


def _mapped(
    blocks: Sequence[pa.Table],
    function: Callable[..., pa.Table],
    tasks: int,
    need: Need | None,
    **arguments: Any,
) -> Iterator[pa.Table]:
    """function(block, **arguments) of every block in order: by Ray Data where Ray is up, else here."""
    if not blocks:
        return
    if not _ray_is_up():
        yield from (function(block, **arguments) for block in blocks)
        return
    from rlheals_ray.sft.ordered import ordered

    yield from ordered(blocks, function, tasks, need, **arguments)


def _ray_is_up() -> bool:
    loaded = sys.modules.get("ray")
    return loaded is not None and bool(loaded.is_initialized())
