"""Materialization marks: what of each view is online, stored in Redis beside the rows.

A mark is as old as the rows: a store that is emptied has no marks, one that is restored from a
backup has the marks of the backup, and another store has its own. They lie in one hash for each
project, ``ts3:PROJECT::marks``, with three fields for each view: the mark itself (JSON), the
digests of the source files that it covers, and the epoch.

The epoch is a random text that is set before the first row of a view is written, and removed with
the view's rows. A mark is only saved under the epoch under which its run began. So a run during
which the rows were removed leaves no mark that claims them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tallystick.definitions.feature_view import Frozen
from tallystick.errors import DamagedError
from tallystick.online_store.entity_keys import marks_key
from tallystick.online_store.redis_commands import run_script
from tallystick.online_store.redis_connection import SyncClient, redis_errors

_SAVE: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return 1
"""


class Mark(Frozen):
    """What of a view is online.

    Attributes:
        definition: Hash of the definition under which the rows were written.
        epoch: Changes when the view's rows are removed.
        until_us: Rows of the covered files that were visible by then (microseconds since 1970, by
            the knowledge clock) are online.
        files: Number of source files that are covered.
        table_version: Version of the Delta table that is covered; None for plain files.
        rows_written: Rows that won since the beginning of history was last read.
    """

    definition: str
    epoch: str
    until_us: int
    files: int
    table_version: int | None
    rows_written: int


@dataclass(frozen=True, slots=True)
class RunStart:
    """Where a run of one view begins.

    Attributes:
        epoch: The view's epoch; set if it had none.
        mark: What is online; None for nothing.
        covered: Digests of the source files that the mark covers.
    """

    epoch: str
    mark: Mark | None = None
    covered: frozenset[str] = frozenset()


def begin_run(client: SyncClient, project: str, view: str, *, again: bool = False) -> RunStart:
    """Begin to write a view; with ``again`` from the beginning, whatever the mark says.

    Raises:
        DamagedError: The mark cannot be read.
        UnavailableError: Redis did not answer.
    """
    key, fields = marks_key(project), _fields(view)
    with redis_errors(client):
        pipeline = client.pipeline(transaction=False)
        pipeline.hsetnx(key, fields[0], uuid.uuid4().hex)
        pipeline.hmget(key, fields)
        _, (epoch, mark, files) = pipeline.execute()
    start = RunStart(epoch.decode())
    if again or mark is None:
        return start
    return RunStart(start.epoch, _parsed(view, mark), frozenset(files.decode().split()))


def read_marks(client: SyncClient, project: str, views: Sequence[str]) -> dict[str, Mark]:
    """View → its mark, for the views that have one.

    Raises:
        DamagedError: A mark cannot be read.
        UnavailableError: Redis did not answer.
    """
    with redis_errors(client):
        found = client.hmget(marks_key(project), [_fields(view)[1] for view in views])
    marks = zip(views, found, strict=True)
    return {view: _parsed(view, mark) for view, mark in marks if mark is not None}


def save_mark(
    client: SyncClient, project: str, view: str, mark: Mark, covered: Iterable[str]
) -> bool:
    """Save a mark with the digests of the files that it covers, unless its epoch has ended.

    Returns:
        Whether it was saved.

    Raises:
        UnavailableError: Redis did not answer.
    """
    contents = (mark.epoch, mark.canonical_json(), " ".join(covered))
    pairs = zip(_fields(view), contents, strict=True)
    shared = [text.encode() for pair in pairs for text in pair]
    with redis_errors(client):
        return run_script(client, _SAVE, [(marks_key(project), None)], shared=shared) == [1]


def forget_mark(client: SyncClient, project: str, view: str) -> None:
    """Remove a view's mark and end its epoch.

    Raises:
        UnavailableError: Redis did not answer.
    """
    with redis_errors(client):
        client.hdel(marks_key(project), *_fields(view))


def _fields(view: str) -> tuple[str, str, str]:
    """The fields of a view's epoch, mark and covered files."""
    return f"epoch:{view}", f"mark:{view}", f"files:{view}"


def _parsed(view: str, mark: bytes) -> Mark:
    try:
        return Mark.model_validate_json(mark)
    except ValueError as error:
        raise DamagedError(
            f"The materialization mark of view {view} in Redis cannot be read.",
            hint=f"Write the view again:  tally materialize --again --view {view}",
        ) from error
