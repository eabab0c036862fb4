"""The definitions: they load, they fit together, and on-demand features say what they should."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.definitions.feature_types import feature_type
from tallystick.definitions.model import Model
from tallystick.point_in_time.on_demand import Transforms

# Feast's own stores: what is tested here are the definitions.
FEATURE_STORE = """\
project: nycflights
provider: local
registry: data/registry.db
offline_store: {type: file}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")


@pytest.fixture(scope="module")
def repo(repo_copy):
    (repo_copy / "feature_store.yaml").write_text(FEATURE_STORE)
    repo = open_repo(repo_copy)
    apply(repo)
    return repo


@pytest.fixture
def inputs(repo):
    return repo.inputs(repo.model("late_arrival"))


def compute(repo, inputs, **given):
    columns = {name: [None] for spec in inputs.transforms for name in spec.inputs.values()}
    columns |= {name: [value] for name, value in given.items()}
    frozen = Transforms.from_bytes(Transforms.from_repo(repo, inputs).to_bytes())
    return {name: values[0] for name, values in frozen.compute(inputs, columns).items()}


def test_both_models_are_declared(repo):
    assert set(repo.models) == {"late_arrival", "cancellation"}
    assert all(isinstance(model, Model) for model in repo.models.values())


def test_a_request_carries_keys_and_schedule(inputs):
    assert {key.name: key.dtype for key in inputs.entity_keys} == dict.fromkeys(
        ("tailnum", "carrier", "origin", "dest"), "STRING"
    )
    assert {field.name: field.dtype for field in inputs.request_fields} == dict.fromkeys(
        ("flight", "scheduled_departure_s", "scheduled_duration_min", "distance_mi"), "INT64"
    )


@pytest.mark.parametrize("model", ["late_arrival", "cancellation"])
def test_models_see_numbers_only(repo, model):
    features = repo.inputs(repo.model(model)).features
    assert len(features) > 25
    assert all(feature_type(feature.dtype).is_number for feature in features)


def test_the_model_does_not_see_the_month(inputs):
    names = {feature.name for feature in inputs.features}
    assert "turnaround__since_landing_min" in names
    assert not any(name.endswith("_s") for name in names)


def test_cancellation_does_not_see_the_tail(repo):
    """A tail is missing only where a departure never took place: it would give the label away."""
    keys = repo.inputs(repo.model("cancellation")).entity_keys
    assert {key.name for key in keys} == {"carrier", "origin", "dest"}


def test_feature_names_tell_views_apart(repo):
    names = [field.name for view in repo.store.list_all_feature_views() for field in view.features]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model", ["late_arrival", "cancellation"])
def test_no_label_comes_after_it_has_matured(repo, tables, model):
    label = repo.model(model).label
    (longest,) = tables.execute(
        f"SELECT max(created_time - event_time) FROM {label.source.name}"
    ).fetchone()
    assert longest <= label.matures_after


@pytest.mark.parametrize(
    ("departure_s", "clock"),
    [
        (1_357_035_300, (5, 315, 1)),  # Tuesday, 1 January 2013, 10:15 UTC, winter time
        (1_373_507_940, (21, 1_319, 2)),  # 11 July, 01:59 UTC: still Wednesday in New York, 21:59
        (1_383_458_400, (1, 60, 6)),  # Sunday, 3 November, 06:00 UTC: the hour that comes twice
    ],
)
def test_the_schedule_is_by_new_yorks_clock(repo, inputs, departure_s, clock):
    """Hour, minute of the day, weekday."""
    values = compute(
        repo,
        inputs,
        scheduled_departure_s=departure_s,
        scheduled_duration_min=240,
        distance_mi=1_400,
        flight=1,
    )
    names = ("local_hour", "local_minute", "weekday")
    assert tuple(values[f"schedule__{name}"] for name in names) == clock
    assert values["schedule__duration_min"] == 240
    assert values["schedule__speed_mph"] == 350.0


@pytest.mark.parametrize(
    ("direction_deg", "along", "across"),
    [(30, 10.0, 0.0), (210, 10.0, 0.0), (120, 0.0, 10.0), (300, 0.0, 10.0), (75, 50**0.5, 50**0.5)],
)
def test_wind_along_and_across_the_runway(repo, inputs, direction_deg, along, across):
    values = compute(
        repo,
        inputs,
        weather__wind_direction_deg=direction_deg,
        weather__wind_speed_mph=10.0,
    )
    assert math.isclose(values["runway_wind__alongwind_mph"], along, abs_tol=1e-9)
    assert math.isclose(values["runway_wind__crosswind_mph"], across, abs_tol=1e-9)


def test_turnaround_is_from_the_last_landing_to_the_planned_departure(repo, inputs):
    values = compute(
        repo,
        inputs,
        scheduled_departure_s=1_357_035_300,
        tail_last_flight__last_landing_s=1_357_035_300 - 5_400,
    )
    assert values["turnaround__since_landing_min"] == 90


def test_nothing_in_gives_nothing_out(repo, inputs):
    assert set(compute(repo, inputs).values()) == {None}


def test_the_replay_fits_the_definitions(repo):
    from scenario import SCENARIO

    assert {SCENARIO.model, *SCENARIO.also} == set(repo.models)
    stored = {view.name for view in repo.store.list_feature_views()}
    assert SCENARIO.refresh.keys() | SCENARIO.push.keys() == stored
    for view, push in SCENARIO.push.items():
        assert repo.store.get_feature_view(view).stream_source.name == push.source
    assert SCENARIO.outage.view in SCENARIO.refresh


@pytest.mark.usefixtures("repo")
def test_the_replay_serves_every_week_and_around_the_outage():
    from scenario import SCENARIO

    days, outage = SCENARIO.days, SCENARIO.outage
    assert len(days) == len(set(days)) >= 60
    first, last = days[0], days[-1]
    weeks = {(first + timedelta(days=n)).isocalendar()[:2] for n in range((last - first).days + 1)}
    assert {day.isocalendar()[:2] for day in days} == weeks
    around = {outage.start.date() + timedelta(days=n) for n in (-1, 0, 1, 2)}
    assert around <= set(days)
    assert outage.end - outage.start == timedelta(days=2)
