"""Brings history online: the fold, run forward to a moment.

A run writes the rows that became visible since the last run, by the knowledge clock. So a row that
arrives late, or a correction, is written as soon as it is known, however old its event time is; a
watermark on event time would miss it. Writing a row again does no harm, so a run that was killed is
simply run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import from_us, process_clock, to_us
from tallystick.definitions.feature_view import Frozen, ViewSpec
from tallystick.errors import (
    DamagedError,
    DefinitionError,
    InputError,
    Problem,
    StateError,
    did_you_mean,
)
from tallystick.online_store.definition_tags import store_identity
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.storage.atomic_files import write_text

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo


class Materialized(Frozen):
    """What one run did for one view.

    Attributes:
        view: The view.
        after: Rows visible up to here were online already; None for a first run.
        until: Rows visible up to here are online now.
        won: Rows that replaced an older one, or were the first of their key.
        lost: Rows older than what was online.
        repeated: Rows that were online already.
    """

    view: str
    after: datetime | None
    until: datetime
    won: int
    lost: int
    repeated: int


class Mark(Frozen):
    """Up to when a view is online.

    Attributes:
        until_us: Rows visible up to this moment (microseconds since 1970) are online.
        store: Identity of the online store; another one holds nothing yet.
        definition: Hash of the definition under which they were written.
    """

    until_us: int
    store: str
    definition: str


class Materializer:
    """Writes what became visible to the online store, view by view.

    Args:
        repo: An applied repo whose stores are Tallystick's.

    Raises:
        StateError: The repo has no views; it was not applied.
        DefinitionError: The repo uses another online store.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        # Feast's list leaves out the key that stands for no entity.
        self._specs = {
            view.name: ViewSpec.from_feast(repo.store.get_feature_view(view.name))
            for view in repo.store.list_batch_feature_views()
            if view.online
        }
        if not self._specs:
            raise StateError(
                f"There is nothing to materialize: {repo.path} has no applied online view.",
                hint="Register the definitions first:  tally apply",
            )
        self._path = marks_path(repo.state_dir)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that can be materialized."""
        return tuple(self._specs)

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
            views: Which views; all by default.
            until: Up to when; the process clock's now by default.
            again: Whether to begin from the beginning of history.
            progress: Called after each view.

        Raises:
            InputError: A view does not exist; all such are listed.
            DataError: A source is not as declared.
            UnavailableError: The online store did not answer; run again.
        """
        names = tuple(views) or self.views
        unknown = [name for name in names if name not in self._specs]
        if unknown:
            raise InputError(
                "There is no such online view.",
                [Problem(name, did_you_mean(name, self._specs), "unknown") for name in unknown],
            )
        now = from_us(process_clock().now_us())
        end = now if until is None else until
        marks = {} if again else read_marks(self._path)
        store = store_identity(self._client, self._repo.project)
        done = []
        for name in names:
            definition = self._specs[name].definition_hash
            before = marks.get(name)
            if before is not None and (before.store, before.definition) != (store, definition):
                # What the mark was set for is gone: the store was emptied, or holds old rows.
                before = None
            after = None if before is None else from_us(before.until_us)
            result = self._run_view(name, after, end)
            # Never ahead of the clock: rows that come to be known until then would be missed.
            until_us = max(to_us(min(end, now)), before.until_us if before else 0)
            self._save_mark(name, Mark(until_us=until_us, store=store, definition=definition))
            done.append(result)
            progress(result)
        return done

    def _save_mark(self, view: str, mark: Mark) -> None:
        marks = read_marks(self._path) | {view: mark}
        content = {name: kept.model_dump() for name, kept in marks.items()}
        write_text(self._path, json.dumps(content, indent=1))

    def _run_view(self, name: str, after: datetime | None, until: datetime) -> Materialized:
        import pyarrow as pa

        from tallystick.offline_store.newly_visible import visible_between
        from tallystick.offline_store.view_history import ViewRead
        from tallystick.online_store.bulk_writer import write_table
        from tallystick.online_store.journal.write_journal import journal_of
        from tallystick.retrieval.model_features import offline_config

        spec = self._specs[name]
        config = offline_config(self._repo)
        rows = visible_between(
            ViewRead(
                spec=spec,
                source=self._repo.view_source(name),
                name=name,
                key_map={key: key for key in spec.key_names},
                columns=spec.column_names,
            ),
            after=after,
            until=until,
            clock=VisibilityClock.KNOWLEDGE if spec.created_column else VisibilityClock.EVENT,
            config=config,
            repo_path=self._repo.path,
        )
        renamed = {"event_time": spec.event_column, "created_time": spec.created_column}
        # By name: a time column may be a feature as well, and then has the same values.
        rows = pa.table({renamed.get(name) or name: rows[name] for name in rows.column_names})
        client, online = self._client, self._repo.store.config.online_store
        counts = write_table(
            client,
            self._repo.project,
            spec,
            rows,
            write_us=process_clock().now_us(),
            key_ttl_s=online.key_ttl_seconds,
            journal=journal_of(self._repo.state_dir) if online.journal else None,
        )
        return Materialized(
            view=name,
            after=after,
            until=until,
            won=counts.won,
            lost=counts.lost,
            repeated=counts.repeated,
        )

    @cached_property
    def _client(self) -> Any:
        from tallystick.online_store import RedisOnlineStoreConfig
        from tallystick.online_store.redis_connection import connect

        config = self._repo.store.config.online_store
        if not isinstance(config, RedisOnlineStoreConfig):
            raise DefinitionError(
                f"{self._repo.path / 'feature_store.yaml'} uses another online store.",
                [
                    Problem(
                        "online_store.type",
                        "tallystick.online_store.RedisOnlineStore",
                        str(getattr(config, "type", config)),
                    )
                ],
                hint="Change it, or materialize with Feast:  feast materialize-incremental …",
            )
        registry = self._repo.store.config.registry
        if getattr(registry, "enable_online_feature_view_versioning", False):
            raise DefinitionError(
                "Feast keeps the versions of a view apart online, which only Feast can fill.",
                hint="Materialize with Feast:  feast materialize-incremental …",
            )
        return connect(
            config.connection_string,
            self._repo.path,
            redis_type=config.redis_type,
            sentinel_master=config.sentinel_master,
        )


def marks_path(state_dir: Path) -> Path:
    """The file that says up to when each view is online."""
    return state_dir / "materialized.json"


def read_marks(path: Path) -> dict[str, Mark]:
    """View → up to when its rows are online; may be empty.

    Raises:
        DamagedError: The file cannot be read.
    """
    try:
        marks = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Mark.model_validate(mark) for name, mark in marks.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} does not say what is online.",
            hint="Delete it; the next  tally materialize  then writes all of history again.",
        ) from error
