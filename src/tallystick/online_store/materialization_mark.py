"""Materialization marks: what of each view is online, kept in Redis beside the rows.

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
from collections.abc import Iterable
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
    mark: Mark | None
    covered: frozenset[str]


def begin_run(client: SyncClient, project: str, view: str, *, again: bool = False) -> RunStart:
    """Begin to write a view.

    Args:
        client: Redis.
        project: Feast project.
        view: The view.
        again: Whether to begin from the beginning of history, whatever the mark says.

    Raises:
        DamagedError: The mark cannot be read.
        UnavailableError: Redis did not answer.
    """
    key = marks_key(project)
    with redis_errors(client):
        pipeline = client.pipeline(transaction=False)
        pipeline.hsetnx(key, _epoch(view), uuid.uuid4().hex)
        pipeline.hmget(key, [_epoch(view), _mark(view), _files(view)])
        _, (epoch, mark, files) = pipeline.execute()
    if again:
        return RunStart(epoch.decode(), None, frozenset())
    return RunStart(epoch.decode(), _read(view, mark), frozenset((files or b"").decode().split()))


def read_marks(client: SyncClient, project: str, views: Iterable[str]) -> dict[str, Mark]:
    """View → its mark, for the views that have one.

    Raises:
        DamagedError: A mark cannot be read.
        UnavailableError: Redis did not answer.
    """
    names = list(views)
    with redis_errors(client):
        found = client.hmget(marks_key(project), [_mark(name) for name in names])
    marks = {name: _read(name, text) for name, text in zip(names, found, strict=True)}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _read(view: str, text: bytes | None) -> Mark | None:
    try:
        return None if text is None else Mark.model_validate_json(text)
    except ValueError as error:
        raise DamagedError(
            f"The materialization mark of view {view} in Redis cannot be read.",
            hint=f"Write the view again:  tally materialize --again --view {view}",
        ) from error


def save_mark(
    client: SyncClient, project: str, view: str, mark: Mark, covered: Iterable[str]
) -> bool:
    """Save a mark, unless its epoch is over; say whether it was saved.

    Args:
        client: Redis.
        project: Feast project.
        view: The view.
        mark: What is online.
        covered: Digests of the source files that it covers.

    Raises:
        UnavailableError: Redis did not answer.
    """
    fields = (_epoch(view), mark.epoch, _mark(view), mark.canonical_json(), _files(view))
    shared = [*(field.encode() for field in fields), " ".join(covered).encode()]
    with redis_errors(client):
        return run_script(client, _SAVE, [(marks_key(project), None)], shared=shared) == [1]


def forget_mark(client: SyncClient, project: str, view: str) -> None:
    """Remove a view's mark and end its epoch; to be called before its rows are removed.

    Raises:
        UnavailableError: Redis did not answer.
    """
    with redis_errors(client):
        client.hdel(marks_key(project), _mark(view), _files(view), _epoch(view))


def _mark(view: str) -> str:
    return f"mark:{view}"


def _files(view: str) -> str:
    return f"files:{view}"


def _epoch(view: str) -> str:
    return f"epoch:{view}"
