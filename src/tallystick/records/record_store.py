"""The records of looks, incidents and decisions, from which a decision can be replayed.

Monitoring writes reports and incidents; training reads them, and writes decisions. A record is one
JSON file, whole or absent::

    records/<kind>/<model>/<time>.json
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import Field, ValidationError

from tallystick.clock import to_us
from tallystick.definitions.feature_view import Frozen
from tallystick.errors import DamagedError
from tallystick.records.causes import Cause
from tallystick.storage.atomic_files import write_text

TAINTED_SHARE: Final = 0.05
"""Share of requests with wrong values from which a time counts as affected.

A window of requests is then part of an incident, and a look's requests forbid a retraining.
"""


class Exemplar(Frozen):
    """One mismatch in full: what was served, what was expected, the evidence, what to do.

    Attributes:
        prediction_id: The prediction it was part of.
        request_time: When it was requested.
        feature: ``view__feature``.
        keys: Entity keys of the request.
        served: Value as the model saw it, as text; None for null.
        expected: Value that should have been served.
        served_event_time: Event time of the row that was served, if one was.
        expected_event_time: Event time of the expected row, if there is one.
        served_created_time: Created time of the row that was served.
        served_write_time: When it was written online.
        expected_created_time: Created time of the expected row.
        evidence: One sentence.
        mend: What to do about it, in a sentence.
    """

    prediction_id: str
    request_time: datetime
    feature: str
    keys: dict[str, str]
    served: str | None
    expected: str | None
    served_event_time: datetime | None
    expected_event_time: datetime | None
    served_created_time: datetime | None = None
    served_write_time: datetime | None = None
    expected_created_time: datetime | None = None
    evidence: str
    mend: str = ""


class Parity(Frozen):
    """How many values were compared, and how many of them differ."""

    values: int
    unequal: int


class Staleness(Frozen):
    """How old correct values of a view were when they were served.

    Attributes:
        values: Requests that were served a row of the view in which every value was correct.
        age_s_p50: Median of request time - event time in seconds; within 2.5%.
        age_s_p99: 99th percentile of it.
    """

    values: int
    age_s_p50: float
    age_s_p99: float


class Effect(Frozen):
    """What wrong values did to predictions, against predictions for the expected values.

    Attributes:
        requests: Predictions with a wrong value.
        scored: Those of them that the model could predict again.
        mean_change: Mean absolute change of the probability.
        max_change: Largest absolute change of it.
        flipped: Decisions at the threshold that would have been different.
    """

    requests: int
    scored: int
    mean_change: float
    max_change: float
    flipped: int


class FieldParity(Frozen):
    """A field of the request that is a feature as well, where both have a value.

    Attributes:
        field: The request's field.
        feature: ``view__feature`` of the same name.
        values: Requests in which both have a value.
        unequal: Requests in which the values differ.
    """

    field: str
    feature: str
    values: int
    unequal: int


class LogDamage(Frozen):
    """Records that could not be compared, because they fail their checksum or schema.

    Attributes:
        place: The file; ``segments`` for rows that were lost before they reached a file.
        rows: How many, as far as is known.
        start: First request time of them; None where that is not known.
        end: Last request time of them.
        problem: What is wrong.
    """

    place: str
    rows: int
    start: datetime | None
    end: datetime | None
    problem: str


class ParityReport(Frozen):
    """Served values against expected ones, for the requests of [start, end).

    Attributes:
        clock: Clock of the expected values.
        requests: Predictions of that time, damaged ones included.
        values: Their feature values.
        equal: Values that are the same bit for bit.
        causes: Cause → number of unequal values.
        views: View → cause → number of unequal values.
        features: ``view__feature`` → values and unequal values.
        hours: Begin of the hour, as ISO text → values and unequal values.
        exemplars: Up to three mismatches for each cause.
        unstamped: Views from an online store that reports no created time, write time or
            definition of a row. Some causes cannot be recognized there.
        staleness: View → age of the correct values when they were served.
        effect: What all wrong values did; None without any.
        effects: Cause → what wrong values of it did; a request can have several causes.
        request_fields: Request fields against features of the same name.
        damage: Records that could not be compared.
        read: Predictions that this run compared; earlier runs had compared the others.
        reopened: Predictions that were compared again because of late history.
    """

    model: str
    start: datetime
    end: datetime
    clock: str = "knowledge"
    requests: int
    values: int
    equal: int
    causes: dict[Cause, int]
    views: dict[str, dict[Cause, int]]
    features: dict[str, Parity] = Field(default_factory=dict)
    hours: dict[str, Parity] = Field(default_factory=dict)
    exemplars: dict[Cause, list[Exemplar]] = Field(default_factory=dict)
    unstamped: list[str] = Field(default_factory=list)
    staleness: dict[str, Staleness] = Field(default_factory=dict)
    effect: Effect | None = None
    effects: dict[Cause, Effect] = Field(default_factory=dict)
    request_fields: list[FieldParity] = Field(default_factory=list)
    damage: list[LogDamage] = Field(default_factory=list)
    read: int = 0
    reopened: int = 0

    @property
    def unexplained(self) -> int:
        """Unequal values without a cause; always a finding."""
        return self.causes.get(Cause.UNEXPLAINED, 0)


KeyValue = str | int | float | bool | None
"""One part of an entity's key."""


