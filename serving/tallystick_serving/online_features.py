"""Answers to ``/get-online-features`` without Feast, where Feast would only read the store.

A *plan* says how a feature service or a list of features is read; it is made once, from the
registry. With a plan a request is one read of the online store, and the answer is written column
by column, equal to Feast's to the byte. Where Feast does more (on-demand views, other stores, keys
that it would coerce), there is no plan, and Feast answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from tallystick.definitions.contract import ViewUse
from tallystick.online_store.online_reader import OnlineReader
from tallystick.point_in_time.feature_status import Status
from tallystick_serving.json_columns import feast_json_column, moments

if TYPE_CHECKING:
    from feast import FeatureStore

    from tallystick.online_store.redis_connection import ReadClient

_KEY_TYPES: Final = frozenset({"INT32", "INT64", "STRING"})
"""Types of keys that need no conversion between JSON and the store."""
_NO_TIME: Final = "1970-01-01T00:00:00Z"
PLANS_MAX: Final = 1_000

logger = logging.getLogger(__name__)

Request: TypeAlias = tuple[str | None, tuple[str, ...], bool]
"""The feature service or the features of a request, and whether it requires full names."""


class FeaturePlans:
    """The plans of earlier requests.

    Args:
        client: The client of Redis; None for another online store, which has no plans.
    """

    def __init__(self, client: ReadClient | None) -> None:
        self._client = client
        self._plans: dict[Request, FeaturePlan | None] = {}
        self._registry: Any = None
        self._making = threading.Lock()

    def find(self, content: Mapping[str, Any]) -> FeaturePlan | None:
        """The plan for the body of a request, if there is one."""
        if content.get("include_feature_view_version_metadata"):
            return None
        try:
            return self._plans.get(
                (
                    content.get("feature_service"),
                    tuple(content.get("features", ())),
                    content.get("full_feature_names", False),
                )
            )
        except TypeError:  # a malformed body, which the route reports
            return None

    def learn(self, store: FeatureStore, request: Request) -> None:
        """Make a plan for a request that has none; in a thread."""
        if self._client is None or request in self._plans:
            return
        with self._making:
            if len(self._plans) >= PLANS_MAX:
                self._plans = {}
            self._plans[request] = self._made(store, request)

    def renew(self, store: FeatureStore) -> None:
        """Make all plans again if the registry has changed; in a thread."""
        with self._making:  # or a plan of the old registry, made meanwhile, would stay
            registry = store.registry.proto().SerializeToString(deterministic=True)
            if registry == self._registry:
                return
            self._plans = {request: self._made(store, request) for request in list(self._plans)}
            self._registry = registry

    def _made(self, store: FeatureStore, request: Request) -> FeaturePlan | None:
        try:
            return make_plan(store, self._client, request)
        except Exception as error:  # noqa: BLE001 Feast answers the request with it
            logger.debug("There is no plan for %s: %s", request, error)
            return None


class FeaturePlan:
    """How one set of features is read and answered.

    Args:
        reader: Reads the views.
        uses: The views, in the order in which they are answered.
        keys: Join keys that a request must have.
        full_names: Whether names of features include the names of their views.
    """

    def __init__(
        self,
        reader: OnlineReader,
        uses: Sequence[ViewUse],
        keys: frozenset[str],
        *,
        full_names: bool,
    ) -> None:
        self.keys = keys
        self._reader = reader
        self._columns: list[tuple[str, list[tuple[str, Any]]]] = []
        for use in uses:
            dtypes = {column.name: column.dtype for column in use.spec.columns}
            as_json = [feast_json_column(dtypes[column]) for column in use.columns]
            self._columns.append((use.name, list(zip(use.columns, as_json, strict=True))))
        self._names = [
            f"{use.name}__{column}" if full_names else column
            for use in uses
            for column in use.columns
        ]

    async def answer(self, entities: Mapping[str, Sequence[Any]], *, request_us: int) -> bytes:
        """Read the features of entities.

        Args:
            entities: Join key → its value in each row.
            request_us: Time of the request.

        Returns:
            The answer's JSON.

        Raises:
            InputError: A key has another type than the view's.
            UnavailableError: The online store did not answer in time.
        """
        read = await self._reader.read(entities, request_time_us=request_us)
        count = len(next(iter(entities.values())))
        statuses: Any = [Status.PRESENT] * count
        times: Any = [_NO_TIME] * count
        results = [
            {"values": values, "statuses": statuses, "event_timestamps": times}
            for values in entities.values()
        ]
        for view, columns in self._columns:
            rows = read[view]
            times = orjson.Fragment(moments(rows.event_us))
            statuses = orjson.Fragment(orjson.dumps(rows.status))
            for column, as_json in columns:
                values = rows.values[column]
                own = statuses
                if not rows.is_complete and isinstance(values, list) and None in values:
                    own = _with_nulls(rows.status, values)
                # Written out, and not by a function: this runs for each feature of a request.
                results.append(
                    {"values": as_json(values), "statuses": own, "event_timestamps": times}
                )
        return orjson.dumps(
            {"results": results, "metadata": {"feature_names": [*entities, *self._names]}},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )


def make_plan(store: FeatureStore, client: Any, request: Request) -> FeaturePlan | None:
    """Make a plan from Feast's registry; None if Feast has to answer.

    Args:
        store: Feast's store.
        client: The client of Redis.
        request: The requested features.

    Raises:
        FeastError: There is no such service, view or feature.
    """
    from feast import utils

    from tallystick.online_store.feast_reads import spec_of

    feature_service, features, full_names = request
    requested: Any = list(features)
    if feature_service:
        requested = store.get_feature_service(feature_service, allow_cache=True)
    if not _is_plain(store, requested):
        return None
    context = utils._get_online_request_context(  # noqa: SLF001 - Feast has no public form of it
        store.registry, store.project, requested, full_names
    )
    _, on_demand, _, _, _, grouped, _, needed, without_entity = context
    if on_demand or needed or without_entity:
        return None
    uses = []
    for table, columns in grouped:
        spec = spec_of(table)
        mapped = table.projection.join_key_map
        use = ViewUse(
            spec=spec,
            name=table.projection.name_to_use(),
            key_map={key: mapped.get(key, key) for key in spec.key_names},
            columns=tuple(columns),
        )
        if not _is_answered_here(use):
            return None
        uses.append(use)
    if len({use.name for use in uses}) < len(uses):
        return None
    return FeaturePlan(
        OnlineReader(client, store.project, uses),
        uses,
        frozenset(key for use in uses for key in use.key_map.values()),
        full_names=full_names,
    )


def _is_plain(store: FeatureStore, requested: Any) -> bool:
    """Whether Feast would answer with the store's rows as they are."""
    config = store.config
    if getattr(config.registry, "enable_online_feature_view_versioning", False):
        return False
    if getattr(getattr(config, "auth_config", None), "type", "no_auth") != "no_auth":
        return False
    return not getattr(requested, "precompute_online", False)


def _is_answered_here(use: ViewUse) -> bool:
    dtypes = {column.name: column.dtype for column in use.spec.columns}
    return all(key.dtype in _KEY_TYPES for key in use.spec.join_keys) and all(
        column in dtypes and feast_json_column(dtypes[column]) is not None for column in use.columns
    )


def _with_nulls(statuses: Sequence[Status], values: Sequence[Any]) -> list[Status]:
    return [
        Status.NULL_VALUE if value is None and status is Status.PRESENT else status
        for status, value in zip(statuses, values, strict=True)
    ]
