"""Entity rows through a file and a stream of batches, as one table again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tallystick.offline_store.point_in_time_join import stream_point_in_time, workspace


def streamed(entity_rows, folder, *, config=None, **options):
    """The answer to entity rows, read in batches; the folder is as it was afterwards."""
    path = Path(folder) / ".entity_rows.parquet"
    pq.write_table(entity_rows, path)
    with (
        workspace(Path(folder) / ".answer.parquet", config) as space,
        stream_point_in_time(entity_rows=path, workspace=space, **options) as batches,
    ):
        answer = pa.concat_tables(batches)
    path.unlink()
    return answer
