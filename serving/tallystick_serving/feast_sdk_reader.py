"""Reads features from any online store of Feast's, through Feast's SDK.

Such a store answers with protobuf values and an event time, and says nothing of created time, write
time and definition: they are None in what is read here. The ttl is enforced here, since most stores
and Feast's SDK do not. Views are taken from the registry when a contract is loaded; they must be
defined there as the contract has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tallystick.clock import to_us
from tallystick.definitions.contract import ModelContract, ViewUse
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import (
    ContractError,
    DefinitionError,
    InputError,
    Problem,
    TallystickError,
    UnavailableError,
)
from tallystick.online_store.online_reader import ViewRows
from tallystick.point_in_time.feature_status import Status
from tallystick_serving.feast_protos import EntityProtos, FeatureValues, values_of
from tallystick_serving.thread_pool import Workers

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    Answer: TypeAlias = tuple[datetime | None, Mapping[str, Value] | None]

logger = logging.getLogger(__name__)

THREADS: Final = 16
"""Views that are read at once from a store without an asynchronous read."""
WAITING_MAX: Final = 1_000
"""Reads that may wait for a thread."""
ONE_BY_ONE: Final = frozenset({"remote"})
"""Stores that answer every row of a call with the first one's event time."""


class OnlineCalls:
    """Calls of Feast's online store, off the event loop; the one place where its errors end.

    Args:
        store: Feast's feature store.
        threads: See :data:`THREADS`.
        waiting_max: See :data:`WAITING_MAX`.

    Raises:
        DefinitionError: Feast cannot make the online store.

    Attributes:
        service: The store in messages.
    """

    def __init__(
        self, store: FeatureStore, *, threads: int = THREADS, waiting_max: int = WAITING_MAX
    ) -> None:
        from feast.infra.provider import get_provider

        self._config = store.config
        kind = str(self._config.online_store.type)
        self.service = f"Feast's online store ({kind})"
        self._one_by_one = kind in ONE_BY_ONE
        try:
            self._provider = get_provider(self._config)
            self._asynchronous = bool(self._provider.async_supported.online.read)
        except Exception as error:
            # Any exception: a store may be anybody's code, and lack what it imports.
            raise DefinitionError(
                f"{self.service} cannot be used: {type(error).__name__}: {error}"
            ) from error
        self._workers = Workers(self.service, threads=threads, waiting_max=waiting_max)
        self._complaint = ""

    async def open(self) -> None:
        """Let the store make its connections, if it makes any ahead."""
        try:
            await self._provider.initialize(self._config)
        except Exception as error:  # noqa: BLE001 any store; it may be there when it is asked
            self.complain(error)

    async def close(self) -> None:
        """Close the store's connections; waits for no call that still runs."""
        self._workers.close()
        try:
            await self._provider.close()
            # Feast's Redis store leaves this one open.
            client = getattr(self._provider.online_store, "_client_async", None)
            if client is not None:
                await client.aclose()
        except Exception as error:  # noqa: BLE001 any store; the server ends all the same
            self.complain(error)

    async def read(
        self, table: Any, columns: Sequence[str], entities: Sequence[EntityKey]
    ) -> list[Answer]:
        """Rows of one view, one per entity.

        Raises:
            UnavailableError: The store failed.
            BusyError: Too many reads wait already.
        """
        size = 1 if self._one_by_one else max(len(entities), 1)
        answers: list[Answer] = []
        try:
            for start in range(0, len(entities), size):
                part = list(entities[start : start + size])
                answers += await self._read(table, columns, part)
        except TallystickError:
            raise
        except Exception as error:
            # Any exception: every store has its own. Its text may hold what is no business of
            # whoever asks, so that only the log has it.
            self.complain(error)
            raise UnavailableError(self.service, type(error).__name__) from error
        self._complaint = ""
        return answers

    async def _read(
        self, table: Any, columns: Sequence[str], entities: list[EntityKey]
    ) -> list[Answer]:
        # A list of its own for each call: Feast's Redis store appends to what it is given.
        if self._asynchronous:
            answers = await self._provider.online_read_async(
                self._config, table, entities, list(columns)
            )
        else:
            answers = await self._workers.run(
                lambda: self._provider.online_read(self._config, table, entities, list(columns))
            )
        if len(answers) != len(entities):
            raise ValueError(f"{len(answers)} rows for {len(entities)} entities")
        listed: list[Answer] = list(answers)
        return listed

    def complain(self, error: Exception) -> None:
        """Log what Feast says, once for as long as it says the same."""
        text = f"{type(error).__name__}: {error}"
        if text != self._complaint:
            self._complaint = text
            logger.warning("%s: %s", self.service, text)


