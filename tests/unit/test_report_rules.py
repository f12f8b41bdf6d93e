"""The report of a study with several OOD rules: one map each, side by side; the rest of the page is of the first."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rlheals_ray.report import build_report
from rlheals_ray.report.sections_rules import of_rule, rules_findings, rules_of_study, rules_section
from rlheals_ray.report.source import read_study
from tests.report_outcomes import with_outcome
from tests.report_tables import nano_like, write_study


def two_rules() -> dict[str, pa.Table]:
    """Everything that is known of rule `ood` said of `faces`, and again of `target`."""
    found = {}
    for name, table in with_outcome(nano_like()).items():
        if "rule" not in table.schema.names:
            found[name] = table
            continue
        place, rules = table.schema.get_field_index("rule"), table["rule"]
        of_ood = pc.fill_null(pc.equal(rules, "ood"), fill_value=name in ("edges", "recommendation"))
        parts = [table.filter(pc.invert(of_ood))]
        for rule in ("faces", "target"):
            mine = table.filter(of_ood)
            parts.append(mine.set_column(place, "rule", pa.array([rule] * mine.num_rows, pa.string())))
        found[name] = pa.concat_tables(parts)
    return found


def test_the_page_is_of_the_first_rule_and_lays_all_of_them_side_by_side(tmp_path: Path) -> None:
    source = read_study(write_study(tmp_path / "two", two_rules()))
    rules = rules_of_study(source)
    assert rules == ["faces", "target"]
    section = rules_section(source, rules)
    assert section.missing == []
    maps = next(figure for figure in section.figures if figure.title.startswith("Healing: OOD"))
    assert {note.text for note in maps.plot.layout.annotations} >= {"<b>faces</b>", "<b>target</b>"}
    assert "of faces" in section.lead[0]
    (finding,) = rules_findings(source, rules)
    assert finding.text.startswith("Under target: Stop SFT at step 4")
    html = build_report(tmp_path / "two").read_text(encoding="utf-8")
    assert "Does it depend on the OOD rule?" in html


def test_under_its_name_a_rule_has_the_tables_of_a_study_with_that_rule_alone(tmp_path: Path) -> None:
    alone = read_study(write_study(tmp_path / "one", with_outcome(nano_like()))).tables
    seen = of_rule(read_study(write_study(tmp_path / "two", two_rules())), "target").tables
    for name in ("scores", "boundary", "controls"):
        assert sorted(map(str, seen[name].to_pylist())) == sorted(map(str, alone[name].to_pylist())), name


def test_a_study_with_one_rule_has_no_such_section(tmp_path: Path) -> None:
    html = build_report(write_study(tmp_path / "one", with_outcome(nano_like()))).read_text(encoding="utf-8")
    assert "Does it depend on the OOD rule?" not in html
