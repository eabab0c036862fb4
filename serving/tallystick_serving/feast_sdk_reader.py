"""Reads features from any online store of Feast, through Feast's SDK.

Such a store answers with protobuf values and an event time, but without created time, write time
and definition: these are None in the rows read here. The ttl is enforced here, because most stores
and Feast's SDK do not. The views come from the registry when a contract is loaded; their
definitions must equal the contract's.
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
    Problem,
    TallystickError,
    UnavailableError,
)
from tallystick.online_store.online_reader import ViewRows
from tallystick.point_in_time.feature_status import Status
from tallystick_serving.feast_protos import EntityProtos, FeatureValues
from tallystick_serving.thread_pool import ThreadPool

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    Answer: TypeAlias = tuple[datetime | None, Mapping[str, Value] | None]

logger = logging.getLogger(__name__)

THREADS: Final = 16
"""Reads that run at once in a store that has no asynchronous read."""
WAITING_MAX: Final = 1_000
"""Reads that may wait for a thread."""
ONE_BY_ONE: Final = frozenset({"remote"})
"""Stores that answer all rows of a call with the event time of the first."""


@dataclass(frozen=True, slots=True)
class _View:
    """A view as it is read.

    Attributes:
        use: The view as the contract uses it.
        table: The view as Feast's registry has it.
        request_keys: The request's entity key for each join key; None for the key of a view without
            entities, which requests do not have.
        keys: Makes Feast's entity keys.
        features: The columns to read.
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
        positions: Sequence[int | None],
        *,
        request_time_us: int,
    ) -> ViewRows:
        """The rows of a request.

        Args:
            answers: The store's answer for each entity key.
            positions: For each row of the request the position of its entity key in ``answers``,
                None if a key value is null.
            request_time_us: Request time, for the ttl.
        """
        cells = {
            name: [None if row is None else feature.of(row.get(name)) for _, row in answers]
            for name, feature in self.features.items()
        }
        events = [None if event is None else to_us(event) for event, _ in answers]
        status = []
        for number, (_, row) in enumerate(answers):
            # Some stores answer an unknown key with a row of nulls and no event time or 1970; 1970
            # in a row with values means that its event time is unknown.
            event_us = events[number] = events[number] or None
            is_found = row is not None and (
                event_us is not None or any(cell[number] is not None for cell in cells.values())
            )
            status.append(self._status(event_us, request_time_us) if is_found else None)
        for column in cells.values():
            for number, found in enumerate(status):
                if found is not Status.PRESENT:
                    column[number] = None
        return ViewRows(
            status=[(None if at is None else status[at]) or Status.NOT_FOUND for at in positions],
            event_us=[None if at is None or not status[at] else events[at] for at in positions],
            created_us=[None] * len(positions),
            write_us=[None] * len(positions),
            definition=[None] * len(positions),
            values={
                name: [None if at is None else column[at] for at in positions]
                for name, column in cells.items()
            },
        )

    def _status(self, event_us: int | None, request_time_us: int) -> Status:
        """The status of a row that was found; with a ttl, a row of unknown age is too old."""
        ttl_us = self.use.spec.ttl_us
        if ttl_us is None or (event_us is not None and event_us >= request_time_us - ttl_us):
            return Status.PRESENT
        return Status.OUTSIDE_MAX_AGE


class SDKReader:
    """Reads the views of one contract.

    Args:
        client: The online store.
        views: Each view's use with the view in the registry.

    Raises:
        DefinitionError: A view has keys that no online store can use.
    """

    def __init__(self, client: SDKStoreClient, views: Sequence[tuple[ViewUse, Any]]) -> None:
        self._client = client
        self._views = [_View.of(use, table) for use, table in views]

    async def read(
        self, keys: Mapping[str, Sequence[Any]], *, request_time_us: int
    ) -> dict[str, ViewRows]:
        """Read all views for all rows of a request; see ``OnlineReader.read``.

        Raises:
            InputError: A key is of another type than the view's.
            UnavailableError: The store failed, or too many reads wait for it already.
        """
        no_key = [""] * len(next(iter(keys.values()), ()))
        entities = [
            view.keys.of([no_key if key is None else keys[key] for key in view.request_keys])
            for view in self._views
        ]
        reads = [
            asyncio.ensure_future(self._client.read_rows(view.table, view.use.columns, protos))
            for view, (protos, _) in zip(self._views, entities, strict=True)
        ]
        try:
            async with asyncio.timeout(self._client.timeout_s):
                found = await asyncio.gather(*reads)
        except TimeoutError as error:
            raise UnavailableError(
                self._client.service, f"no answer in {self._client.timeout_s} s"
            ) from error
        finally:
            # After a failure the other answers are not needed, nor the warnings about theirs.
            for read in reads:
                read.cancel()
        return {
            view.use.name: view.rows(answers, positions, request_time_us=request_time_us)
            for view, answers, (_, positions) in zip(self._views, found, entities, strict=True)
        }

    async def probe(self) -> None:
        """Read one key that need not exist.

        Raises:
            UnavailableError: The store did not answer.
        """
        for view in self._views[:1]:
            await self._client.read_rows(view.table, view.use.columns, [view.keys.blank()])


