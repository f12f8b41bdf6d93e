"""The user's own prompts and answers, read row by row from parquet, JSON Lines, JSON arrays or Arrow files.

Light to import. Nothing is held but a few rows, and whatever is wrong is told with file, row and field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray.config import DataSettings, InputError
from rlheals_ray.sft.user_files import Piece, unreadable, wrong_data

CONVERSATIONS = "conversations"
"""The column of LLaVA's format: a list of turns {from: human | gpt, value: text}."""
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_IMAGE = re.compile(r"<(image|video)>")
_BATCH = 1024
"""Rows of parquet or Arrow that are read at a time."""
_CHARACTERS = 1 << 20
"""Of a JSON array, read at a time."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its turns, the user's and the assistant's by turns."""

    file: str
    number: int
    """Counted from 1 in its file; of JSON Lines the line."""
    turns: tuple[str, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.turns[::2]


def read_rows(settings: DataSettings, piece: Piece) -> Iterator[Row]:
    """The rows of a piece; raises InputError naming file, row, field, and what is wrong."""
    for number, record in _records(settings, piece):
        yield Row(piece.file, number, _turns(settings, record, f"row {number} of {piece.file!r}"))


def _records(settings: DataSettings, piece: Piece) -> Iterator[tuple[int, Any]]:
    file = Path(piece.path)
    if piece.form == "lines":
        yield from _of_lines(settings, piece)
    elif piece.form == "json":
        yield from enumerate(_of_array(settings, file), piece.first)
    else:
        number = piece.first
        try:
            for batch in _batches(settings, piece):
                yield from enumerate(batch.to_pylist(), number)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise unreadable(settings, file, error) from None


def _batches(settings: DataSettings, piece: Piece) -> Iterator[pa.RecordBatch]:
    wanted = (CONVERSATIONS, settings.prompt, settings.answer)
    if piece.form == "parquet":
        with pq.ParquetFile(piece.path) as opened:
            columns = [name for name in opened.schema_arrow.names if name in wanted]
            _check_columns(settings, piece, opened.schema_arrow.names)
            yield from opened.iter_batches(_BATCH, row_groups=[piece.start], columns=columns)
        return
    with pa.memory_map(piece.path) as source, pa.ipc.open_stream(source) as opened:
        _check_columns(settings, piece, opened.schema.names)
        for batch in opened:
            found = batch.select([name for name in batch.schema.names if name in wanted])
            for start in range(0, found.num_rows, _BATCH):
                yield found.slice(start, _BATCH)


def _check_columns(settings: DataSettings, piece: Piece, names: list[str]) -> None:
    # Told from the schema: a row of a file without them would be empty.
    _fields(settings, dict.fromkeys(names), f"{piece.file!r}")


def _of_lines(settings: DataSettings, piece: Piece) -> Iterator[tuple[int, Any]]:
    number = piece.first - 1
    with Path(piece.path).open("rb") as opened:
        opened.seek(piece.start)
        while piece.stop is None or opened.tell() < piece.stop:
            line = opened.readline()
            if not line:
                return
            number += 1
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # UnicodeDecodeError too
                raise wrong_data(
                    settings,
                    f"row {number} of {piece.file!r} is no JSON ({error}); write one object on each line",
                ) from None


def _of_array(settings: DataSettings, file: Path) -> Iterator[Any]:
    """The elements of a JSON array one by one: no more of the file is held than one of them and a buffer."""
    with file.open(encoding="utf-8-sig") as opened:
        try:
            yield from _elements(opened)
        except ValueError as error:
            raise wrong_data(settings, f"{file.name!r} is no JSON array ({error}); mend it") from None


def _elements(opened: IO[str]) -> Iterator[Any]:
    decoder, text, at = json.JSONDecoder(), "", 0
    ended, count, begun = False, 0, False
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        try:
            if not begun:
                if at < len(text):
                    begun, at = True, at + 1  # the bracket, by which the file was known as an array
                    continue
                raise IndexError
            if at >= len(text):
                raise IndexError
            if text[at] == "]":
                return
            start = at
            if count:
                if text[at] != ",":
                    raise ValueError(f"after element {count} stands {text[at]!r} instead of a comma")
                start += 1
                while start < len(text) and text[start] in " \t\r\n":
                    start += 1
            element, end = decoder.raw_decode(text, start)
            if end == len(text) and not ended:
                raise IndexError  # a number or a word may go on
        except (IndexError, json.JSONDecodeError) as error:
            if ended:
                raise ValueError(f"it breaks off or is damaged in element {count + 1}: {error}") from None
            more = opened.read(
                max(_CHARACTERS, len(text) - at)
            )  # doubling: a long element is not parsed again often
            ended = not more
            text, at = text[at:] + more, 0
            continue
        yield element
        count, at = count + 1, end


def _turns(settings: DataSettings, record: Any, where: str) -> tuple[str, ...]:
    if not isinstance(record, Mapping):
        raise wrong_data(
            settings, f"{where} is {_kind(record)}, not an object with fields; write one object per row"
        )
    fields = _fields(settings, record, where)
    if fields == (CONVERSATIONS,):
        return _conversation(settings, record[CONVERSATIONS], where)
    return tuple(_text(settings, record[field], f"{where}: field {field!r}") for field in fields)


def _fields(settings: DataSettings, record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The fields of a record that hold its text."""
    if CONVERSATIONS in record:
        return (CONVERSATIONS,)
    for option, field in (("prompt", settings.prompt), ("answer", settings.answer)):
        if field not in record:
            raise InputError(
                f"sft.data.{option} (got {field!r}): {where} has no such field, it has {sorted(record)}; set "
                f"sft.data.{option} to the one that holds the {option}s."
            )
    return settings.prompt, settings.answer


def _conversation(settings: DataSettings, turns: Any, where: str) -> tuple[str, ...]:
    if not isinstance(turns, list) or not turns:
        raise wrong_data(
            settings, f"{where}: field {CONVERSATIONS!r} is {_kind(turns)}; it is a list of turns"
        )
    texts, expected = [], "user"
    for index, turn in enumerate(turns):
        place = f"{where}: {CONVERSATIONS}[{index}]"
        if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
            raise wrong_data(settings, f"{place} is not {{from: ..., value: ...}}; write each turn so")
        if turn["from"] == "system":
            raise wrong_data(
                settings,
                f"{place} is a system turn, which RL and probes would not have; put its text at the beginning of the "
                "human's turn, or leave it out",
            )
        speaker = _SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if speaker != expected:
            raise wrong_data(
                settings,
                f"{place} is from {turn['from']!r}, where one from the {expected} is due; human and gpt take turns, "
                "the human first",
            )
        texts.append(_text(settings, turn["value"], place))
        expected = "assistant" if speaker == "user" else "user"
    if expected == "assistant":
        raise wrong_data(
            settings, f"{where}: the conversation ends with the human; its last turn is to be the answer"
        )
    return tuple(texts)


def _text(settings: DataSettings, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise wrong_data(settings, f"{where} is {_kind(value)}, not text; mend or remove the row")
    if not value.strip():
        raise wrong_data(settings, f"{where} is empty; mend or remove the row")
    if mark := _IMAGE.search(value):
        raise wrong_data(
            settings,
            f"{where} has the mark {mark[0]}; models are trained on text alone: remove it or the row",
        )
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return f"{type(value).__name__} {value!r:.60}"