@dataclass(frozen=True, slots=True)
class _View:
    """A view as it is read.

    Attributes:
        use: The view as the contract uses it.
        table: The view as Feast's registry has it.
        request_keys: The request's entity key for each join key; None for the key of views
            without entities, which no request names.
        keys: Makes Feast's entity keys.
        features: The columns wanted.
    """

    use: ViewUse
    table: Any
    request_keys: tuple[str | None, ...]
    keys: EntityProtos
    features: dict[str, FeatureValues]

    @classmethod
    def of(cls, use: ViewUse, table: Any) -> _View:
        return cls(
            use=use,
            table=table,
            request_keys=tuple(use.key_map.get(key) for key in use.spec.key_names),
            keys=EntityProtos(use.spec.join_keys),
            features={
                column.name: FeatureValues(use.spec.name, column)
                for column in use.spec.columns
                if column.name in use.columns
            },
        )

    def rows(
        self,
        answers: Sequence[Answer],
        places: Sequence[int | None],
        *,
        request_time_us: int,
    ) -> ViewRows:
        """What was read, in the order of the request's rows.

        Args:
            answers: What the store answered for each entity key.
            places: For each row the place of its entity key, None if it has none.
            request_time_us: Time against which the ttl holds.
        """
        cells = values_of(self.features, [row for _, row in answers])
        events = [None if event is None else to_us(event) for event, _ in answers]
        status = []
        for place, (_, row) in enumerate(answers):
            # Some stores give a row of nulls for an unknown key, at the beginning of time or at
            # none; and a time that is the beginning of time is not known.
            events[place] = events[place] or None
            found = row is not None and (
                events[place] is not None
                or any(column[place] is not None for column in cells.values())
            )
            status.append(self._status(events[place], request_time_us) if found else None)
        for column in cells.values():
            for place, each in enumerate(status):
                if each is not Status.PRESENT:
                    column[place] = None
        return ViewRows(
            status=[(None if at is None else status[at]) or Status.NOT_FOUND for at in places],
            event_us=[None if at is None or not status[at] else events[at] for at in places],
            created_us=[None] * len(places),
            write_us=[None] * len(places),
            definition=[None] * len(places),
            values={
                name: [None if at is None else column[at] for at in places]
                for name, column in cells.items()
            },
        )

    def _status(self, event_us: int | None, request_time_us: int) -> Status:
        """Whether a row may be used; one whose age is not known may not where there is a ttl."""
        ttl_us = self.use.spec.ttl_us
        if ttl_us is None or (event_us is not None and event_us >= request_time_us - ttl_us):
            return Status.PRESENT
        return Status.OUTSIDE_MAX_AGE


