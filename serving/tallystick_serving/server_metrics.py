"""The metrics of a server, in the text format of Prometheus; docs/http-api.md lists them."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tallystick.model_bundle.bundle import Champion
from tallystick.point_in_time.feature_status import Status
from tallystick.storage.background_writer import Ledger

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        self._requests = counter("tallystick_requests", "Requests answered.", ["route", "status"])
        self._seconds = Histogram(
            "tallystick_request_seconds",
            "Time from a request's arrival to its answer.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._predictions = counter(
            "tallystick_predictions", "Predictions answered.", ["model", "version"]
        )
        self._statuses = counter(
            "tallystick_view_statuses", "Rows read, by status.", ["model", "view", "status"]
        )
        self.champion_failures = counter(
            "tallystick_champion_failures", "Champions that could not be loaded.", ["model"]
        )
        self._in_flight = Gauge(
            "tallystick_requests_in_flight", "Requests in flight.", registry=self.registry
        )
        self._champions: dict[str, Champion] = {}
        self.registry.register(_ScrapedCollector(partial(_champion_metrics, self._champions)))
        self._children: dict[Any, Any] = {}

    def add_logs(self, ledgers: Mapping[str, Callable[[], Ledger]]) -> None:
        """Report the rows of logs, by name of the log."""
        self.registry.register(_ScrapedCollector(partial(_log_metrics, ledgers)))

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Report the number of requests in flight."""
        self._in_flight.set_function(count)

    def set_champion(self, champion: Champion) -> None:
        """Report which version of a model answers."""
        self._champions[champion.model] = champion

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._child(self._requests, route, str(status)).inc()
        self._child(self._seconds, route).observe(seconds)

    def count_predictions(
        self, champion: Champion, rows: int, statuses: Mapping[str, Sequence[str]]
    ) -> None:
        """Count predictions and, for each view, the statuses of its rows."""
        self._child(self._predictions, champion.model, champion.version).inc(rows)
        for view, listed in statuses.items():
            if listed.count(Status.PRESENT) == rows:
                self._child(self._statuses, champion.model, view, Status.PRESENT).inc(rows)
                continue
            for status, count in Tally(listed).items():
                self._child(self._statuses, champion.model, view, str(status)).inc(count)

    def text(self) -> bytes:
        """All metrics, as Prometheus scrapes them."""
        return generate_latest(self.registry)

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric's child, cached: the library's own look-up takes longer than counting."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class _ScrapedCollector(Collector):
    """Metrics that are computed at each scrape."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        return self._families()


def _champion_metrics(champions: Mapping[str, Champion]) -> Iterator[Metric]:
    # A Gauge would have to remove the labels of the former champion, which it cannot once the
    # process, as Feast does, has switched prometheus_client to files.
    gauge = GaugeMetricFamily(
        "tallystick_champion_info",
        "1 for the version of each model that answers.",
        labels=["model", "version", "contract_hash"],
    )
    for champion in list(champions.values()):
        gauge.add_metric([champion.model, champion.version, champion.contract_hash], 1)
    yield gauge


def _log_metrics(ledgers: Mapping[str, Callable[[], Ledger]]) -> Iterator[Metric]:
    dropped = CounterMetricFamily(
        "tallystick_log_dropped", "Log rows dropped, by reason.", labels=["log", "reason"]
    )
    accepted, durable = (
        CounterMetricFamily(f"tallystick_log_{state}", f"Log rows {state}.", labels=["log"])
        for state in ("accepted", "durable")
    )
    in_flight = GaugeMetricFamily(
        "tallystick_log_in_flight", "Log rows accepted and not yet written.", labels=["log"]
    )
    for name, read_ledger in ledgers.items():
        ledger = read_ledger()
        for reason, rows in ledger.dropped_by.items():
            dropped.add_metric([name, reason], rows)
        accepted.add_metric([name], ledger.accepted)
        durable.add_metric([name], ledger.durable)
        in_flight.add_metric([name], ledger.in_flight)
    yield from (dropped, accepted, durable, in_flight)
