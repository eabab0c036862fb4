"""Many audits of a log and history that grow find what one audit finds at the end."""

from __future__ import annotations

import dataclasses
import zlib
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audits import anew, assert_same
from served_log import HOUR_US, Faults, serve
from tallystick.clock import to_us
from tallystick.definitions.feature_repo import Repo
from tallystick.prediction_log.compactor import compact
from tallystick_monitoring.audit.audit_run import Audited, audit
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
DAYS = 6
END = BEGIN + timedelta(days=DAYS)


def faults(seed: int) -> Faults:
    """Of everything a little, and not the same everywhere."""

    def row(view, each):
        what = (seed, view, each.key, each.event_us, each.created_us)
        fate = zlib.crc32(repr(what).encode()) % 100
        if each.key == ("shop-b",) and each.event_us < to_us(BEGIN + timedelta(days=seed % 5)):
            return None
        if fate < 8:
            return None
        if fate < 20:
            return dataclasses.replace(each, write_us=each.write_us + (fate - 7) * 3 * HOUR_US)
        if fate < 23:
            return dataclasses.replace(each, definition="0" * 16, values=dict.fromkeys(each.values))
        return each

    calls = iter(range(10**9))

    def value(feature, each):
        if feature == "shop_stats__load" and each is not None and next(calls) % 50 == 7:
            return each + 0.5
        return 0 if each is None and feature == "item_stats__stock" else each

    return Faults(row=row, value=value, order=seed % 2 == 0)


def same(one: Audited, other: Audited) -> None:
    assert one.findings.num_rows > 100
    assert_same(one, other)


class History:
    """A view's source; the audit may see a part of it."""

    def __init__(self, repo: Repo, view: str) -> None:
        self._path = repo.path / "data" / f"{view}.parquet"
        self.whole = pq.read_table(self._path)

    def show(self, rows) -> None:
        pq.write_table(self.whole.filter(pa.array(rows)), self._path)


@pytest.mark.parametrize("seed", range(6))
def test_in_steps_as_at_once(champion_repo: Repo, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contract = champion_contract(champion_repo, MODEL)
    sources = [History(champion_repo, view) for view in ("shop_stats", "item_stats")]
    # A tenth of the rows comes to be in history days after it was known; or history is whole.
    share = 0.1 if seed % 3 == 0 else 0.0
    missing = [rng.random(source.whole.num_rows) < share for source in sources]
    cuts = np.sort(rng.choice(DAYS * 24 * 60, size=7, replace=False))
    moments = [BEGIN, *(BEGIN + timedelta(minutes=int(cut)) for cut in cuts), END]
    made = faults(seed)
    slices = list(pairwise(moments))
    if seed % 4 >= 2:
        # Predictions of another server are imported days later.
        slices = [slices[index] for index in rng.permutation(len(slices))]
    for start, end in slices:
        for source in sources:
            source.show(np.ones(source.whole.num_rows, dtype=bool))
        serve(champion_repo, contract, start=start, end=end, faults=made)
        for source, absent in zip(sources, missing, strict=True):
            np.logical_and(absent, rng.random(len(absent)) > 0.1, out=absent)
            source.show(~absent)
        if rng.random() < 0.5:
            compact(champion_repo.state_dir)
        if rng.random() < 0.8:
            audit(champion_repo, MODEL, start=BEGIN, end=end if seed % 4 < 2 else END)
    found = audit(champion_repo, MODEL, start=BEGIN, end=END)
    same(found, anew(champion_repo, start=BEGIN, end=END))
    for source in sources:
        source.show(np.ones(source.whole.num_rows, dtype=bool))
    found = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert found.report.read == found.report.reopened
    assert (found.report.reopened > 0) == (share > 0)
    same(found, anew(champion_repo, start=BEGIN, end=END))
    again = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert again.report.read == 0
    same(again, found)