class AffectedKeys(Frozen):
    """Which entities an incident touched.

    Attributes:
        names: Entity keys of the request, in the order of the parts of each key.
        values: The touched keys, ascending, if they are few; empty if they are many.
        first: The smallest of them.
        last: The largest; of many, every key from ``first`` to ``last`` counts as touched.
    """

    names: tuple[str, ...]
    values: tuple[tuple[KeyValue, ...], ...] = ()
    first: tuple[KeyValue, ...]
    last: tuple[KeyValue, ...]


class Incident(Frozen):
    """A period in which a view was served wrongly; its requests are quarantined from training.

    Attributes:
        incident_id: Name of the record.
        view: View whose values were wrong.
        cause: The cause that the audit gives.
        start: First request time that was affected.
        end: Last request time that was affected, of the requests that were looked at.
        found_at: When it was found, by the clock of the requests.
        requests: Predictions affected.
        values: Values affected.
        is_open: Whether it still went on at the last look.
        evidence: One sentence.
        keys: Which entities were affected; None if that is not known, so that all may be.
    """

    incident_id: str
    model: str
    view: str
    cause: Cause
    start: datetime
    end: datetime
    found_at: datetime
    requests: int
    values: int
    is_open: bool
    evidence: str
    keys: AffectedKeys | None = None

    @property
    def status(self) -> Literal["open", "closed"]:
        """The incident's status, for people."""
        return "open" if self.is_open else "closed"


class FeatureDrift(Frozen):
    """How far a feature has moved from its reference.

    Attributes:
        psi: Population stability index over the reference's bins.
        limit: Index from which the feature counts as drifted.
        null_share: Share of nulls now.
        null_share_reference: Share of nulls in training.
        drifted: Whether it is past the limit.
    """

    psi: float
    limit: float
    null_share: float
    null_share_reference: float
    drifted: bool


class DriftReport(Frozen):
    """Features and predictions of [start, end) against the contract's reference."""

    rows: int
    features: dict[str, FeatureDrift]
    prediction: FeatureDrift

    @property
    def drifted(self) -> list[str]:
        """Names of the features past their limit, furthest first."""
        moved = {name: drift.psi for name, drift in self.features.items() if drift.drifted}
        return sorted(moved, key=moved.__getitem__, reverse=True)


class PerformanceReport(Frozen):
    """How good predictions were, over requests whose labels have matured.

    Attributes:
        start: First request time looked at, included.
        end: Last request time looked at, excluded.
        requests: Predictions in that time.
        labelled: Predictions with a label.
        positive_share: Share of positive labels.
        mean_prediction: Mean predicted probability.
        metrics: ``log_loss``, ``brier``, ``auc``, ``ece``.
        slices: Slice column → value → metrics, for values with enough rows.
        label_delays: Hours after a request → share of the requests whose label was known by then;
            the last one is when labels count as mature.
        gain_per_request: Log loss that a recalibration learned on the older half of these rows
            saves on the newer half, per request, without the requests of incidents. Training again
            is expected to gain at least as much.
        gain_standard_error: Standard error of it.
    """

    start: datetime
    end: datetime
    requests: int
    labelled: int
    positive_share: float | None = None
    mean_prediction: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    slices: dict[str, dict[str, dict[str, float]]] = Field(default_factory=dict)
    label_delays: dict[str, float] = Field(default_factory=dict)
    gain_per_request: float | None = None
    gain_standard_error: float | None = None


