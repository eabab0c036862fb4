"""Queries of a view's history, each answered from one version of its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.offline_store.duckdb_connection import connect
from tallystick.offline_store.duckdb_store import offline_config
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.view_history import open_history
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.expected_values import view_clock
from tallystick.retrieval.model_features import view_reads

Answer = TypeVar("Answer")


def query_history(
    repo: Repo,
    use: ViewUse,
    ask: Callable[[History, ViewRead, Any], Answer],
    *,
    columns: Sequence[str] = (),
    clock: VisibilityClock | None = None,
    requested: Mapping[str, Any] | None = None,
) -> Answer:
    """Query a view's history with a DuckDB connection, again if its source changes meanwhile.

    Args:
        repo: An applied repo.
        use: The view.
        ask: What queries.
        columns: The features that are read.
        clock: By default knowledge, or event for a view without created time.
        requested: Columns of the table ``requested`` that the connection has, with a ``row``
            number.

    Raises:
        DataError: The source is not as declared.
    """
    (read,) = view_reads(repo, [use.model_copy(update={"columns": tuple(columns)})])

    def with_connection(history: History) -> Answer:
        with closing(connect(offline_config(repo))) as connection:
            if requested is not None:
                table = pa.table(dict(requested))
                rows = pa.array(np.arange(table.num_rows))
                connection.register("requested", table.append_column("row", rows))
            return ask(history, read, connection)

    return read_steadily(
        lambda: open_history(read, clock=clock or view_clock(use), repo_path=repo.path),
        lambda history: [history.files],
        with_connection,
    )
