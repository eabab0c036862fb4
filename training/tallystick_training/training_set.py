"""Training sets: requests, the features as they could be known, and the truth about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs, label_identity
from tallystick.errors import InputError, Problem
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.quarantine import Bools, Quarantine, touched, view_names
from tallystick.records.record_store import Incident
from tallystick.retrieval.model_features import computed_values, stored_values
from tallystick.retrieval.source_labels import known_labels
from tallystick_training.entity_rows_file import LABEL, Counts
from tallystick_training.population import read_population

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

KNOWLEDGE = VisibilityClock.KNOWLEDGE


@dataclass(frozen=True)
class Dataset:
    """A training set.

    Attributes:
        inputs: What the model takes.
        table: Entity keys, request fields, ``request_time``, every ``view__feature`` value and
            ``label`` (int8, 0 or 1); ordered by the request time, then by the keys.
        times: For the same rows ``view__event_time``, ``view__created_time`` and ``view__status``.
        counts: Rows in and out.
        start: First request time, included.
        end: Last request time, excluded; earlier than was asked for where labels are not mature.
        known_until: Labels known later were not used.
        clock: Clock of the fold.
    """

    inputs: ModelInputs
    table: pa.Table
    times: pa.Table
    counts: Counts
    start: datetime
    end: datetime
    known_until: datetime
    clock: VisibilityClock


def build_dataset(
    repo: Repo,
    model: Model,
    *,
    start: datetime,
    end: datetime,
    known_until: datetime,
    clock: VisibilityClock = KNOWLEDGE,
    incidents: Sequence[Incident] = (),
    repair: bool = False,
    inputs: ModelInputs | None = None,
) -> Dataset:
    """Build the training set of a model.

    A request whose label is not mature at ``known_until`` is left out even if its label is known
    already: labels that come quickly are not like the others, and keeping only them would bias the
    newest part of the set.

    Args:
        repo: The repo, applied.
        model: What to learn.
        start: First request time, included.
        end: Last request time, excluded.
        known_until: Labels that became known later are not used.
        clock: When a row of history counts as visible.
        incidents: Spells of skew; requests that those of this model's views touched are left out.
            One that is open has no end yet.
        repair: Whether to keep these requests where history is not in doubt: its values are those
            that should have been served.
        inputs: What the model takes; read from the registry by default.

    Raises:
        InputError: The end is not after the start, or there is no repairing under the clock.
        DataError: A source cannot be used; all mismatches of it are listed.
        StateError: The repo has not been applied.
        DefinitionError: The definitions cannot serve a model, or an on-demand view fails.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    require_rows(model, start=start, end=end)
    require_expected(clock, repair=repair)
    inputs = repo.inputs(model) if inputs is None else inputs
    population = read_population(repo, model, inputs)
    times = population[REQUEST_TIME]
    population = population.filter(
        pc.and_(pc.greater_equal(times, _moment(start)), pc.less(times, _moment(end)))
    )
    quarantine = quarantine_of(model, inputs, incidents, repair=repair)
    left_out = _touched(quarantine.left_out, population, inputs)
    kept = population.filter(pa.array(~left_out))
    mature_until = known_until - model.label.matures_after
    mature = kept.filter(pc.less(kept[REQUEST_TIME], _moment(mature_until)))
    labelled = _labelled(repo, model, inputs, mature, known_until)
    values = stored_values(
        repo, inputs.views, labelled.drop_columns([LABEL]), clock=clock, with_times=True
    )
    evidence = [
        f"{use.name}__{part}"
        for use in inputs.views
        for part in ("event_time", "created_time", "status")
    ]
    table = computed_values(
        inputs, Transforms.from_repo(repo, inputs), values.drop_columns(evidence)
    )
    return Dataset(
        inputs=inputs,
        table=table.append_column(LABEL, labelled[LABEL]),
        times=values.select(evidence),
        counts=Counts(
            population=population.num_rows,
            quarantined=population.num_rows - kept.num_rows,
            immature=kept.num_rows - mature.num_rows,
            unlabelled=mature.num_rows - labelled.num_rows,
            rows=labelled.num_rows,
            repaired=(
                int(_touched(quarantine.repaired, labelled, inputs).sum()) if repair else None
            ),
        ),
        start=start,
        end=min(end, mature_until),
        known_until=known_until,
        clock=clock,
    )


def require_rows(model: Model, *, start: datetime, end: datetime) -> None:
    """Refuse a training set that must be empty.

    Raises:
        InputError: The end is not after the start.
    """
    if end <= start:
        raise InputError(
            f"The training set of model {model.name!r} would be empty.",
            [Problem("end", f"later than {start.isoformat()}", end.isoformat())],
        )


def require_expected(clock: VisibilityClock, *, repair: bool) -> None:
    """Refuse to repair rows under the clock that gives what was served.

    Raises:
        InputError: The clock is the served one.
    """
    if repair and clock is VisibilityClock.SERVED:
        raise InputError(
            "Nothing can be repaired under the served clock, which gives the values that were "
            "served: leave --repair out, or take --clock knowledge."
        )


def quarantine_of(
    model: Model, inputs: ModelInputs, incidents: Sequence[Incident], *, repair: bool
) -> Quarantine:
    """What becomes of the requests of a model that incidents of its stored views touched.

    What is computed on demand is computed again from history, and so is right by itself.
    """
    return Quarantine.of(incidents, model=model.name, views=view_names(inputs.views), repair=repair)


def content_hash(table: pa.Table) -> str:
    """SHA-256 of a table's names, types and values, in the order of its rows.

    It does not depend on how the columns are cut into chunks, nor on what lies under a null.
    """
    import numpy as np
    import pyarrow as pa

    whole = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        whole.update(f"{field.name}:{field.type}:{len(column)};".encode())
        valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
        whole.update(np.packbits(valid).tobytes())
        values = pa.concat_arrays([pa.array([], field.type), *column.drop_null().chunks])
        batch = pa.record_batch([values], names=[""])
        whole.update(memoryview(batch.serialize()))
    return whole.hexdigest()


def _moment(time: datetime) -> pa.Scalar:
    import pyarrow as pa

    return pa.scalar(time, pa.timestamp("us", tz="UTC"))


def _touched(incidents: Sequence[Incident], requests: pa.Table, inputs: ModelInputs) -> Bools:
    keys = {key.name: requests[key.name] for key in inputs.entity_keys}
    return touched(incidents, requests[REQUEST_TIME], keys)


def _labelled(
    repo: Repo, model: Model, inputs: ModelInputs, requests: pa.Table, known_until: datetime
) -> pa.Table:
    """The requests that have a label, with it, in their order."""
    import pyarrow as pa

    labels = known_labels(repo, model, inputs, known_until=known_until).drop_columns(
        ["known_time", "first_known_time"]
    )
    row = pa.array(range(requests.num_rows), pa.int64())
    joined = requests.append_column("__row", row).join(
        labels, keys=label_identity(model.label.keys), join_type="inner", use_threads=False
    )
    return joined.sort_by("__row").select([*requests.column_names, LABEL]).combine_chunks()
