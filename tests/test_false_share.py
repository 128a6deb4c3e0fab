"""What groups can tell of false negatives: nothing, where a filter has removed the negatives of a query's group."""

from __future__ import annotations

from pathlib import Path

import hardneg
from hardneg.diagnostics.labels import number_rows


def grouped() -> hardneg.Pairs:
    return hardneg.Pairs.from_columns(
        [f"question {i} about {i % 4}" for i in range(40)], [f"answer {i} about {i % 4}" for i in range(40)],
        groups=[f"g{i % 4}" for i in range(40)],
    )  # fmt: skip


def test_a_filter_by_group_leaves_nothing_to_measure_by_groups(tmp_path: Path) -> None:
    plain = hardneg.diagnose(hardneg.mine(grouped(), tmp_path / "plain", hardneg.MineOptions(depth=30)))
    assert plain.measured.numbers["false_source"] == "groups"
    assert plain.measured.numbers["false_share"].value > 0
    filtered = hardneg.mine(grouped(), tmp_path / "filtered", hardneg.MineOptions(depth=30, filters=("group",)))
    found = hardneg.diagnose(filtered)
    assert "false_share" not in found.measured.numbers
    assert found.measured.numbers["false_source"] == "range"
    finding = next(each for each in found.findings if each.code == "false-negatives-unknown")
    assert "the filter 'group' removed" in finding.text
    assert not [label for label, *_ in number_rows(found.to_json()["numbers"]) if "false negatives" in label]
