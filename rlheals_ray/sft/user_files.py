"""The files of the user's own data: found, and divided into pieces that are read side by side."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlheals_ray.config import DataSettings, InputError

_FORMATS = {
    ".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".arrow": "arrow",
}  # fmt: skip
_BLOCK = 16 << 20
"""Bytes of JSON Lines in one piece."""


@dataclass(frozen=True)
class Piece:
    """A part of a file that one task reads: a row group of parquet, whole lines of JSON, else the whole file."""

    path: str
    form: str
    first: int
    """The number of its first row, counted from 1."""
    start: int = 0
    stop: int | None = None
    """The row group, or the bytes of the lines."""

    @property
    def file(self) -> str:
        return Path(self.path).name


def find_files(settings: DataSettings) -> list[Path]:
    """The files with the data, sorted; raises InputError where there are none, or some that do not belong together."""
    if "://" in settings.path:
        raise wrong_data(
            settings, "only local or shared directories are read so far; mount the bucket, or copy the data"
        )
    where = Path(settings.path).expanduser()
    if where.is_file():
        if where.suffix not in _FORMATS:
            raise wrong_data(
                settings, "the format is told by the ending: .parquet, .jsonl, .json or .arrow; rename it"
            )
        return [where]
    if not where.is_dir():
        raise wrong_data(
            settings,
            "there is no such file or directory; check the path, which is seen from where the job runs",
        )
    if (where / "dataset_dict.json").is_file():
        return _saved_dataset(settings, where / _train_split(settings, where))
    if (where / "state.json").is_file():
        return _saved_dataset(settings, where)
    found = sorted(
        file
        for file in where.rglob("*")
        if _FORMATS.get(file.suffix) in ("parquet", "lines", "json")
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(where).parts)
    )
    if parquet := [file for file in found if file.suffix == ".parquet"]:
        # What describes a data set of parquet files often lies beside them as JSON.
        found = parquet
    elif len({_FORMATS[file.suffix] for file in found}) > 1:
        raise wrong_data(settings, "the directory has .json and .jsonl files; name the file that is meant")
    if not found:
        raise wrong_data(
            settings, "the directory has no .parquet, .jsonl or .json file; name the one that has"
        )
    splits = {
        match[1] for file in found if (match := re.match(r"(train|test|val|validation|dev)\b", file.stem))
    }
    if len(splits) > 1:
        raise wrong_data(
            settings, f"the directory has files of the splits {sorted(splits)}; name the one to train on"
        )
    return found


def _train_split(settings: DataSettings, where: Path) -> str:
    try:
        splits = json.loads((where / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (ValueError, KeyError, TypeError, OSError):
        raise wrong_data(settings, "its dataset_dict.json cannot be read; save the data set again") from None
    if "train" not in splits:
        raise wrong_data(
            settings, f"the data set has the splits {splits}, none is `train`; name one: PATH/{splits[0]}"
        )
    return "train"


def _saved_dataset(settings: DataSettings, where: Path) -> list[Path]:
    """The Arrow files of a directory that `datasets.Dataset.save_to_disk` wrote."""
    try:
        state = json.loads((where / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, OSError):
        raise wrong_data(
            settings, f"{where.name}/state.json cannot be read; save the data set again"
        ) from None
    absent = [name for name in names if Path(name).name != name or not (where / name).is_file()]
    if absent or not names:
        raise wrong_data(settings, f"the data set's files {absent} are not there; save it again")
    return [where / name for name in names]


def content(settings: DataSettings) -> str:
    """A hash of which files there are, their sizes and times, and the fields: whether data are still the same."""
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in find_files(settings)]
    text = json.dumps(
        [1, str(Path(settings.path).expanduser().resolve()), stats, settings.prompt, settings.answer]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pieces(settings: DataSettings) -> Iterator[Piece]:
    """Every piece of the data, in the order of its rows; raises InputError for a file that cannot be read."""
    for file in find_files(settings):
        form = _FORMATS[file.suffix]
        if form == "json" and not _is_array(file):
            form = "lines"
        if form == "parquet":
            yield from _row_groups(settings, file)
        elif form == "lines":
            yield from _blocks_of_lines(file)
        else:
            yield Piece(str(file), form, 1)


def _is_array(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(4096).lstrip("\ufeff \t\r\n").startswith("[")


def _row_groups(settings: DataSettings, file: Path) -> Iterator[Piece]:
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(settings, file, error) from None
    first = 1
    for group in range(metadata.num_row_groups):
        yield Piece(str(file), "parquet", first, group)
        first += metadata.row_group(group).num_rows


def _blocks_of_lines(file: Path) -> Iterator[Piece]:
    first, start = 1, 0
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            block += opened.readline()  # to the end of the line
            yield Piece(str(file), "lines", first, start, start + len(block))
            first, start = first + block.count(b"\n"), start + len(block)


def unreadable(settings: DataSettings, file: Path, error: Exception) -> InputError:
    """A file that is damaged."""
    cause = " ".join(str(error).split())
    return wrong_data(settings, f"{file.name!r} cannot be read ({cause}); write it again")


def wrong_data(settings: DataSettings, what: str) -> InputError:
    """Something of the data is wrong; `what` says where, what, and the remedy."""
    return InputError(f"sft.data.path (got {settings.path!r}): {what}.")