class SDKReader:
    """Reads the views of one contract.

    Args:
        calls: The online store.
        views: Each view's use with the view in the registry.

    Raises:
        DefinitionError: A view has keys that no online store can use.
    """

    def __init__(self, calls: OnlineCalls, views: Sequence[tuple[ViewUse, Any]]) -> None:
        self._calls = calls
        self._views = [_View.of(use, table) for use, table in views]

    async def read(
        self, keys: Mapping[str, Sequence[Any]], *, request_time_us: int
    ) -> dict[str, ViewRows]:
        """Read all views for all rows of a request.

        Args:
            keys: Entity key of the request → its value in each row; None where there is none. All
                have the same length.
            request_time_us: Time of the request, against which the ttl holds.

        Returns:
            Name of the view's use → its rows, in the order of the request's.

        Raises:
            InputError: A key is missing, or of another type than the view's.
            UnavailableError: The store failed, or too many reads wait for it already.
        """
        needed = {key for view in self._views for key in view.request_keys if key is not None}
        if missing := needed - keys.keys():
            raise InputError(
                "The request lacks entity keys.",
                [Problem(key, "a value in each row", "none") for key in sorted(missing)],
            )
        no_key = [""] * len(next(iter(keys.values()), ()))
        wanted = [
            view.keys.of([no_key if key is None else keys[key] for key in view.request_keys])
            for view in self._views
        ]
        reads = [
            asyncio.ensure_future(self._calls.read(view.table, view.use.columns, entities))
            for view, (entities, _) in zip(self._views, wanted, strict=True)
        ]
        try:
            found = await asyncio.gather(*reads)
        except BaseException:
            # The others' answers are no longer wanted, nor is what they would complain of.
            for read in reads:
                read.cancel()
            raise
        return {
            view.use.name: view.rows(answers, places, request_time_us=request_time_us)
            for view, answers, (_, places) in zip(self._views, found, wanted, strict=True)
        }

    async def probe(self) -> None:
        """Read one key that need not exist, as a sign of life.

        Raises:
            UnavailableError: The store gave none.
        """
        for view in self._views[:1]:
            await self._calls.read(view.table, view.use.columns, [view.keys.blank()])


class SDKReaders:
    """Any online store of Feast's; to be made and used on one event loop.

    Args:
        store: Feast's feature store of the repo.

    Raises:
        DefinitionError: Feast cannot make the online store.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._calls = OnlineCalls(store)
        self._latest: SDKReader | None = None

    @property
    def service(self) -> str:
        """The store in messages."""
        return self._calls.service

    @property
    def keeps_time(self) -> bool:
        """A call in a thread takes as long as it takes."""
        return False

    async def open(self) -> None:
        """Let the store make its connections, if it makes any ahead."""
        await self._calls.open()

    def reader(self, contract: ModelContract) -> SDKReader:
        """The reader of a contract's views, after comparing them with the registry's.

        Raises:
            ContractError: The registry lacks a view, or has it otherwise; all are listed.
            DefinitionError: A view has keys that no online store can use.
            UnavailableError: The registry cannot be read.
        """
        tables = self._tables([use.spec.name for use in contract.views])
        problems = []
        for use in contract.views:
            table = tables[use.spec.name]
            ours = f"definition {use.spec.definition_hash}"
            theirs = "absent"
            if table is not None:
                theirs = f"definition {ViewSpec.from_feast(table).definition_hash}"
            if ours != theirs:
                problems.append(Problem(f"view {use.spec.name}", ours, theirs))
        if problems:
            raise ContractError(
                f"The contract of {contract.model!r} does not fit the registry, and "
                f"{self.service} does not say how its rows are defined.",
                problems,
                hint="Undo the change and register it:  tally apply ; or train again:  "
                f"tally train {contract.model}",
            )
        self._latest = SDKReader(
            self._calls, [(use, tables[use.spec.name]) for use in contract.views]
        )
        return self._latest

    def _tables(self, names: Sequence[str]) -> dict[str, Any]:
        """The registry's views by name, as it is now; None for those that it lacks."""
        from feast.errors import FeastObjectNotFoundException

        found: dict[str, Any] = {}
        try:
            self._store.refresh_registry()
            for name in names:
                try:
                    # Not the store's method of that name, which hides the key of views without.
                    found[name] = self._store.registry.get_feature_view(
                        name, self._store.project, allow_cache=True
                    )
                except FeastObjectNotFoundException:
                    found[name] = None
        except Exception as error:
            # Any exception: a registry may be a file, a database or a service.
            self._calls.complain(error)
            raise UnavailableError("Feast's registry", type(error).__name__) from error
        return found

    async def ping(self) -> None:
        """Read a key of the contract that was loaded last.

        Raises:
            UnavailableError: The store gave no answer.
        """
        if self._latest is not None:
            await self._latest.probe()

    async def close(self) -> None:
        """Close the store's connections."""
        await self._calls.close()
