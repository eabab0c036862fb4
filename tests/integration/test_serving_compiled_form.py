"""The form in which a model answers, over real HTTP."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import serving_scene as scene
from contracts import make_champion
from ensembles import compiled_bundle
from tallystick.model_bundle.bundle import bundle_dir
from tallystick.point_in_time.on_demand import Transforms

PREDICT = f"/v1/models/{scene.MODEL}:predict"


def publish(state_dir, *, version="1", threshold=0.5):
    """Make a boosted model and its compiled form the champion; gives its estimator and folder."""
    estimator = scene.boosting()
    matrix = np.random.default_rng(1).normal(size=(200, 5))
    agreed = scene.contract(threshold=threshold)
    bundle, reason = compiled_bundle(estimator, matrix, contract=agreed)
    assert reason == ""
    transforms = Transforms({"trip": scene.derive})
    agreed = make_champion(
        state_dir, replace(bundle, estimator=estimator, transforms=transforms), version=version
    )
    return estimator, bundle_dir(state_dir, scene.MODEL, agreed.contract_hash)


def requested(client, *instances):
    body = {"instances": list(instances), "parameters": {"features": True}}
    return client.post(PREDICT, json=body).json()["predictions"]


def test_a_compiled_model_answers_as_its_estimator_alone_or_in_a_batch(repo):
    estimator, _ = publish(repo.state_dir)
    instances = [
        scene.INSTANCE | {"id": number % 4, "town": town, "distance": 0.5 + number}
        for number in range(20)
        for town in ("A", "nowhere")
    ]
    with scene.running(repo) as client:
        shown = client.get(f"/v1/models/{scene.MODEL}").json()
        assert shown["form"] == "compiled"
        together = requested(client, *instances)
        alone = [requested(client, instance)[0] for instance in instances]
    assert [one["probability"] for one in alone] == [one["probability"] for one in together]
    rows = [list(prediction["features"].values()) for prediction in together]
    expected = estimator.predict_proba(np.array(rows, dtype=np.float64))[:, 1]
    found = [prediction["probability"] for prediction in together]
    assert found == pytest.approx(expected, abs=1e-14)
    assert len(set(found)) > 1


def test_a_model_that_was_not_compiled_says_so(repo):
    scene.publish(repo.state_dir, scene.boosting())
    with scene.running(repo) as client:
        assert client.get(f"/v1/models/{scene.MODEL}").json()["form"] == "original"


def test_a_form_that_cannot_be_used_leaves_the_answer_to_the_estimator(repo, caplog):
    estimator = scene.boosting()
    agreed = scene.contract()
    bundle, _ = compiled_bundle(estimator, np.zeros((60, 5)), contract=agreed)
    transforms = Transforms({"trip": scene.derive})
    other = replace(
        bundle, estimator=estimator, transforms=transforms, compiled=b"of another release"
    )
    make_champion(repo.state_dir, other)
    with scene.running(repo) as client:
        assert client.get(f"/v1/models/{scene.MODEL}").json()["form"] == "original"
        for _ in range(3):
            assert 0 < requested(client, scene.INSTANCE)[0]["probability"] < 1
    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if "original estimator answers" in record.getMessage()
    ]
    assert "its tables cannot be read" in warning


def test_a_compiled_form_that_was_tampered_with_does_not_become_champion(repo):
    _, folder = publish(repo.state_dir)
    with (folder / "compiled.bin").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with scene.running(repo) as client:
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "compiled.bin" in ready.text