class SDKStoreClient:
    """Any online store of Feast, called off the event loop; to be used on one event loop.

    Args:
        store: Feast's feature store of the repo.
        timeout_s: Seconds that a read may take.
        threads: See :data:`THREADS`.

    Raises:
        DefinitionError: Feast cannot create the online store.

    Attributes:
        service: The store in error messages.
        timeout_s: See above.
    """

    def __init__(self, store: FeatureStore, *, timeout_s: float, threads: int = THREADS) -> None:
        from feast.infra.provider import get_provider

        self.timeout_s = timeout_s
        self._store = store
        self._config = store.config
        kind = str(self._config.online_store.type)
        self.service = f"Feast's online store ({kind})"
        self._one_by_one = kind in ONE_BY_ONE
        try:
            self._provider = get_provider(self._config)
            self._asynchronous = bool(self._provider.async_supported.online.read)
        except Exception as error:
            # Any exception: a store may be of any origin, and lack what it imports.
            raise DefinitionError(
                f"{self.service} cannot be used: {type(error).__name__}: {error}"
            ) from error
        self._pool = ThreadPool(self.service, threads=threads, waiting_max=WAITING_MAX)
        self._last_warning = ""
        self._latest: SDKReader | None = None

    async def open(self) -> None:
        """Log what the SDK costs, and let the store open connections, if it opens any ahead."""
        logger.warning(
            "online_store is %s: features are read through Feast's SDK, slower than from "
            "Tallystick's own store, and with fewer guarantees:  tally check  lists them.",
            self._config.online_store.type,
        )
        try:
            await self._provider.initialize(self._config)
        except Exception as error:  # noqa: BLE001 any store; it may answer when it is needed
            self._warn(error)

    async def close(self) -> None:
        """Close the store's connections; do not wait for calls that still run."""
        self._pool.close()
        try:
            await self._provider.close()
            # Feast's Redis store leaves this client open.
            client = getattr(self._provider.online_store, "_client_async", None)
            if client is not None:
                await client.aclose()
        except Exception as error:  # noqa: BLE001 any store; the server ends all the same
            self._warn(error)

    def reader(self, contract: ModelContract) -> SDKReader:
        """A reader of a contract's views, after a comparison with the registry's views.

        Raises:
            ContractError: The registry lacks a view, or defines it differently; all are listed.
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
                f"The contract of {contract.model!r} does not fit the registry, and rows in "
                f"{self.service} do not record their definition.",
                problems,
                hint="Undo the change and register it:  tally apply ; or train again:  "
                f"tally train {contract.model}",
            )
        self._latest = SDKReader(self, [(use, tables[use.spec.name]) for use in contract.views])
        return self._latest

    async def ping(self) -> None:
        """Read one key of the contract that was loaded last; it need not exist.

        Raises:
            UnavailableError: The store did not answer.
        """
        if self._latest is not None:
            await self._latest.probe()

    async def read_rows(
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
                answers += await self._read_part(table, columns, part)
        except TallystickError:
            raise
        except Exception as error:
            # Any exception: every store has its own. Only the log has its text, which may hold
            # what callers must not see.
            self._warn(error)
            raise UnavailableError(self.service, type(error).__name__) from error
        self._last_warning = ""
        return answers

    async def _read_part(
        self, table: Any, columns: Sequence[str], entities: list[EntityKey]
    ) -> list[Answer]:
        # A list of its own for each call: Feast's Redis store appends to its argument.
        if self._asynchronous:
            answers = await self._provider.online_read_async(
                self._config, table, entities, list(columns)
            )
        else:
            answers = await self._pool.run(
                lambda: self._provider.online_read(self._config, table, entities, list(columns))
            )
        if len(answers) != len(entities):
            raise ValueError(f"{len(answers)} rows for {len(entities)} entities")
        return list(answers)

    def _tables(self, names: Sequence[str]) -> dict[str, Any]:
        """The registry's views by name, read now; None for those that it lacks."""
        from feast.errors import FeastObjectNotFoundException

        found: dict[str, Any] = {}
        try:
            self._store.refresh_registry()
            for name in names:
                try:
                    # The store's method of that name hides the key of views without entities.
                    found[name] = self._store.registry.get_feature_view(
                        name, self._store.project, allow_cache=True
                    )
                except FeastObjectNotFoundException:
                    found[name] = None
        except Exception as error:
            # Any exception: a registry may be a file, a database or a service.
            self._warn(error)
            raise UnavailableError("Feast's registry", type(error).__name__) from error
        return found

    def _warn(self, error: Exception) -> None:
        """Log what Feast raised, unless the last warning said the same."""
        text = f"{type(error).__name__}: {error}"
        if text != self._last_warning:
            self._last_warning = text
            logger.warning("%s: %s", self.service, text)
