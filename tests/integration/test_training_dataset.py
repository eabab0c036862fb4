from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tallystick.errors import DataError, InputError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.record_store import AffectedKeys, Incident
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import build_dataset, content_hash
from tiny_repo import END, MATURES_AFTER, MODEL, START

DAY = timedelta(days=1)
TTL = 2 * DAY
CUTOFF = START + 30 * DAY


def build(repo, model=None, **changes):
    window = {"start": START, "end": END, "known_until": END + 30 * DAY, **changes}
    return build_dataset(repo, model or repo.model(MODEL), RowSelection(**window))


def rows_of(repo, name):
    return pq.read_table(repo.path / "data" / f"{name}.parquet").to_pylist()


def with_label(model, **changes):
    return model.model_copy(update={"label": model.label.model_copy(update=changes)})


def grouped(rows, *keys):
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def value_at(rows, moment, *, ttl=None, clock="knowledge"):
    """The rule, read aloud: the largest of what was visible, unless it is too old."""
    visible = [
        row
        for row in rows
        if row["event_time"] <= moment and (clock == "event" or row["created_time"] <= moment)
    ]
    best = max(visible, key=lambda row: (row["event_time"], row["created_time"]), default=None)
    if best is None or (ttl is not None and best["event_time"] < moment - ttl):
        return {}
    return best


def label_known(rows, moment):
    known = [row for row in rows if row["created_time"] <= moment]
    return max(known, key=lambda row: row["created_time"], default={}).get("returned")


def oracle(repo, *, known_until, matures_after=MATURES_AFTER, clock="knowledge"):
    """The whole training set, one request after the other."""
    shops = grouped(rows_of(repo, "shop_stats"), "shop")
    items = grouped(rows_of(repo, "item_stats"), "shop", "item")
    labels = grouped(rows_of(repo, "labels"), "shop", "item", "quantity", "event_time")
    result = []
    for request in sorted(rows_of(repo, "requests"), key=lambda row: row["event_time"]):
        shop, item, quantity, at = (
            request[name] for name in ("shop", "item", "quantity", "event_time")
        )
        label = label_known(labels.get((shop, item, quantity, at), []), known_until)
        if label is None or at >= known_until - matures_after:
            continue
        of_shop = value_at(shops[shop,], at, clock=clock)
        of_item = value_at(items[shop, item], at, ttl=TTL, clock=clock)
        price = of_item.get("price")
        result.append(
            {
                "shop": shop,
                "item": item,
                "quantity": quantity,
                "request_time": at,
                "shop_stats__load": of_shop.get("load"),
                "shop_stats__orders": of_shop.get("orders"),
                "item_stats__price": price,
                "item_stats__stock": of_item.get("stock"),
                "order_value__total": None if price is None else price * quantity,
                "label": label,
            }
        )
    return result


def test_every_row_is_what_the_rule_says(tiny_repo):
    built = build(tiny_repo)
    expected = oracle(tiny_repo, known_until=END + 30 * DAY)
    assert built.table.to_pylist() == expected
    assert any(row["item_stats__price"] is None for row in expected)
    assert built.table.schema.field("item_stats__price").type == pa.float32()
    assert built.times.num_rows == built.table.num_rows


def test_the_event_clock_sees_what_was_not_known_yet(tiny_repo):
    by_event = build(tiny_repo, clock=VisibilityClock.EVENT).table.to_pylist()
    assert by_event == oracle(tiny_repo, known_until=END + 30 * DAY, clock="event")
    assert by_event != build(tiny_repo).table.to_pylist()


def test_a_label_without_created_time_is_refused_and_a_missing_label_needs_none(tiny_repo):
    path = tiny_repo.path / "data" / "labels.parquet"
    rows = pq.read_table(path)
    schema = rows.schema
    rows = rows.to_pylist()
    without = build(tiny_repo).counts.unlabelled
    rows[3] |= {"returned": None, "created_time": None}
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    assert build(tiny_repo).counts.unlabelled == without + 1
    rows[3] |= {"returned": 1}
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    text = "must say when they became known.*\n.*column created_time: .*, got 1 nulls"
    with pytest.raises(DataError, match=text):
        build(tiny_repo)


