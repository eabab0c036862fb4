"""How the audit's bench counts: what is wrong, what was found, and what the report makes of it."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from benchmarks.audit.audit_report import markdown, report
from benchmarks.audit.cases import Case
from benchmarks.audit.truth import Score, differing, scored


def findings(*rows):
    return pa.table(list(zip(*rows, strict=True)), names=["prediction_id", "feature", "cause"])


def test_columns_differ_in_null_and_in_bits():
    one = pa.chunked_array([[1.0, None, 0.0, float("nan"), 2.0, None]], pa.float64())
    other = pa.chunked_array([[1.0, None, -0.0, float("nan"), None, 3.0]], pa.float64())
    assert differing(one, other).tolist() == [2, 4, 5]
    texts = pa.chunked_array([["a", None, "b"]])
    assert differing(texts, pa.chunked_array([["a", "", "c"]])).tolist() == [1, 2]


def test_a_finding_is_right_only_with_the_cause_that_was_injected():
    truth = {
        ("1", "v__a"): "materialization_lag",
        ("2", "v__a"): "materialization_lag",
        ("3", "v__a"): "transform",
        ("4", "v__a"): "transform",
    }
    score = scored(
        truth,
        findings(
            ("1", "v__a", "materialization_lag"),
            ("2", "v__a", "unexplained"),
            ("3", "v__a", "materialization_lag"),
            ("5", "v__a", "materialization_lag"),
        ),
    )
    assert score.precision("materialization_lag") == pytest.approx(1 / 3)
    assert score.recall("materialization_lag") == 1 / 2
    assert score.precision("transform") is None
    assert score.recall("transform") == 0
    assert score.recall("entity_missing") is None
    assert score.unexplained_share == 1 / 4
    twice = score + score
    assert twice.injected == Counter(materialization_lag=4, transform=4)
    assert (twice.right.total(), twice.unexplained) == (2, 2)


def test_the_report_has_the_goal_s_contamination_on_top_and_says_what_was_missed():
    def case(name, rate, right):
        cause = "transform"
        counts = (Counter({cause: 10}), Counter({cause: 10}), Counter({cause: right}))
        return Case(name, rate, (cause,), rate, Score(*counts))

    clean = Case("clean", 0.0, (), 0.0, scored({}, findings(("1", "v__a", "transform"))))
    timed = {
        "values": 4_000_000,
        "mismatches": 7,
        "values_per_s": 2_000_000,
        "peak_mb": 900,
        "seconds": {"audit": 2.0, "count": 0.5},
        "ratio": 4.0,
    }
    cases = [clean, case("single", 0.001, 9), case("disjoint", 0.001, 10), case("single", 0.1, 10)]
    content = report(cases, {"contaminated": timed}, {})
    assert content["precision"]["transform"] == content["recall"]["transform"] == 0.95
    assert content["by_contamination"]["0.1"]["recall"]["transform"] == 1
    assert content["false_findings_on_clean"] == 1
    assert content["counts_only_baseline_seconds"] == 0.5
    assert [goal["met"] for goal in content["goals"]] == [False, False, False, True, True, False]
    printed = markdown(content)
    assert "| transform | 0.95 / 0.95 | 1 / 1 | 20 |" in printed
    assert printed.count("**missed**") == 4