class ViewFreshness(Frozen):
    """How old the values of a view were when they were served.

    Attributes:
        requests: Predictions looked at.
        absent_share: Share without a value (not found, or too old).
        absent_share_reference: The same in training.
        age_s_p50: Median age in seconds, of those with a value.
        age_s_limit: Largest normal age: the 99th percentile in training, plus the time that
            bringing rows online may take. None if its values never changed in training.
        stale: Whether the view is not as fresh as in training.
    """

    requests: int
    absent_share: float
    absent_share_reference: float
    age_s_p50: float | None
    age_s_limit: float | None
    stale: bool


class MonitorReport(Frozen):
    """Everything that a look at a model found; a decision is based on it.

    Attributes:
        model: Model name.
        at: When the look was taken.
        start: First request time looked at, included.
        end: Last request time looked at, excluded.
        contract_hash: Contract of the champion at that time; drift is measured against it.
        parity: Served against expected.
        freshness: View → age of what was served.
        drift: Against the reference; None without requests.
        performance: Since the champion was trained, over matured labels.
        incidents: Incidents that touch [start, end).
    """

    model: str
    at: datetime
    start: datetime
    end: datetime
    contract_hash: str
    parity: ParityReport
    freshness: dict[str, ViewFreshness]
    drift: DriftReport | None
    performance: PerformanceReport
    incidents: list[Incident]


class GateResult(Frozen):
    """One gate applied to a challenger: what was compared, and whether it passed."""

    gate: str
    where: str
    champion: float | None
    challenger: float
    passed: bool


class Decision(Frozen):
    """A decision about retraining, reproducible from the record alone.

    Attributes:
        model: Model name.
        at: When it was taken.
        outcome: ``retrain``; ``refuse`` (something asks for a retraining, and something forbids
            it); or ``nothing``.
        reason: One sentence.
        rule: Version of the rule.
        inputs: Every number that the rule used.
        challenger: Version of the challenger that was trained, if one was.
        gates: The results of its gates.
        promoted: Whether it became champion.
        quarantined_rows: Training rows left out because of incidents.
        repaired_rows: Training rows that incidents touched and that have the expected values.
    """

    model: str
    at: datetime
    outcome: Literal["retrain", "refuse", "nothing"]
    reason: str
    rule: str
    inputs: dict[str, float | int | str | bool | None]
    challenger: str | None = None
    gates: list[GateResult] = Field(default_factory=list)
    promoted: bool = False
    quarantined_rows: int = 0
    repaired_rows: int = 0


Record = TypeVar("Record", bound=Frozen)

_KINDS: dict[type[Frozen], str] = {
    Incident: "incidents",
    MonitorReport: "monitor",
    ParityReport: "parity",
    Decision: "decisions",
}


def save_record(state_dir: Path, record: Frozen, *, model: str, name: str) -> Path:
    """Write a record under ``name``; one that exists under that name is replaced.

    Args:
        state_dir: The repo's state folder.
        record: A record of one of the kinds above.
        model: Model it is about.
        name: File name without ending: ``record_name(time)``, or an incident's id.
    """
    path = _folder(state_dir, type(record), model) / f"{name}.json"
    write_text(path, record.model_dump_json(indent=1))
    return path


def load_records(state_dir: Path, kind: type[Record], *, model: str) -> list[Record]:
    """Read all records of a kind about a model, in the order of their names.

    Raises:
        DamagedError: A file is not such a record.
    """
    records = []
    for path in sorted(_folder(state_dir, kind, model).glob("[!.]*.json")):
        try:
            records.append(kind.model_validate_json(path.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, ValidationError) as error:
            raise DamagedError(f"{path} is not a record that this version can read.") from error
    return records


def record_name(moment: datetime) -> str:
    """A file name that sorts by time.

    >>> record_name(datetime(2013, 7, 1, 12))
    '2013-07-01T120000-1372680000000000'
    """
    return f"{moment:%Y-%m-%dT%H%M%S}-{to_us(moment)}"


def _folder(state_dir: Path, kind: type[Frozen], model: str) -> Path:
    return state_dir / "records" / _KINDS[kind] / model
