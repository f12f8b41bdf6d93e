"""What is left of a study that was disturbed, against one that was not: equal tables, nothing double, no remnants."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlheals_ray.tables import SCHEMAS


def markers(root: Path) -> list[Path]:
    """Of the finished units."""
    return sorted((root / "markers").rglob("*.json"))


def assert_same_study(disturbed: Path, whole: Path) -> None:
    """Every table is complete and equal, apart from timings and names of runs."""
    for name in SCHEMAS:
        got, expected = (pq.read_table(root / "tables" / f"{name}.parquet") for root in (disturbed, whole))
        _assert_same_rows(name, _comparable(got), _comparable(expected))
    assert not list(disturbed.rglob(".*.tmp-*")), "something half-written was left behind"


def _comparable(table: pa.Table) -> list[dict[str, object]]:
    """Rows without what no rerun can repeat: seconds, and the name of the run that made them."""
    dropped = {name for name in table.schema.names if name.startswith("seconds")}
    dropped |= {"train_run", "tokens_per_second", "idle_share"}
    rows: list[dict[str, object]] = table.drop_columns(sorted(dropped & set(table.schema.names))).to_pylist()
    return rows


def _assert_same_rows(name: str, resumed: list[dict[str, object]], whole: list[dict[str, object]]) -> None:
    assert len(resumed) == len(whole), f"{name}: rows are missing or double"
    for got, expected in zip(resumed, whole, strict=True):
        for column, value in expected.items():
            if isinstance(value, float):
                assert got[column] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, column, expected)
            else:
                assert got[column] == value, (name, column, expected)
