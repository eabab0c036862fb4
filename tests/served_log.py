"""Serves the tiny repo's requests from a slow and obvious online store, and logs what was served.

Each fault of :class:`Faults` is one that a real feed, store or server can have. The log is written
through :class:`~tallystick.prediction_log.log_writer.PredictionLog`. The history has no faults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.dummy import DummyClassifier

import contracts
from tallystick.clock import to_us
from tallystick.definitions.contract import (
    LabelSpec,
    ModelContract,
    Reference,
    ViewReference,
    ViewUse,
)
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_types import arrow_type
from tallystick.model_bundle.bundle import Bundle
from tallystick.model_bundle.reference import feature_reference
from tallystick.online_store.view_decoder import ViewRows
from tallystick.point_in_time.on_demand import Transforms
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.record import Predictions
from tallystick.settings import Settings
from tiny_repo import END, MATURES_AFTER, MODEL, START

HOUR_US = 3_600_000_000


@dataclasses.dataclass(frozen=True)
class HistoryRow:
    """A row of history, with the time at which it goes online."""

    key: tuple[Any, ...]
    event_us: int
    created_us: int
    write_us: int
    values: dict[str, Any]
    definition: str

    @property
    def rank(self) -> tuple[int, int]:
        return self.event_us, self.created_us


def _same(value: Any) -> Any:
    return value


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong on the way online; nothing by default.

    Attributes:
        row: View and row → the row as it is written online, or None if it never is.
        order: Whether the last write wins rather than the newest row.
        ttl_factor: What the server takes the ttl for, in ttls; None if it enforces none.
        value: ``view__feature`` and value → what the model saw, and the log has.
        output: What the server makes of an on-demand output.
        dropped: Whether a view's key is not online any more at a request time, in microseconds.
        stamped: Whether the store says when a row was created and written, and by which definition;
            only Tallystick's own does.
    """

    row: Callable[[str, HistoryRow], HistoryRow | None] = lambda _, row: row
    order: bool = False
    ttl_factor: float | None = 1.0
    value: Callable[[str, Any], Any] = lambda _, value: value
    output: Callable[[float | None], float | None] = _same
    dropped: Callable[[str, tuple[Any, ...], int], bool] = lambda *_: False
    stamped: bool = True


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read of one view for one request."""

    status: str
    row: HistoryRow | None


class OnlineCopy:
    """All rows of a view that are ever written; a read looks through those of its key."""

    def __init__(self, repo: Repo, use: ViewUse, faults: Faults) -> None:
        self._use, self._faults = use, faults
        self._rows: dict[tuple[Any, ...], list[HistoryRow]] = {}
        table = pq.read_table(repo.path / "data" / f"{use.spec.name}.parquet")
        event = table["event_time"].cast(pa.int64()).to_pylist()
        created = table["created_time"].cast(pa.int64()).to_pylist()
        for index, values in enumerate(table.to_pylist()):
            row = HistoryRow(
                key=tuple(values[key] for key in use.spec.key_names),
                event_us=event[index],
                created_us=created[index],
                write_us=max(event[index], created[index]),
                values={name: values[name] for name in use.columns},
                definition=use.spec.definition_hash,
            )
            written = faults.row(use.spec.name, row)
            if written is not None:
                self._rows.setdefault(written.key, []).append(written)

    def read(self, key: tuple[Any, ...], request_us: int) -> Read:
        written = [row for row in self._rows.get(key, []) if row.write_us <= request_us]
        if not written or self._faults.dropped(self._use.spec.name, key, request_us):
            return Read("NOT_FOUND", None)
        if self._faults.order:
            row = max(written, key=lambda one: one.write_us)
        else:
            row = max(written, key=lambda one: one.rank)
        ttl_us, factor = self._use.spec.ttl_us, self._faults.ttl_factor
        fresh = (
            ttl_us is None or factor is None or row.event_us >= request_us - int(ttl_us * factor)
        )
        return Read("PRESENT" if fresh else "OUTSIDE_MAX_AGE", row)


def make_champion(repo: Repo) -> ModelContract:
    """Freeze a contract over the clean repo, with a bundle, and make it the champion."""
    model = repo.model(MODEL)
    inputs = repo.inputs(model)
    transforms = Transforms.from_repo(repo, inputs)
    requests = read_requests(repo, START, END)
    columns: dict[str, list[Any]] = {name: [] for name in inputs.value_columns}
    ages: dict[str, list[float]] = {use.name: [] for use in inputs.views}
    for use in inputs.views:
        online = OnlineCopy(repo, use, Faults())
        for request in requests:
            read = online.read(tuple(request[k] for k in use.request_keys), request["request_us"])
            for name in use.columns:
                value = read.row.values[name] if read.row and read.status == "PRESENT" else None
                columns[f"{use.name}__{name}"].append(value)
            if read.row and read.status == "PRESENT":
                ages[use.name].append((request["request_us"] - read.row.event_us) / 1e6)
    fields = {field.name: [row[field.name] for row in requests] for field in inputs.request_columns}
    columns |= transforms.compute(inputs, columns | fields)
    contract = contracts.contract_of(
        **inputs.model_dump(),
        label=LabelSpec(
            column=model.label.column,
            keys=model.label.keys,
            matures_after_us=MATURES_AFTER // timedelta(microseconds=1),
        ),
        end=START,
        threshold=model.threshold,
        slices=("shop", "quantity", "shop_stats__orders"),
        reference=Reference(
            features={
                feature.name: feature_reference(
                    pa.chunked_array([pa.array(columns[feature.name], arrow_type(feature.dtype))]),
                    feature.dtype,
                )
                for feature in inputs.features
            },
            views={
                name: ViewReference(
                    absent_share=1 - len(found) / len(requests),
                    age_s_p50=float(np.quantile(found, 0.5)),
                    age_s_p99=float(np.quantile(found, 0.99)),
                )
                for name, found in ages.items()
            },
            prediction=feature_reference(
                pa.chunked_array([pa.array([_prediction(row) for row in requests])]), "DOUBLE"
            ),
            label_rate=0.4,
        ),
    )
    estimator = DummyClassifier().fit([[0.0], [0.0]], [0, 1])
    return contracts.make_champion(repo.state_dir, Bundle(contract, estimator, transforms))


def read_requests(repo: Repo, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The requests of [start, end), with ``request_us``."""
    table = pq.read_table(repo.path / "data" / "requests.parquet")
    table = table.append_column("request_us", table["event_time"].cast(pa.int64()))
    low, high = to_us(start), to_us(end)
    return [row for row in table.to_pylist() if low <= row["request_us"] < high]