def test_no_label_that_became_known_later_gets_in(tiny_repo):
    # Without a time to mature, corrections lie on both sides of the cutoff.
    model = with_label(tiny_repo.model(MODEL), matures_after=timedelta(0))
    then = build(tiny_repo, model, known_until=CUTOFF).table.to_pylist()
    assert then == oracle(tiny_repo, known_until=CUTOFF, matures_after=timedelta(0))
    later = {row["request_time"]: row["label"] for row in build(tiny_repo).table.to_pylist()}
    assert any(later[row["request_time"]] != row["label"] for row in then)


def test_rows_without_a_mature_label_are_counted(tiny_repo):
    counts = build(tiny_repo, end=CUTOFF, known_until=CUTOFF).counts
    times = [row["event_time"] for row in rows_of(tiny_repo, "requests")]
    population = sum(START <= at < CUTOFF for at in times)
    mature = sum(START <= at < CUTOFF - MATURES_AFTER for at in times)
    rows = len(oracle(tiny_repo, known_until=CUTOFF))
    assert (counts.population, counts.immature) == (population, population - mature)
    assert (counts.unlabelled, counts.rows) == (mature - rows, rows)
    assert counts.unlabelled > 0


def spell(
    *,
    start=START,
    end=END,
    view="item_stats",
    model=MODEL,
    is_open=False,
    cause="materialization_lag",
    keys=None,
):
    return Incident(
        incident_id="x",
        model=model,
        view=view,
        cause=cause,
        start=start,
        end=end,
        found_at=end,
        requests=1,
        values=1,
        is_open=is_open,
        evidence="",
        keys=keys,
    )


def test_quarantined_rows_are_left_out_and_counted(tiny_repo):
    whole = build(tiny_repo).table
    first, last = (whole["request_time"][row].as_py() for row in (500, 599))
    incidents = [
        spell(start=first, end=last),
        spell(start=START, end=END, view="another_view"),
        spell(start=START, end=END, model="another_model"),
    ]
    built = build(tiny_repo, incidents=incidents)
    assert built.table.equals(pa.concat_tables([whole[:500], whole[600:]]).combine_chunks())
    requested = [row["event_time"] for row in rows_of(tiny_repo, "requests")]
    assert built.counts.quarantined == sum(first <= at <= last for at in requested)


def test_an_open_incident_has_no_end(tiny_repo):
    whole = build(tiny_repo).table
    start = whole["request_time"][500].as_py()
    built = build(tiny_repo, incidents=[spell(start=start, end=start, is_open=True)])
    assert built.table.num_rows == 500


# The parts of a key in another order than the view's: (item, shop), of shop-b to shop-e.
SOME = AffectedKeys(
    names=("item", "shop"),
    values=((11, "shop-b"), (13, "shop-a"), (99, "shop-a")),
    first=(11, "shop-b"),
    last=(99, "shop-a"),
)
MANY = AffectedKeys(names=("shop", "item"), first=("shop-b", 14), last=("shop-d", 12))


@pytest.mark.parametrize(
    ("keys", "is_affected"),
    [
        (SOME, lambda row: (row["item"], row["shop"]) in SOME.values),
        (MANY, lambda row: ("shop-b", 14) <= (row["shop"], row["item"]) <= ("shop-d", 12)),
        (SOME.model_copy(update={"names": ("article", "shop")}), lambda _: True),
    ],
)
def test_only_the_keys_of_an_incident_are_left_out(tiny_repo, keys, is_affected):
    def is_touched(row, time):
        return START + 10 * DAY <= row[time] <= START + 40 * DAY and is_affected(row)

    incident = spell(start=START + 10 * DAY, end=START + 40 * DAY, keys=keys)
    built = build(tiny_repo, incidents=[incident])
    whole = build(tiny_repo).table.to_pylist()
    expected = [row for row in whole if not is_touched(row, "request_time")]
    assert built.table.to_pylist() == expected
    touched = [is_touched(row, "event_time") for row in rows_of(tiny_repo, "requests")]
    assert built.counts.quarantined == sum(touched) > 20
    assert built.counts.repaired is None


