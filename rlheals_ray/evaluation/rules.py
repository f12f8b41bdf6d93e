"""A study with several OOD rules, seen one rule at a time.

Whatever is worked out for one OOD rule is worked out for each of them by the same code: `under` gives the tables that
a study with that rule alone would have, in which it is called `ood`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

OOD = "ood"
"""What the only OOD rule of a study is called, and each of several while it is looked at."""


def ood_rules_of(tables: Iterable[pa.Table]) -> list[str]:
    """The OOD rules that have rows in any of the tables, sorted; [`ood`] where none has."""
    found: set[str] = set()
    for table in tables:
        if "rule" in table.schema.names:
            found.update(rule for rule in pc.unique(table["rule"]).to_pylist() if rule not in (None, "id"))
    return sorted(found) or [OOD]


def under(table: pa.Table, rule: str) -> pa.Table:
    """The rows of `rule`, renamed `ood`, and those of no other OOD rule; the table itself where it has no rules.

    Rows whose rule is `id` or null stay.
    """
    if rule == OOD or "rule" not in table.schema.names:
        return table
    rules = table["rule"]
    kept = table.filter(pc.or_(pc.is_null(rules), pc.is_in(rules, pa.array(["id", rule]))))
    renamed = pc.if_else(pc.equal(kept["rule"], rule), OOD, kept["rule"])
    return kept.set_column(table.schema.get_field_index("rule"), table.schema.field("rule"), renamed)


def back(row: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """A row that was made under `rule`, with the rule's own name again."""
    return {**row, "rule": rule if row["rule"] == OOD else row["rule"]}
