"""Predictions over real HTTP: what is answered is what is logged."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

import serving_scene as scene
from tallystick.prediction_log.log_reader import read_labels, read_log

START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
PREDICT = f"/v1/models/{scene.MODEL}:predict"


def instances():
    return [
        scene.INSTANCE,
        scene.INSTANCE | {"id": 2, "town": "nowhere"},
        scene.INSTANCE | {"id": None, "depart": "2024-03-01T23:30:00.5+02:00"},
    ]


def test_the_answer_the_log_and_the_model_agree(repo):
    model = scene.boosting()
    agreed = scene.publish(repo.state_dir, model)
    with scene.running(repo) as client:
        answer = client.post(
            PREDICT, json={"instances": instances(), "parameters": {"features": True}}
        ).json()
        label = {"prediction_id": answer["predictions"][0]["prediction_id"], "value": 1}
        by_keys = {
            "keys": {"id": 2, "depart": "2024-03-01T12:00:00Z"},
            "request_time": "2024-03-01T10:00:00Z",
            "known_time": "2024-03-01T14:00:00+01:00",
            "value": 0,
        }
        sent = client.post(f"/v1/models/{scene.MODEL}/labels", json={"labels": [label, by_keys]})
        assert (sent.status_code, sent.json()) == (202, {"accepted": 2})
        assert scene.metric(client, "tallystick_log_accepted") == 5
        assert scene.metric(client, "tallystick_predictions_total") == 3
        assert (
            scene.metric(client, 'tallystick_view_statuses_total{model="late",status="NOT_FOUND"')
            == 2
        )
    share = float(np.float32(0.1))
    expected = np.array(
        [
            [2**60 + 1, share, 0.25, (2**60 + 1) / 2, 12],
            [np.nan, np.nan, np.nan, np.nan, 12],
            [np.nan, np.nan, 0.25, np.nan, 21],
        ]
    )
    probabilities = model.predict_proba(expected)[:, 1].tolist()
    first, second, third = answer["predictions"]
    assert [one["probability"] for one in answer["predictions"]] == probabilities
    assert [one["positive"] for one in answer["predictions"]] == [p >= 0.5 for p in probabilities]
    assert answer["model_version"] == "1"
    assert answer["contract_hash"] == agreed.contract_hash
    assert first["features"] == {
        "shop__n": 2**60 + 1,
        "shop__share": share,
        "town__mood": 0.25,
        "trip__per_km": (2**60 + 1) / 2,
        "trip__hour": 12,
    }
    assert [one["views"]["shop"]["status"] for one in (first, second, third)] == [
        "PRESENT",
        "OUTSIDE_MAX_AGE",
        "NOT_FOUND",
    ]
    assert first["views"]["shop"]["definition"] == scene.SHOP.definition_hash
    assert first["views"]["town"]["created_time"] is None

    (part,) = read_log(repo.state_dir, scene.MODEL, start=START, end=END)
    logged = {row["prediction_id"]: row for row in part.table.to_pylist()}
    for one, row in zip(
        answer["predictions"],
        [logged[p["prediction_id"]] for p in answer["predictions"]],
        strict=True,
    ):
        assert row["prediction"] == one["probability"]
        for name, value in one["features"].items():
            assert row[f"feature.{name}"] == value
        for view, read in one["views"].items():
            assert row[f"view.{view}.status"] == read["status"]
            assert row[f"view.{view}.definition"] == read["definition"]
            for field in ("event_time", "created_time", "write_time"):
                moment = row[f"view.{view}.{field}"]
                assert (moment and moment.isoformat()) == read[field]
        assert row["request_time"].isoformat() == answer["request_time"]
        assert row["latency_us"] > 0
    odd = logged[third["prediction_id"]]
    assert (odd["entity.id"], odd["entity.town"], odd["request.distance"]) == (None, "A", 2.0)
    assert odd["request.depart"] == datetime(2024, 3, 1, 21, 30, 0, 500_000, tzinfo=UTC)
    assert part.table.schema.field("request.depart").type == pa.timestamp("us", tz="UTC")

    labels = read_labels(repo.state_dir, scene.MODEL, known_until=END).to_pylist()
    labels.sort(key=lambda row: row["value"])
    assert labels[0]["key.id"] == 2
    assert labels[0]["known_time"] == datetime(2024, 3, 1, 13, tzinfo=UTC)
    assert labels[1]["prediction_id"] == first["prediction_id"]


def problem(response, status, slug):
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"]) == (status, status), body
    assert body["type"] == f"urn:tallystick:problem:{slug}"
    assert body["title"]
    assert body["detail"]
    return body


def test_bad_requests_are_refused_with_all_that_is_wrong(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    (repo.state_dir / "models" / "untrained").mkdir()
    with scene.running(repo, request_rows_max=60, request_bytes_max=20_000) as client:
        bad = [
            {"id": "1", "town": 5, "distance": True, "depart": "2024-03-01T12h"},
            {"id": True, "town": None, "distance": "1", "depart": 1},
            {"id": 2**63, "town": "A", "distance": None, "depart": "noon", "extra": 1},
            {"id": 1.5},
            7,
        ]
        body = problem(client.post(PREDICT, json={"instances": bad}), 422, "invalid-request")
        wrong = {(item["where"], item["got"]) for item in body["errors"]}
        assert wrong == {
            ("instances[0].id", '"1"'),
            ("instances[0].town", "5"),
            ("instances[0].distance", "true"),
            ("instances[0].depart", '"2024-03-01T12h"'),
            ("instances[1].id", "true"),
            ("instances[1].distance", '"1"'),
            ("instances[1].depart", "1"),
            ("instances[2].id", str(2**63)),
            ("instances[2].distance", "null"),
            ("instances[2].depart", '"noon"'),
            ("instances[2].extra", "1"),
            ("instances[3].id", "1.5"),
            ("instances[3].town", "nothing"),
            ("instances[3].distance", "nothing"),
            ("instances[3].depart", "nothing"),
            ("instances[4]", "7"),
        }
        many = problem(client.post(PREDICT, json={"instances": [{}] * 60}), 422, "invalid-request")
        assert len(many["errors"]) == 50
        assert "190 more" in many["detail"]

        for literal in ("NaN", "Infinity", "1e999"):
            raw = '{"instances": [{"id": 1, "distance": ' + literal + "}]}"
            problem(client.post(PREDICT, content=raw), 400, "no-json")
        problem(client.post(PREDICT, content=b""), 400, "no-json")
        problem(client.post(PREDICT, content=b"[]"), 400, "no-json")
        problem(client.post(PREDICT, json={}), 422, "invalid-request")
        problem(client.post(PREDICT, json={"instances": []}), 422, "invalid-request")
        problem(client.post(PREDICT, json={"instances": {}}), 422, "invalid-request")
        problem(
            client.post(PREDICT, json={"instances": [scene.INSTANCE], "parameters": {"a": 1}}),
            422,
            "invalid-request",
        )
        problem(client.post(PREDICT, json={"instances": [scene.INSTANCE] * 61}), 413, "too-large")
        problem(client.post(PREDICT, content=b" " * 20_001), 413, "too-large")
        problem(client.post(PREDICT, content=iter([b" " * 15_000] * 2)), 413, "too-large")

        unknown = problem(
            client.post("/v1/models/lat:predict", json={"instances": []}), 404, "unknown-model"
        )
        assert "did you mean late?" in unknown["detail"]
        problem(client.get("/v1/models/lat"), 404, "unknown-model")
        problem(
            client.post("/v1/models/untrained:predict", json={"instances": []}), 503, "not-ready"
        )
        problem(client.get("/nowhere"), 404, "not-found")
        problem(client.get("/push"), 405, "method-not-allowed")
        assert scene.metric(client, "tallystick_log_accepted") == 0
        assert scene.metric(client, 'tallystick_requests_total{route="unknown"') >= 1


def test_bad_labels_are_refused_whole(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    path = f"/v1/models/{scene.MODEL}/labels"
    good = {"prediction_id": "01890a5d-ac96-774b-bcce-b302099a8057", "value": 1}
    keyed = {
        "keys": {"id": 1, "depart": "2024-03-01T12:00:00Z"},
        "request_time": "2024-03-01T10:00:00Z",
        "value": 1,
    }
    with scene.running(repo, log_buffer_rows_max=1) as client:
        bad = [
            good,
            good | {"value": True},
            good | {"value": 2},
            good | {"prediction_id": "x"},
            good | {"prediction_id": 5},
            good | {"known_time": "2024-03-01T10h"},
            keyed | {"keys": {"id": "1", "depart": "2024-03-01T12:00:00Z"}},
            keyed | {"keys": {"id": 1}},
            keyed | {"known_time": "2024-03-01T09:00:00Z"},
            {"value": 1},
            None,
        ]
        body = problem(client.post(path, json={"labels": bad}), 422, "invalid-request")
        assert [item["where"] for item in body["errors"]] == [
            "labels[1].value",
            "labels[2].value",
            "labels[3].prediction_id",
            "labels[4].prediction_id",
            "labels[5].known_time",
            "labels[6].keys.id",
            "labels[7].keys",
            "labels[8].known_time",
            "labels[9]",
            "labels[10]",
        ]
        problem(client.post(path, json={"labels": []}), 422, "invalid-request")
        problem(client.post(path, json={}), 422, "invalid-request")
        full = client.post(path, json={"labels": [good, keyed]})
        problem(full, 503, "busy")
        assert full.headers["retry-after"] == "1"
        assert client.post(path, json={"labels": [keyed]}).status_code == 202
        assert scene.metric(client, 'tallystick_log_dropped_total{log="labels",reason="full"}') == 2


def test_a_durable_prediction_is_on_disk_before_it_is_answered(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    body = {"instances": [scene.INSTANCE] * 3, "parameters": {"durable": True}}
    with scene.running(repo) as client:
        answer = client.post(PREDICT, json=body).json()
        (part,) = read_log(repo.state_dir, scene.MODEL, start=START, end=END)
        ids = [each["prediction_id"] for each in answer["predictions"]]
        assert sorted(part.table["prediction_id"].to_pylist()) == sorted(ids)
        client.post(PREDICT, json={"instances": [scene.INSTANCE]})
        (part,) = read_log(repo.state_dir, scene.MODEL, start=START, end=END)
        assert part.table.num_rows == 3
        problem(
            client.post(PREDICT, json=body | {"parameters": {"durable": 1}}), 422, "invalid-request"
        )


def test_a_durable_prediction_that_cannot_be_logged_is_refused(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    body = {"instances": [scene.INSTANCE]}
    with scene.running(repo, log_durable=True, log_budget_bytes=2_000) as client:
        codes = [client.post(PREDICT, json=body).status_code for _ in range(20)]
        assert codes[0] == 200
        assert codes[-1] == 503
        refused = client.post(PREDICT, json=body)
        problem(refused, 503, "unavailable")
        assert "log" in refused.json()["detail"]
        assert (
            client.post(PREDICT, json=body | {"parameters": {"durable": False}}).status_code == 200
        )
        answered = codes.count(200)
        dropped = 'tallystick_log_dropped_total{log="predictions",reason="budget"}'
        assert scene.metric(client, dropped) >= 21 - answered
    (part,) = read_log(repo.state_dir, scene.MODEL, start=START, end=END)
    assert part.table.num_rows == answered


class Failing:
    def __init__(self, value):
        self.value = value

    def predict_proba(self, matrix):
        return np.full((len(matrix), 2), self.value)


class Raising:
    def predict_proba(self, _matrix):
        raise ValueError("no")


@pytest.mark.parametrize("estimator", [Failing(math.nan), Failing(math.inf), Raising()])
def test_a_prediction_that_is_not_a_probability_is_an_error(repo, estimator):
    scene.publish(repo.state_dir, estimator)
    with scene.running(repo) as client:
        problem(
            client.post(PREDICT, json={"instances": [scene.INSTANCE]}), 500, "prediction-failed"
        )
        assert scene.metric(client, "tallystick_log_accepted") == 0


def test_a_failing_on_demand_function_is_an_error(repo):
    def fail(_inputs):
        raise ZeroDivisionError

    fail.__module__ = "__main__"
    scene.publish(repo.state_dir, scene.constant(0.25), function=fail)
    with scene.running(repo) as client:
        problem(client.post(PREDICT, json={"instances": [scene.INSTANCE]}), 500, "internal")


def test_models_say_what_they_are(repo):
    with scene.running(repo) as client:
        assert client.get("/health").json() == {"status": "alive"}
        waiting = problem(client.get("/ready"), 503, "not-ready")
        assert "tally train" in waiting["reasons"][0]
        agreed = scene.publish(repo.state_dir, scene.constant(0.25), version="7")
        scene.wait_for(lambda: client.get("/ready").is_success)
        assert client.get("/v1/models").json() == {"models": ["late"]}
        assert client.get("/v1/models/late").json() == {
            "name": "late",
            "ready": True,
            "version": "7",
            "contract_hash": agreed.contract_hash,
            "form": "original",
        }
        assert scene.metric(client, "tallystick_champion_info{contract_hash=") == 1


def test_ttl_ends_with_its_window_included(tmp_path, redis_server):
    repo = scene.project(tmp_path, redis_server.connection_string)
    scene.publish(repo.state_dir, scene.constant(0.25))
    scene.fill(redis_server.client, now=datetime.now(UTC) - timedelta(minutes=54, seconds=30))
    with scene.running(repo) as client:
        body = {"instances": [scene.INSTANCE], "parameters": {"features": True}}
        answer = client.post(PREDICT, json=body).json()
        assert answer["predictions"][0]["views"]["shop"]["status"] == "PRESENT"
