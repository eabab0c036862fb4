"""One subject's values three ways: from history, from the online store, and over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallystick.clock import SECOND_US, from_us
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.definitions.exact_cast import exact_value, log_column, log_values
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_types import Kind, feature_type
from tallystick.errors import DataError, DefinitionError
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.online_store.value_codec import is_null, value_codec
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.expected_values import view_clock
from tallystick.retrieval.model_features import computed_values, stored_values
from tallystick.settings import settings
from tallystick_monitoring.log_columns import Bools, microseconds
from tallystick_monitoring.parity_check.scratch_repo import foreign_code
from tallystick_monitoring.parity_check.scratch_server import ScratchServer
from tallystick_monitoring.parity_check.subjects import PREDICTION, Subject

ROWS_ALONE: Final = 20
"""Requests that are sent to the API one by one. The others follow in batches."""
ROWS_TOGETHER: Final = 100
NO_KEY: Final = "any_request"
"""Column that is sent where a view has no entity, as Feast counts requests by their columns."""
CARRIED: Final = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOL", "STRING"})
"""Types of keys and request fields that Feast takes from JSON as what they are."""
_OK: Final = 200


@dataclass
class Answers:
    """Values of one way.

    Attributes:
        values: ``view__feature``, and :data:`.subjects.PREDICTION` of a model → one plain value per
            request, None for null.
        event_times: View → event time of the row in each request, None where it is not known.
        statuses: View → status in each request, of what history says.
    """

    values: dict[str, list[Any]] = field(default_factory=dict)
    event_times: dict[str, list[datetime | None]] = field(default_factory=dict)
    statuses: dict[str, list[str]] = field(default_factory=dict)


def stored(repo: Repo, inputs: ModelInputs, entity_rows: pa.Table) -> tuple[pa.Table, Answers]:
    """What history says of the stored features, each view under the clock that it has.

    Returns:
        The entity rows with the stored features, for the on-demand functions, and these features.

    Raises:
        DataError: A source cannot be read as declared.
    """
    answers = Answers()
    table, dtypes = entity_rows, inputs.value_columns
    for use in inputs.views:
        found = stored_values(repo, [use], entity_rows, clock=view_clock(use), with_times=True)
        for column in use.columns:
            name = f"{use.name}__{column}"
            table = table.append_column(name, found[name])
            answers.values[name] = log_column(found[name], dtypes[name]).to_pylist()
        answers.event_times[use.name] = found[f"{use.name}__event_time"].to_pylist()
        answers.statuses[use.name] = found[f"{use.name}__status"].to_pylist()
    return table, answers


def not_yet_known(repo: Repo, inputs: ModelInputs, entity_rows: pa.Table) -> Bools:
    """Of which requests history has a row of that time which was known only later.

    Feast brings such a row online all the same: it does not ask when a row became known.
    """
    later = np.zeros(entity_rows.num_rows, dtype=np.bool_)
    for use in inputs.views:
        if view_clock(use) is not VisibilityClock.KNOWLEDGE:
            continue
        known, happened = (
            stored_values(repo, [use], entity_rows, clock=clock, with_times=True)
            for clock in (VisibilityClock.KNOWLEDGE, VisibilityClock.EVENT)
        )
        for name in (f"{use.name}__event_time", f"{use.name}__created_time"):
            later |= microseconds(known[name]) != microseconds(happened[name])
    return later


def computed(subject: Subject, table: pa.Table) -> dict[str, list[Any]]:
    """What on-demand functions and model give for all requests at once, as in training.

    Raises:
        DefinitionError: A function or the model fails.
    """
    found = computed_values(subject.inputs, subject.transforms, table)
    values = {name: found[name].to_pylist() for name in subject.computed}
    if subject.scorer is not None:
        names = subject.inputs.feature_names
        matrix = feature_matrix(subject.inputs, {name: found[name] for name in names})
        with foreign_code(f"Model {subject.name!r} failed", DefinitionError):
            values[PREDICTION] = subject.scorer.predict(matrix).tolist()
    return values


def online(repo: Repo, subject: Subject, entity_rows: pa.Table) -> Answers:
    """What Feast reads of the online store, for all requests at once if it can.

    Raises:
        DataError: Feast, the store or an on-demand function fails.
    """
    features: Any = list(subject.features)
    if not features:
        features = repo.store.get_feature_service(subject.name)
    answers = Answers()
    for part in _parts(
        entity_rows, alone=entity_rows.num_rows if subject.needs_single_requests else 0
    ):
        with foreign_code("Feast cannot read it from the online store"):
            response = repo.store.get_online_features(
                features=features,
                entity_rows=_entities(part),
                full_feature_names=subject.by_full_names,
            ).proto
        _add_protos(answers, subject, response)
    _require_all(subject, answers, rows=entity_rows.num_rows, who="Feast")
    return answers


def _add_protos(answers: Answers, subject: Subject, response: Any) -> None:
    """Add what Feast answered to some requests."""
    dtypes = subject.inputs.value_columns
    times: dict[str, list[datetime | None]] = {}
    columns = zip(response.metadata.feature_names.val, response.results, strict=True)
    for short, result in columns:
        name = subject.names.get(short)
        if name is None:
            continue
        values = [_from_proto(value, dtypes[name]) for value in result.values]
        answers.values.setdefault(name, []).extend(values)
        times[subject.parts[name][0]] = [
            from_us(time.seconds * SECOND_US + time.nanos // 1000) if time.seconds > 0 else None
            for time in result.event_timestamps
        ]
    for view, times_of_view in times.items():
        answers.event_times.setdefault(view, []).extend(times_of_view)


def served_features(api: ScratchServer, subject: Subject, entity_rows: pa.Table) -> Answers:
    """What the API's feature route answers, the first requests one by one.

    Raises:
        DataError: The server refuses or fails.
    """
    what: dict[str, Any] = (
        {"features": list(subject.features)}
        if subject.features
        else {"feature_service": subject.name}
    )
    dtypes, in_answer = subject.inputs.value_columns, subject.names
    answers = Answers()
    alone = entity_rows.num_rows if subject.needs_single_requests else ROWS_ALONE
    for part in _parts(entity_rows, alone=alone, rows_max=_rows_together()):
        entities = {
            name: [_to_json(value) for value in values] for name, values in _entities(part).items()
        }
        body = {**what, "entities": entities, "full_feature_names": subject.by_full_names}
        status, content = api.ask("POST", "/get-online-features", body)
        if status != _OK:
            raise DataError(f"The API does not answer: {_refusal(status, content)}")
        names = content["metadata"]["feature_names"]
        for name, result in zip(names, content["results"], strict=True):
            if name in in_answer:
                value = in_answer[name]
                values = [_from_json(each, dtypes[value]) for each in result["values"]]
                answers.values.setdefault(value, []).extend(values)
    _require_all(subject, answers, rows=entity_rows.num_rows, who="The API")
    return answers


def served_predictions(api: ScratchServer, subject: Subject, entity_rows: pa.Table) -> Answers:
    """What a model sees and predicts. Otherwise as :func:`served_features`."""
    dtypes = subject.inputs.value_columns
    answers = Answers(values={name: [] for name in (*dtypes, PREDICTION)})
    requests = entity_rows.drop_columns([REQUEST_TIME])
    for part in _parts(requests, alone=ROWS_ALONE, rows_max=_rows_together()):
        instances = [
            {name: _to_json(value) for name, value in row.items()} for row in part.to_pylist()
        ]
        body = {"instances": instances, "parameters": {"features": True}}
        status, content = api.ask("POST", f"/v1/models/{subject.name}:predict", body)
        if status != _OK:
            raise DataError(f"The API does not predict: {_refusal(status, content)}")
        for prediction in content["predictions"]:
            answers.values[PREDICTION].append(prediction["probability"])
            for name, dtype in dtypes.items():
                answers.values[name].append(_from_json(prediction["features"][name], dtype))
    return answers


def passing_rows(subject: Subject, table: pa.Table) -> tuple[list[int], str]:
    """The requests for which the functions and the model do not fail, and the last error."""
    passing, reason = [], ""
    for row in range(table.num_rows):
        try:
            computed(subject, table.slice(row, 1))
            passing.append(row)
        except DefinitionError as error:
            reason = str(error)
    return passing, reason


def unanswered(subject: Subject) -> tuple[str, ...]:
    """What Feast leaves out: python-mode on-demand features that must be requested by full name."""
    if not subject.by_full_names:
        return ()
    return tuple(
        f"{spec.name}__{output.name}"
        for spec in subject.inputs.transforms
        for output in spec.outputs
        if spec.mode != "pandas" and f"{spec.name}__{output.name}" in subject.answered
    )


def _require_all(subject: Subject, answers: Answers, *, rows: int, who: str) -> None:
    """Refuse an answer that lacks a feature, or has another number of values than requests."""
    missing = [
        name
        for name in subject.answered
        if name not in answers.values and name not in unanswered(subject)
    ]
    if missing:
        raise DataError(f"{who} does not answer {', '.join(missing)}.")
    for name, values in answers.values.items():
        if len(values) != rows:
            raise DataError(f"{who} answers {len(values)} values of {name} to {rows} requests.")


def _entities(entity_rows: pa.Table) -> dict[str, list[Any]]:
    columns = {
        name: entity_rows[name].to_pylist()
        for name in entity_rows.column_names
        if name != REQUEST_TIME
    }
    return columns or {NO_KEY: [0] * entity_rows.num_rows}


def _parts(entity_rows: pa.Table, *, alone: int, rows_max: int | None = None) -> Iterator[pa.Table]:
    """The first requests one by one, then batches of at most ``rows_max``, or one batch if None."""
    alone = min(alone, entity_rows.num_rows)
    for row in range(alone):
        yield entity_rows.slice(row, 1)
    size = rows_max or max(entity_rows.num_rows, 1)
    for start in range(alone, entity_rows.num_rows, size):
        yield entity_rows.slice(start, size)


def _rows_together() -> int:
    return min(settings().request_rows_max, ROWS_TOGETHER)


def _refusal(status: int, content: Mapping[str, Any]) -> str:
    errors: Sequence[Any] = content.get("errors", ())
    details = "; ".join(f"{error['where']}: expected {error['expected']}" for error in errors[:3])
    return f"{status} {content.get('detail', content)}" + (f" ({details})" if details else "")


def _from_proto(value: Any, dtype: str) -> Any:
    """What Feast answered, in Python. A value of another type is read as that type."""
    if is_null(value):
        return None
    codec = value_codec(dtype)
    try:
        return _comparable(codec.read_proto(value), dtype)
    except TypeError:
        from feast.type_map import feast_value_type_to_python_type

        return feast_value_type_to_python_type(value)


def _comparable(value: Any, dtype: str) -> Any:
    """A document as one text of JSON, other values as they are."""
    (comparable,) = log_values([value], dtype)
    return comparable


def _to_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return [_to_json(member) for member in value] if isinstance(value, list) else value


def _from_json(value: Any, dtype: str) -> Any:
    """A value of the API in the declared type, or as it is where it is not of that type."""
    own = feature_type(dtype)
    if value is None or own.is_document:
        return _comparable(value, dtype)
    members: Any = value.get("val") if isinstance(value, dict) else value
    read = _READ.get((own.member or own).kind, lambda value: value)
    try:
        return exact_value(dtype)(read(value) if own.member is None else [*map(read, members)])
    except (ValueError, TypeError, OverflowError):
        return value


def _time(value: Any) -> datetime:
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        return datetime.fromisoformat(value)
    return from_us(int(value) * SECOND_US)


_READ: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    Kind.INTEGER: lambda value: int(value) if isinstance(value, str) else value,
    Kind.FLOAT: float,
    Kind.TIME: _time,
    Kind.BYTES: base64.b64decode,
}
"""Kind → how a value of it is taken from JSON. Others are in JSON what they are."""