def test_repairing_keeps_the_rows_whose_values_are_beyond_doubt(tiny_repo):
    incidents = [
        spell(start=START + 10 * DAY, end=START + 40 * DAY, keys=MANY),
        spell(start=START + 30 * DAY, end=START + 50 * DAY, cause="source_rewritten", keys=SOME),
        spell(start=START + 35 * DAY, end=START + 36 * DAY, cause="unexplained"),
    ]
    built = build(tiny_repo, incidents=incidents, repair=True)
    without = build(tiny_repo, incidents=incidents[1:])
    assert built.table.equals(without.table)
    strict = build(tiny_repo, incidents=incidents)
    assert built.counts.quarantined == without.counts.quarantined < strict.counts.quarantined
    assert built.counts.repaired == built.counts.rows - strict.counts.rows > 20
    assert f"repaired: {built.counts.repaired}" in str(built.counts)
    assert "repaired" not in str(strict.counts)


def test_an_incident_of_what_is_computed_touches_nothing_in_history(tiny_repo):
    incident = spell(view="order_value", cause="transform")
    built = build(tiny_repo, incidents=[incident], repair=True)
    assert built.table.equals(build(tiny_repo).table)
    assert (built.counts.quarantined, built.counts.repaired) == (0, 0)


def test_what_was_served_repairs_nothing(tiny_repo):
    with pytest.raises(InputError, match="leave --repair out, or take --clock knowledge"):
        build(tiny_repo, clock=VisibilityClock.SERVED, repair=True)


def test_a_population_that_is_the_labels_counts_corrected_requests_once(tiny_repo):
    model = tiny_repo.model(MODEL).model_copy(update={"population": None})
    built = build(tiny_repo, model)
    assert built.table.equals(build(tiny_repo).table)
    assert built.counts.population == built.counts.rows


def test_a_population_that_was_loaded_twice_is_reported(tiny_repo):
    once = build(tiny_repo)
    assert "twice" not in str(once.counts)
    path = tiny_repo.path / "data" / "requests.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    twice = build(tiny_repo).counts
    assert (twice.population, twice.repeated) == (
        2 * once.counts.population,
        once.counts.population,
    )
    assert "rows of the population repeat another one: was a file loaded twice?" in str(twice)


def test_a_population_of_other_types_is_refused_with_every_mismatch(tiny_repo):
    path = tiny_repo.path / "data" / "requests.parquet"
    table = pq.read_table(path)
    for name, wrong in (
        ("item", pc.cast(table["item"], pa.string())),
        ("quantity", pc.add(pc.cast(table["quantity"], pa.float64()), 0.5)),
    ):
        table = table.set_column(table.schema.get_field_index(name), name, wrong)
    pq.write_table(table, path)
    with pytest.raises(DataError) as raised:
        build(tiny_repo)
    assert [problem.where for problem in raised.value.problems] == [
        "column item",
        "column quantity",
    ]


def test_a_population_that_lacks_columns_is_refused_with_all_of_them(tiny_repo):
    path = tiny_repo.path / "data" / "requests.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["shop", "quantity"]), path)
    with pytest.raises(DataError) as raised:
        build(tiny_repo)
    assert {problem.where for problem in raised.value.problems} == {
        "column shop",
        "column quantity",
    }


def test_a_window_that_ends_before_it_starts_is_refused(tiny_repo):
    with pytest.raises(InputError, match="would be empty"):
        build(tiny_repo, start=END, end=START)


def test_the_content_hash_is_that_of_the_values(tiny_repo):
    table = build(tiny_repo).table
    cut = pa.concat_tables([table[:7], table[7:900], table[900:]])
    assert content_hash(cut) == content_hash(table)
    labels = table["label"].to_pylist()
    labels[3] = 1 - labels[3]
    other = table.set_column(table.schema.get_field_index("label"), "label", [labels])
    assert content_hash(other.cast(table.schema)) != content_hash(table)
    assert content_hash(table[1:]) != content_hash(table)