def serve(
    repo: Repo, contract: ModelContract, *, start: datetime, end: datetime, faults: Faults
) -> int:
    """Answer and log the requests of [start, end), and say how many they were."""
    transforms = Transforms.from_repo(repo, contract)
    online = {use.name: OnlineCopy(repo, use, faults) for use in contract.views}
    log = PredictionLog(repo.state_dir, Settings(log_window_s=60, log_buffer_rows_max=100_000))
    requests = read_requests(repo, start, end)
    for request in requests:
        reads = {
            use.name: online[use.name].read(
                tuple(request[key] for key in use.request_keys), request["request_us"]
            )
            for use in contract.views
        }
        values = {
            f"{use.name}__{name}": [
                faults.value(f"{use.name}__{name}", _value(reads[use.name], name))
            ]
            for use in contract.views
            for name in use.columns
        }
        fields = {field.name: [request[field.name]] for field in contract.request_columns}
        computed = transforms.compute(contract, values | fields)
        values |= {name: [faults.output(value) for value in computed[name]] for name in computed}
        accepted = log.append(
            contract,
            Predictions(
                prediction_id=[f"p-{request['request_us']}"],
                request_us=request["request_us"],
                model_version="1",
                keys={key.name: [request[key.name]] for key in contract.entity_keys} | fields,
                views={
                    name: _columns(read, stamped=faults.stamped) for name, read in reads.items()
                },
                values=values,
                prediction=[_prediction(request)],
                latency_us=1_000,
            ),
        )
        assert accepted
    log.close()
    return len(requests)


def _prediction(request: dict[str, Any]) -> float:
    return 0.2 + 0.1 * request["quantity"] + (request["request_us"] % 97) / 1_000


def _value(read: Read, name: str) -> Any:
    return read.row.values[name] if read.row and read.status == "PRESENT" else None


def _columns(read: Read, *, stamped: bool) -> ViewRows:
    row = read.row
    known = row if stamped else None
    return ViewRows(
        status=[read.status],
        event_us=[row and row.event_us],
        created_us=[known and known.created_us],
        write_us=[known and known.write_us],
        definition=[known and known.definition],
        values={},
    )
