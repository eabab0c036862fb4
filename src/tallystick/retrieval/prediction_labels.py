"""The labels of logged predictions: from the API, or from the label's source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.definitions.contract import ModelInputs, label_identity
from tallystick.prediction_log.log_reader import LogPart, read_labels
from tallystick.retrieval.source_labels import known_labels, last_known

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class LoggedLabels:
    """The labels of some logged predictions, in their order.

    Attributes:
        values: 0 or 1, or NaN without a label. Shape (rows,).
        first_known_us: When a label first became known, in microseconds since 1970, or NaN.
    """

    values: Floats
    first_known_us: Floats


def labels_of(repo: Repo, part: LogPart, *, at: datetime) -> LoggedLabels:
    """The labels of a part's predictions that were known by ``at``.

    A label that was sent for the prediction counts most, then one that was sent for its keys and
    request time, then the label source's. Of corrections the one known last counts.

    Args:
        repo: An applied repo.
        part: The predictions, ordered by request time, with ``prediction_id``, ``request_time`` and
            the log's columns of the label's keys.
        at: Labels known later are not used.

    Raises:
        DataError: The label source is not as declared.
        DamagedError: Labels that were sent cannot be read.
    """
    contract, log = part.contract, part.table
    keys = list(contract.label.keys)
    requests = log.select(
        ["prediction_id", "request_time", *(logged_as(contract, key) for key in keys)]
    ).rename_columns(["prediction_id", "request_time", *keys])
    if not log.num_rows:
        return LoggedLabels(np.empty(0), np.empty(0))
    times = log["request_time"]
    known = known_labels(
        repo,
        repo.model(contract.model),
        contract,
        known_until=at,
        between=(times[0].as_py(), times[-1].as_py() + timedelta(microseconds=1)),
    )
    labels = _joined(requests, known, label_identity(keys))
    sent = read_labels(repo.state_dir, contract.model, known_until=at)
    if sent is None:
        return labels
    sent = sent.rename_columns(
        [{"value": "label"}.get(name, name.removeprefix("key.")) for name in sent.column_names]
    )
    for by in (label_identity(keys), ["prediction_id"]):
        complete = sent.select([*by, "label", "known_time"]).drop_null()
        found = _joined(requests, last_known(complete, by), by)
        is_found = ~np.isnan(found.values)
        labels = LoggedLabels(
            np.where(is_found, found.values, labels.values),
            np.fmin(labels.first_known_us, found.first_known_us),
        )
    return labels


def logged_as(inputs: ModelInputs, name: str) -> str:
    """The log's column of an entity key, a request field or a feature."""
    if name in {key.name for key in inputs.entity_keys}:
        return f"entity.{name}"
    if name in {field.name for field in inputs.request_fields}:
        return f"request.{name}"
    return f"feature.{name}"


def _joined(requests: pa.Table, labels: pa.Table, by: Sequence[str]) -> LoggedLabels:
    """Label of each request by the columns ``by``."""
    import pyarrow as pa

    numbered = requests.select(list(by)).append_column(
        "row", pa.array(np.arange(requests.num_rows))
    )
    known = labels.select([*by, "label", "first_known_time"])
    found = numbered.join(known, keys=list(by), join_type="inner")
    rows = found["row"].to_numpy()
    values, first = np.full(requests.num_rows, np.nan), np.full(requests.num_rows, np.nan)
    values[rows] = found["label"].to_numpy()
    first[rows] = found["first_known_time"].cast(pa.int64()).to_numpy()
    return LoggedLabels(values, first)
