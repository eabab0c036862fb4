"""The materializer: writes the rows that became visible to the online store.

It goes by the knowledge clock, so that a late row or a correction goes online as soon as it is
known, however old its event time is. It begins where the mark in Redis ends, and saves a new mark
after the last row. A run that was killed has no mark, and is simply run again: writing a row twice
does no harm. See docs/materialization.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tallystick.clock import from_us, process_clock, to_us
from tallystick.definitions.feature_view import Frozen, ViewSpec
from tallystick.errors import DefinitionError, InputError, Problem, StateError, did_you_mean
from tallystick.online_store.materialization_mark import (
    Mark,
    begin_run,
    read_marks,
    save_mark,
)
from tallystick.online_store.row_writer import WriteCounts
from tallystick.point_in_time.rule import VisibilityClock

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.model_inputs import materialized_views


class Materialized(Frozen):
    """What one run did for one view.

    Attributes:
        view: The view.
        until: Rows visible up to here are online now.
        won: Rows that replaced an older one, or were the first of their key.
        lost: Rows older than what was online.
        repeated: Rows that were online already.
    """

    view: str
    until: datetime
    won: int
    lost: int
    repeated: int


class Materializer:
    """Brings the views of a repo online.

    Args:
        repo: An applied repo whose stores are Tallystick's.

    Raises:
        StateError: The repo does not have applied views.
        DefinitionError: The repo uses another online store.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._specs = {
            view.name: ViewSpec.from_feast(view) for view in materialized_views(repo.store)
        }
        self._sources = {name: repo.view_source(name) for name in self._specs}
        if not self._specs:
            raise StateError(
                f"There is nothing to materialize: {repo.path} has no applied online view.",
                hint="Register the definitions first:  tally apply",
            )

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that can be materialized."""
        return tuple(self._specs)

    def marks(self) -> dict[str, Mark]:
        """View → what of it is online, for the views that were materialized.

        Raises:
            DamagedError: A mark cannot be read.
            UnavailableError: The online store did not answer.
        """
        return read_marks(self._client, self._repo.project, self.views)

    def run(
        self,
        *,
        views: Iterable[str] = (),
        until: datetime | None = None,
        again: bool = False,
        progress: Callable[[Materialized], None] = lambda _: None,
    ) -> list[Materialized]:
        """Write what became visible since each view's last run.

        Args:
            views: Names of views. All by default.
            until: The last moment that counts. Now by the process clock by default.
            again: Whether to begin from the beginning of history.
            progress: Called after each view.

        Raises:
            InputError: A view does not exist. All such are listed.
            DataError: A source is not as declared.
            StateError: The view's rows were removed from the online store during the run. Run
                again.
            UnavailableError: The online store did not answer. Run again.
        """
        names = tuple(views) or self.views
        unknown = [name for name in names if name not in self._specs]
        if unknown:
            raise InputError(
                "There is no such online view.",
                [Problem(name, did_you_mean(name, self._specs), "unknown") for name in unknown],
            )
        now_us = process_clock().now_us()
        until_us = now_us if until is None else to_us(until)
        done = []
        for name in names:
            result = self._run_view(name, until_us=until_us, now_us=now_us, again=again)
            done.append(result)
            progress(result)
        return done

    def _run_view(self, name: str, *, until_us: int, now_us: int, again: bool) -> Materialized:
        from tallystick.offline_store.duckdb_store import offline_config
        from tallystick.offline_store.newly_visible import Covered, file_digests, read_newly_visible
        from tallystick.offline_store.view_read import ViewRead

        spec, client, project = self._specs[name], self._client, self._repo.project
        start = begin_run(client, project, name, again=again)
        is_same = start.mark is not None and start.mark.definition == spec.definition_hash
        before = start.mark if is_same else None
        covered = Covered(start.covered, before.until_us) if before else None
        counts = WriteCounts()

        def write(rows: pa.Table) -> None:
            nonlocal counts
            counts += self._write(spec, rows)

        files = read_newly_visible(
            ViewRead(
                spec=spec,
                source=self._sources[name],
                name=name,
                key_map={},
                columns=spec.column_names,
            ),
            write,
            clock=VisibilityClock.KNOWLEDGE if spec.created_column else VisibilityClock.EVENT,
            until_us=until_us,
            covered=covered,
            config=offline_config(self._repo),
            repo_path=self._repo.path,
        )
        mark = Mark(
            definition=spec.definition_hash,
            epoch=start.epoch,
            # Never ahead of the clock: rows that come to be known until then would be missed.
            until_us=min(until_us, now_us),
            files=len(files.signature),
            table_version=files.table_version,
            rows_written=counts.won + (before.rows_written if before else 0),
        )
        # A run up to an earlier moment than the last one leaves the last one's mark as it is.
        is_later = before is None or before.until_us <= mark.until_us
        if is_later and not save_mark(client, project, name, mark, file_digests(files)):
            raise StateError(
                f"The rows of view {name} were removed from the online store while they were "
                "being written.",
                hint="Write them again:  tally materialize",
            )
        return Materialized(
            view=name,
            until=from_us(until_us),
            won=counts.won,
            lost=counts.lost,
            repeated=counts.repeated,
        )

    def _write(self, spec: ViewSpec, rows: pa.Table) -> WriteCounts:
        from tallystick.online_store.journal.write_journal import journal_of
        from tallystick.online_store.table_writer import write_table

        config = self._repo.store.config.online_store
        return write_table(
            self._client,
            self._repo.project,
            spec,
            rows,
            write_us=process_clock().now_us(),
            key_ttl_s=config.key_ttl_seconds,
            journal=journal_of(self._repo.state_dir) if config.journal else None,
        )

    @cached_property
    def _client(self) -> Any:
        from tallystick.online_store import RedisOnlineStoreConfig
        from tallystick.online_store.redis_connection import connect

        config = self._repo.store.config.online_store
        if not isinstance(config, RedisOnlineStoreConfig):
            found = str(getattr(config, "type", config))
            raise DefinitionError(
                f"{self._repo.path / 'feature_store.yaml'} uses another online store.",
                [Problem("online_store.type", "tallystick.online_store.RedisOnlineStore", found)],
                hint="Change it, or materialize with Feast:  feast materialize-incremental …",
            )
        registry = self._repo.store.config.registry
        if getattr(registry, "enable_online_feature_view_versioning", False):
            raise DefinitionError(
                "The registry separates versions of a view, which only Feast can materialize.",
                hint="Materialize with Feast:  feast materialize-incremental …",
            )
        return connect(config, self._repo.path)
