"""Logged requests that incidents touched, with the values that should have been served."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.model_bundle.bundle import load_transforms
from tallystick.prediction_log.log_reader import LogPart
from tallystick.records.quarantine import Bools, Quarantine, touched, view_names
from tallystick.records.record_store import Incident
from tallystick.retrieval.expected_values import expected_values, recomputed

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo


def logged_quarantine(
    part: LogPart, inputs: ModelInputs, incidents: Sequence[Incident], *, repair: bool
) -> Quarantine:
    """What becomes of logged requests that incidents touched.

    Unlike in history, what was computed on demand is as it was served, right or wrong: incidents of
    on-demand views count as well.

    Args:
        part: The requests.
        inputs: What the model takes; only incidents of its views count.
        incidents: All of the model's.
        repair: Whether to repair such requests rather than leave them out.
    """
    names = {use.name for use in inputs.views}
    uses = [use for use in part.contract.views if use.name in names]
    views = view_names(uses) | {spec.name for spec in inputs.transforms}
    return Quarantine.of(incidents, model=inputs.model, views=views, repair=repair)


def touched_rows(incidents: Sequence[Incident], part: LogPart) -> Bools:
    """Whether any of the incidents touched each logged request; of shape (requests,)."""
    keys = {key.name: part.table[f"entity.{key.name}"] for key in part.contract.entity_keys}
    return touched(incidents, part.table[REQUEST_TIME], keys)


def repaired(repo: Repo, part: LogPart, incidents: Sequence[Incident]) -> pa.Table:
    """The log with the expected values where incidents touched it.

    Those of a stored view come from history. On-demand features that depend on them, or were
    computed wrongly, are computed again by the contract's frozen functions.

    Args:
        repo: Where history and the contract's bundle are.
        part: Logged requests.
        incidents: What touched some of them; each can be repaired.

    Raises:
        DataError: A source is not as declared.
        StateError: The contract's bundle is not there.
        DamagedError: It is not what was written.
        DefinitionError: A function fails.
    """
    import pyarrow as pa

    contract, table = part.contract, part.table
    wrong: dict[str, Bools] = {}
    for use in contract.views:
        rows = _touched_in({use.name, use.spec.name}, incidents, part)
        if not rows.any():
            continue
        found = expected_values(repo, contract, table.filter(pa.array(rows)), uses=[use])
        values = {name: found[name] for name in (f"{use.name}__{each}" for each in use.columns)}
        table = _replaced(table, rows, values)
        wrong |= dict.fromkeys(values, rows)
    outputs: dict[str, Bools] = {}
    for spec in contract.transforms:
        rows = _touched_in({spec.name}, incidents, part)
        for source in spec.inputs.values():
            rows = rows | wrong.get(source, False)
        if rows.any():
            outputs |= {f"{spec.name}__{output.name}": rows for output in spec.outputs}
    if not outputs:
        return table
    every = np.logical_or.reduce(list(outputs.values()))
    transforms = load_transforms(repo.state_dir, contract.model, contract.contract_hash)
    computed = recomputed(contract, transforms, table.filter(pa.array(every)))
    for name, rows in outputs.items():
        table = _replaced(table, rows, {name: computed[name].filter(pa.array(rows[every]))})
    return table


def _touched_in(names: Collection[str], incidents: Sequence[Incident], part: LogPart) -> Bools:
    return touched_rows([each for each in incidents if each.view in names], part)


def _replaced(table: pa.Table, rows: Bools, values: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """The log with other values of some features in some rows.

    Args:
        table: The log.
        rows: Which rows, of shape (rows,).
        values: ``view__feature`` → one value for each of these rows.
    """
    import pyarrow as pa

    # By position, since Arrow has no replacement for values of every type.
    position = np.arange(table.num_rows)
    position[rows] = table.num_rows + np.arange(rows.sum())
    for name, new in values.items():
        index = table.schema.get_field_index(f"feature.{name}")
        old = table[index]
        both = pa.chunked_array([*old.chunks, *new.cast(old.type).chunks], old.type)
        table = table.set_column(index, table.schema.field(index), both.take(pa.array(position)))
    return table
