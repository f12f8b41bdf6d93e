"""The user's rows as examples: tokenised as transformers' chat templates say, in an order that is the seed's alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlheals_ray.config import InputError, Study, load_study
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft import user_data, user_files
from rlheals_ray.sft.data import IGNORE, open_examples
from rlheals_ray.sft.user_data import UserExamples, prepare, prepared_directory
from rlheals_ray.storage import StudyFiles
from rlheals_ray.tasks import get_task
from tests.toy_model import write_toy_model
from tests.toy_task import COLOURS, KEYS, NOISE

CONVERSATIONS = [
    [f"rule id for {key} {word} say", colour, "wrong", COLOURS[0]][: 2 + 2 * (index % 2)]
    for index, (key, word, colour) in enumerate(
        (key, word, colour) for word in NOISE for key in KEYS for colour in COLOURS
    )
]


@pytest.fixture(scope="module")
def toy_chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    return ChatFormat.of(write_toy_model(tmp_path_factory.mktemp("toy") / "model"))


def write(path: Path, conversations: Sequence[Sequence[str]]) -> None:
    speakers = ["human", "gpt"] * 2
    rows = [
        {"conversations": [{"from": f, "value": v} for f, v in zip(speakers, turns, strict=False)]}
        for turns in conversations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def study_of(tmp_path: Path, *overrides: str) -> tuple[Study, StudyFiles]:
    study = load_study(
        "tiny", [f"sft.data.path={tmp_path}/d.jsonl", f"storage={tmp_path}/runs", "task.name=toy", *overrides]
    )
    return study, StudyFiles.at(study.storage, study.name)


@pytest.fixture
def examples(tmp_path: Path, toy_chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> UserExamples:
    monkeypatch.setattr(user_files, "_BLOCK", 3000)
    monkeypatch.setattr(user_data, "_BATCH", 10)
    write(tmp_path / "d.jsonl", CONVERSATIONS)
    study, files = study_of(tmp_path)
    prepare(study, files)
    task = get_task("tests.toy_task:ToyTask")
    found = open_examples(study, files, task, toy_chat, seed=3)
    assert isinstance(found, UserExamples) and len(found.rows.names) > 3
    return found


def test_an_epoch_is_every_row_once_in_another_order_each_time(examples: UserExamples) -> None:
    count = examples.count
    assert count == len(CONVERSATIONS)
    epochs = [[e.row for e in examples.stream(range(n * count, (n + 1) * count))] for n in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert epochs[0] != epochs[1]
    other = replace(examples, seed=4)
    assert [e.row for e in other.stream(range(count))] != epochs[0]


def test_the_stream_can_begin_anywhere(examples: UserExamples) -> None:
    whole = list(examples.stream(range(1000)))
    assert list(examples.stream(range(391, 1000))) == whole[391:]
    assert list(examples.stream(range(5, 1000, 7))) == whole[5::7]
    assert list(examples.stream([])) == []


def test_the_ids_are_those_of_the_chat_template_and_all_answers_are_learnt(
    examples: UserExamples, toy_chat: ChatFormat
) -> None:
    """Against transformers' apply_chat_template on the whole conversation."""
    tokenizer = toy_chat.tokenizer
    for example in islice(examples.stream(range(200)), 200):
        assert example.row is not None and example.problem is None
        turns = CONVERSATIONS[example.row]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert example.input_ids == expected
        learnt = [token for token in example.labels if token != IGNORE]
        assert tokenizer.decode(learnt) == " ".join(f"{answer} <end>" for answer in turns[1::2])
        assert all(label in (IGNORE, token) for label, token in zip(example.labels, expected, strict=True))


def test_what_was_received_is_recorded_with_file_row_and_prompts(
    examples: UserExamples, tmp_path: Path
) -> None:
    positions = range(100, 100 + 2 * examples.count)
    examples.record(tmp_path / "received" / "trunk.parquet", positions)
    rows = pq.read_table(tmp_path / "received" / "trunk.parquet").to_pylist()
    counts = Counter(example.row for example in examples.stream(positions))
    assert sum(row["count"] for row in rows) == len(positions)
    for row in rows:
        file, _, number = row["problem_id"].rpartition(":")
        index = int(number) - 1
        assert file == "d.jsonl" and row["rule"] is None
        assert row["prompt"] == "\n\n".join(CONVERSATIONS[index][::2]) and row["count"] == counts[index]


def test_preparing_again_is_free_until_the_data_change(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", CONVERSATIONS[:20])
    study, files = study_of(tmp_path)
    prepare(study, files)
    directory = prepared_directory(study, files)
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    prepare(study, files)
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before
    write(tmp_path / "d.jsonl", CONVERSATIONS[:30])
    assert prepared_directory(study, files) != directory


def test_data_that_became_wrong_leave_nothing_prepared(tmp_path: Path) -> None:
    study, files = study_of(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "answer": null}\n')
    with pytest.raises(InputError, match=r"row 1 of 'd.jsonl': field 'answer' is null"):
        prepare(study, files)
    assert not any((files.root / "data").iterdir())
