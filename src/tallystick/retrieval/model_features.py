"""The features of a model for entity rows, from history.

Training builds its data sets with this, and the audit its expected values: one function, so that
neither can drift from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs, ViewUse
from tallystick.definitions.feature_types import arrow_type
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.offline_store.view_read import ViewRead


def stored_values(
    repo: Repo,
    uses: Sequence[ViewUse],
    entity_rows: pa.Table,
    *,
    clock: VisibilityClock,
    with_times: bool = False,
) -> pa.Table:
    """Entity rows with the stored features of ``uses`` at their request times.

    Args:
        repo: Where the views' sources are.
        uses: Views to read.
        entity_rows: Entity keys and :data:`REQUEST_TIME`, with anything else.
        clock: When a row of history counts as visible.
        with_times: Whether to add ``view__event_time``, ``view__created_time``, ``view__status``.

    Returns:
        The columns and rows of the entity rows, in order, then ``view__feature`` columns.

    Raises:
        DataError: A source cannot be read as declared.
        InputError: The entity rows lack a key.
    """
    from tallystick.offline_store.duckdb_store import offline_config
    from tallystick.offline_store.point_in_time_join import point_in_time

    return point_in_time(
        entity_rows=entity_rows,
        request_time=REQUEST_TIME,
        reads=view_reads(repo, uses),
        clock=clock,
        config=offline_config(repo),
        repo_path=repo.path,
        with_times=with_times,
    )


def view_reads(repo: Repo, uses: Sequence[ViewUse]) -> list[ViewRead]:
    """How the offline store reads the views of ``uses``."""
    from tallystick.offline_store.view_read import ViewRead

    return [
        ViewRead(
            spec=use.spec,
            source=repo.view_source(use.spec.name),
            name=use.name,
            key_map=use.key_map,
            columns=use.columns,
        )
        for use in uses
    ]


def computed_values(inputs: ModelInputs, transforms: Transforms, table: pa.Table) -> pa.Table:
    """Add the on-demand features to a table that has stored features and request fields."""
    import pyarrow as pa

    if not inputs.transforms:
        return table
    needed = {source for spec in inputs.transforms for source in spec.inputs.values()}
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in needed}
    for name, values in transforms.compute(inputs, columns).items():
        dtype = arrow_type(inputs.value_columns[name])
        table = table.append_column(name, pa.array(values, type=dtype))
    return table
