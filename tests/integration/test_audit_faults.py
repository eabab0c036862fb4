"""Each fault of the audit's bench, done at small size: it leaves wrong values, and is named."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pytest
from benchmarks.audit.cases import DAMAGE, LATE, Bench
from benchmarks.audit.plans import INJECTED
from benchmarks.audit.replay import simulated
from benchmarks.audit.scene import Sizes, make_scene
from benchmarks.audit.truth import differing

from tallystick.definitions.contract import REQUEST_TIME
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.model_features import stored_values

SIZES = Sizes(requests=2_000, hours=36, batch_rows=32)
RATE = 0.1


@pytest.fixture(scope="module")
def bench(tmp_path_factory, redis_process):
    folder = tmp_path_factory.mktemp("audit")
    with simulated(folder) as clock:
        scene = make_scene(folder / "scene", SIZES, address=redis_process.connection_string)
        yield Bench(scene, folder, clock=clock)


def named_rightly(case):
    """Whether there are wrong values, and the audit says just these, each with its cause."""
    score = case.score
    assert case.astray == []
    assert score.injected == score.found == score.right
    assert score.injected.total() > 0
    return True


def test_a_clean_log_has_no_finding(bench):
    case = bench.without_fault()
    assert case.score.found.total() == 0
    assert bench.clean.played.table.num_rows == 36 * 2 * 32


@pytest.mark.parametrize("cause", INJECTED)
def test_what_is_injected_is_named(bench, cause):
    case = bench.single(cause, RATE)
    assert named_rightly(case)
    assert case.causes == (cause,)
    assert RATE / 2 < case.wrong_share < 2 * RATE


def test_causes_at_the_same_keys_are_distinguished(bench):
    case = bench.stacked(RATE)
    assert named_rightly(case)
    assert case.causes == ("definition_changed", "materialization_lag", "type_or_precision")


@pytest.mark.parametrize("kind", ["segment", "file"])
def test_damage_to_the_log_is_counted_and_hurts_nothing_else(bench, kind):
    case = bench.damaged(kind, RATE)
    assert named_rightly(case)
    assert set(case.score.found) == {DAMAGE}


def test_late_values_are_those_that_differ_under_the_event_clock(bench):
    clean = bench.clean
    repo, log, contract = clean.played.repo, clean.played.table, clean.scene.contract
    spine = pa.table(
        {
            REQUEST_TIME: log["request_time"],
            **{key.name: log[f"entity.{key.name}"] for key in contract.entity_keys},
        }
    )
    folded = stored_values(repo, contract.views, spine, clock=VisibilityClock.EVENT)
    ids = log["prediction_id"].to_pylist()
    otherwise = {
        (ids[row], name): LATE
        for name in contract.stored_columns
        for row in differing(folded[name], log[f"feature.{name}"])
    }
    assert bench.late_values() == otherwise
    assert len(otherwise) > 500


def test_what_was_late_is_named_under_the_event_clock(bench):
    assert named_rightly(bench.by_event_time())


def test_the_scene_has_late_rows_and_corrections(bench):
    served = bench.clean.served("pairing")
    hour_us = timedelta(hours=1) // timedelta(microseconds=1)
    assert (served.created_us > served.original_us).sum() > 100
    assert ((served.created_us - served.event_us) > 4 * hour_us).sum() > 100
    assert served.outside.any()
