"""The user's own data: every format gives the same rows, and what is wrong is told with row, field and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlheals_ray.config import DataSettings, InputError
from rlheals_ray.sft import user_files, user_rows
from rlheals_ray.sft.user_files import content, find_files, pieces
from rlheals_ray.sft.user_rows import Row, read_rows

RECORDS = [{"prompt": f"What is {i} + {i}?\n", "answer": f"{2 * i}, naïve — ✓"} for i in range(3000)]


def rows(settings: DataSettings) -> list[Row]:
    return [row for piece in pieces(settings) for row in read_rows(settings, piece)]


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def llava(record: dict[str, str]) -> dict[str, Any]:
    turns = (("human", record["prompt"]), ("gpt", record["answer"]))
    return {"id": 7, "conversations": [{"from": who, "value": text} for who, text in turns]}


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(RECORDS), path / "data.parquet", row_group_size=700)
    return path / "data.parquet"


def directory_of_parquet(path: Path) -> Path:
    (path / "data").mkdir()
    for part, start in enumerate(range(0, 3000, 1000)):
        table = pa.Table.from_pylist(RECORDS[start : start + 1000])
        pq.write_table(table, path / "data" / f"train-{part:05d}-of-00003.parquet")
    (path / "info.json").write_text("{}")  # as it lies beside published data sets
    return path


def json_lines(path: Path) -> Path:
    (path / "data.jsonl").write_text("\ufeff" + lines(RECORDS), encoding="utf-8")
    return path / "data.jsonl"


def json_array(path: Path) -> Path:
    (path / "data.json").write_text(json.dumps(RECORDS, indent=2))
    return path / "data.json"


def json_with_an_object_on_each_line(path: Path) -> Path:
    (path / "data.json").write_text(lines(RECORDS), encoding="utf-8")
    return path / "data.json"


def saved_dataset(path: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).save_to_disk(path / "saved", num_shards=2)
    return path / "saved"


def saved_splits(path: Path) -> Path:
    train = datasets.Dataset.from_list(RECORDS)
    splits = {"test": datasets.Dataset.from_list(RECORDS[:5]), "train": train}
    datasets.DatasetDict(splits).save_to_disk(path / "saved")
    return path / "saved"


def llava_json(path: Path) -> Path:
    (path / "data.json").write_text(json.dumps([llava(record) for record in RECORDS]))
    return path / "data.json"


def llava_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([llava(record) for record in RECORDS]), path / "data.parquet")
    return path / "data.parquet"


@pytest.mark.parametrize(
    "write",
    [
        parquet,
        directory_of_parquet,
        json_lines,
        json_array,
        json_with_an_object_on_each_line,
        saved_dataset,
        saved_splits,
        llava_json,
        llava_parquet,
    ],
)
def test_every_format_gives_the_same_rows_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path]
) -> None:
    # Small, so that there are several pieces, and elements that cross the reader's buffer.
    monkeypatch.setattr(user_files, "_BLOCK", 5000)
    monkeypatch.setattr(user_rows, "_CHARACTERS", 1000)
    found = rows(DataSettings(path=str(write(tmp_path))))
    assert [row.turns for row in found] == [(record["prompt"], record["answer"]) for record in RECORDS]


def test_the_fields_may_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(lines([{"question": "1+1", "solution": "2", "prompt": None}]))
    settings = DataSettings(path=str(tmp_path / "d.jsonl"), prompt="question", answer="solution")
    assert [row.turns for row in rows(settings)] == [("1+1", "2")]


def test_a_conversation_keeps_all_its_turns(tmp_path: Path) -> None:
    turns = ["first", "one", "second", "two"]
    record = {
        "conversations": [
            {"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, turns, strict=True)
        ]
    }
    (tmp_path / "d.json").write_text(json.dumps([record]))
    (row,) = rows(DataSettings(path=str(tmp_path / "d.json")))
    assert row.turns == tuple(turns) and row.prompts == ("first", "second")


def test_rows_are_numbered_as_an_editor_numbers_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_files, "_BLOCK", 50)
    (tmp_path / "d.jsonl").write_text(lines(RECORDS[:9]) + "\n\n" + lines(RECORDS[9:12]))
    found = rows(DataSettings(path=str(tmp_path / "d.jsonl")))
    assert [row.number for row in found] == [*range(1, 10), 12, 13, 14]


GOOD = {"prompt": "p", "answer": "a"}
TURN = {"from": "human", "value": "p"}
REPLY = {"from": "gpt", "value": "a"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": "p"}, "sft.data.answer (got 'answer'): row 3 of 'd.jsonl' has no such field"),
        ({"prompt": None, "answer": "a"}, "row 3 of 'd.jsonl': field 'prompt' is null, not text"),
        ({"prompt": "p", "answer": " \n"}, "row 3 of 'd.jsonl': field 'answer' is empty"),
        ({"prompt": "p", "answer": 4}, "row 3 of 'd.jsonl': field 'answer' is int 4, not text"),
        (["p", "a"], "row 3 of 'd.jsonl' is list"),
        ({"conversations": []}, "row 3 of 'd.jsonl': field 'conversations' is list []"),
        ({"conversations": [{"from": "system", "value": "s"}, TURN, REPLY]}, "conversations[0] is a system turn"),
        ({"conversations": [TURN, TURN]}, "conversations[1] is from 'human'"),
        ({"conversations": [TURN]}, "ends with the human"),
        ({"conversations": [TURN, {"value": "a"}]}, "conversations[1] is not {from: ..., value: ...}"),
        ({"conversations": [{"from": "human", "value": "<image>\nHow?"}, REPLY]}, "the mark <image>"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_told_with_its_number_and_field(tmp_path: Path, wrong: Any, says: str) -> None:
    (tmp_path / "d.jsonl").write_text(lines([GOOD, GOOD, wrong]))
    with pytest.raises(InputError) as caught:
        rows(DataSettings(path=str(tmp_path / "d.jsonl")))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.jsonl", lines([GOOD]) + "{broken\n", "row 2 of 'd.jsonl' is no JSON"),
        ("d.json", "[" + json.dumps(GOOD) + ', {"prompt"', "breaks off or is damaged in element 2"),
        ("d.json", "[" + json.dumps(GOOD) + json.dumps(GOOD) + "]", "instead of a comma"),
        ("d.parquet", "PAR1 and no more", "'d.parquet' cannot be read"),
        ("d.csv", "prompt,answer", "the format is told by the ending"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"sft\.data\.path") as caught:
        rows(DataSettings(path=str(tmp_path / name)))
    assert says in str(caught.value)


def test_a_column_that_is_absent_is_told_from_the_schema(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"sft\.data\.prompt .* it has \['answer', 'question'\]"):
        rows(DataSettings(path=str(tmp_path / "d.parquet")))


def test_a_directory_must_say_which_split_is_meant(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(RECORDS[:2]), tmp_path / f"{split}-00000.parquet")
    with pytest.raises(InputError, match=r"splits \['test', 'train'\]"):
        find_files(DataSettings(path=str(tmp_path)))
    saved = tmp_path / "saved"
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS[:5])}).save_to_disk(saved)
    with pytest.raises(InputError, match="none is `train`"):
        find_files(DataSettings(path=str(saved)))


@pytest.mark.parametrize("path", ["nowhere", "s3://bucket/data"])
def test_a_path_without_data_is_told(path: str) -> None:
    with pytest.raises(InputError, match=r"sft\.data\.path"):
        find_files(DataSettings(path=path))


def test_changed_data_have_another_content(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(lines(RECORDS[:2]))
    settings = DataSettings(path=str(file))
    before = content(settings)
    assert content(settings) == before
    assert content(settings.model_copy(update={"answer": "other"})) != before
    file.write_text(lines(RECORDS[:3]))
    assert content(settings) != before
