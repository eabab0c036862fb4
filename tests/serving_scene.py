"""A tiny model with everything that serving handles, and a real server for it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import uvicorn
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier

from contracts import contract_of, make_champion
from packed_rows import packed_row
from tallystick.clock import to_us
from tallystick.definitions.contract import FeatureSpec, LabelSpec, TransformSpec, ViewUse
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.model_bundle.bundle import Bundle
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_writer import write_rows
from tallystick.point_in_time.on_demand import Transforms
from tallystick.server_process import wait_until
from tallystick.settings import Settings
from tallystick_serving.app import create_app
from tallystick_serving.store_config import StoreConfig

PROJECT = "scene"
MODEL = "late"
HOUR_US = 3_600_000_000
INSTANCE = {"id": 1, "town": "A", "distance": 2.0, "depart": "2024-03-01T12:00:00Z"}

SHOP = ViewSpec(
    name="shop",
    join_keys=(Column(name="id", dtype="INT64"),),
    columns=(Column(name="n", dtype="INT64"), Column(name="share", dtype="FLOAT")),
    ttl_us=HOUR_US,
    event_column="event",
    created_column="created",
)
TOWN = ViewSpec(
    name="town",
    join_keys=(Column(name="town", dtype="STRING"),),
    columns=(Column(name="mood", dtype="DOUBLE"),),
    ttl_us=None,
    event_column="event",
    created_column=None,
)


def derive(inputs):
    """The on-demand view, in Feast's python mode."""
    return {
        "per_km": [
            None if n is None else n / distance
            for n, distance in zip(inputs["n"], inputs["distance"], strict=True)
        ],
        "hour": [moment.hour for moment in inputs["depart"]],
    }


derive.__module__ = "__main__"  # frozen by value, as Feast does with functions of a repo


def contract(*, threshold=0.5, fields=(), model=MODEL):
    features = [
        ("shop", "n", "INT64", "view"),
        ("shop", "share", "FLOAT", "view"),
        ("town", "mood", "DOUBLE", "view"),
        ("trip", "per_km", "DOUBLE", "on_demand"),
        ("trip", "hour", "INT64", "on_demand"),
    ]
    return contract_of(
        project=PROJECT,
        model=model,
        entity_keys=(Column(name="id", dtype="INT64"), Column(name="town", dtype="STRING")),
        request_fields=(
            Column(name="distance", dtype="DOUBLE"),
            Column(name="depart", dtype="UNIX_TIMESTAMP"),
            *fields,
        ),
        features=tuple(
            FeatureSpec(name=f"{view}__{name}", view=view, feature=name, dtype=dtype, kind=kind)
            for view, name, dtype, kind in features
        ),
        views=(
            ViewUse(spec=SHOP, name="shop", key_map={"id": "id"}, columns=("n", "share")),
            ViewUse(spec=TOWN, name="town", key_map={"town": "town"}, columns=("mood",)),
        ),
        transforms=(
            TransformSpec(
                name="trip",
                mode="python",
                code_hash="0" * 16,
                inputs={"n": "shop__n", "distance": "distance", "depart": "depart"},
                outputs=(
                    Column(name="per_km", dtype="DOUBLE"),
                    Column(name="hour", dtype="INT64"),
                ),
            ),
        ),
        label=LabelSpec(column="late", keys=("id", "depart"), matures_after_us=HOUR_US),
        threshold=threshold,
    )


def boosting(rows=300):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, 5))
    truth = (matrix[:, 0] + matrix[:, 2] > 0).astype(int)
    return HistGradientBoostingClassifier(max_iter=20).fit(matrix, truth)


def constant(share):
    """A model that always answers ``share``, in hundredths."""
    truth = np.array([1] * round(share * 100) + [0] * (100 - round(share * 100)))
    return DummyClassifier(strategy="prior").fit(np.zeros((100, 5)), truth)


def publish(state_dir, estimator, *, version="1", agreed=None, function=derive):
    """Make a model the champion, and give its contract."""
    agreed = contract() if agreed is None else agreed
    bundle = Bundle(contract=agreed, estimator=estimator, transforms=Transforms({"trip": function}))
    return make_champion(state_dir, bundle, version=version)


def write(client, spec, key, values, *, event, created=None):
    """Put one row into the online store."""
    (redis_key,) = EntityKeys(PROJECT, spec.join_keys).of([[key]])
    codec = RowCodec(spec)
    row = packed_row(
        codec,
        values,
        event_us=to_us(event),
        created_us=None if created is None else to_us(created),
        write_us=to_us(event) + 5,
    )
    write_rows(client, PROJECT, codec, [(redis_key, row)])


def fill(client, *, now=None):
    """Shop 1 is fresh, shop 2 too old; town A is known."""
    now = datetime.now(UTC) if now is None else now
    fresh, old = now - timedelta(minutes=5), now - timedelta(hours=2)
    write(client, SHOP, 1, {"n": 2**60 + 1, "share": 0.1}, event=fresh, created=fresh)
    write(client, SHOP, 2, {"n": 7, "share": None}, event=old, created=old)
    write(client, TOWN, "A", {"mood": 0.25}, event=old)


def write_store_yaml(folder, connection_string):
    """A ``feature_store.yaml`` of the scene's project, with a registry in its folder."""
    (folder / "feature_store.yaml").write_text(
        f"project: {PROJECT}\n"
        "provider: local\n"
        f"registry: {folder}/registry.db\n"
        "offline_store: {type: file}\n"
        "online_store:\n"
        "  type: tallystick.online_store.RedisOnlineStore\n"
        f"  connection_string: {connection_string}\n"
        "entity_key_serialization_version: 3\n"
    )


def project(folder, connection_string, *, state=None):
    return StoreConfig(
        path=folder,
        name=PROJECT,
        redis=RedisOptions(connection_string=connection_string),
        state_dir=folder / "state" if state is None else state,
    )


@contextmanager
def running(repo, **limits):
    """A real uvicorn on a free port, in a thread; stopped as by SIGTERM."""
    chosen = Settings(**{"champion_poll_s": 0.05, "log_window_s": 60.0} | limits)
    config = uvicorn.Config(create_app(repo, chosen), port=0, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition, *, seconds=20.0):
    """Wait until ``condition()`` holds, and give what it gave."""
    found = wait_until(condition, timeout_s=seconds)
    assert found, "it did not happen in time"
    return found


def metric(client, start):
    """The sum of the metric's samples whose line starts with ``start``."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))
