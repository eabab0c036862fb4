"""The metrics of a server, in the text format of Prometheus; docs/http-api.md lists them."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tallystick.model_bundle.bundle import Champion
from tallystick.point_in_time.feature_status import Status
from tallystick.storage.background_writer import Ledger

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class HasLedger(Protocol):
    """A log that counts its rows."""

    @property
    def ledger(self) -> Ledger:
        """Rows accepted, in memory and on disk."""


class ServerMetrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tallystick_requests",
            "Requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tallystick_request_seconds",
            "Time from a request's arrival to its answer.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._predictions = Counter(
            "tallystick_predictions",
            "Predictions answered.",
            ["model", "version"],
            registry=self.registry,
        )
        self._statuses = Counter(
            "tallystick_view_statuses",
            "Rows read, by view and status.",
            ["model", "view", "status"],
            registry=self.registry,
        )
        self.champion_failures = Counter(
            "tallystick_champion_failures",
            "Champions that could not be loaded.",
            ["model"],
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "tallystick_requests_in_flight",
            "Requests that are being worked on.",
            registry=self.registry,
        )
        self._champions: dict[str, Champion] = {}
        self.registry.register(_ChampionCollector(self._champions))
        self._children: dict[Any, Any] = {}

    def add_logs(self, logs: Mapping[str, HasLedger]) -> None:
        """Report the ledgers of logs, by name of the log."""
        self.registry.register(_LogCollector(logs))

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


class _ChampionCollector(Collector):
    """The version of each model that answers, read at each scrape.

    A gauge of prometheus_client would have to remove the labels of the former champion, which it
    cannot once the process, as Feast does, has switched it to files.
    """

    def __init__(self, champions: Mapping[str, Champion]) -> None:
        self._champions = champions

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metric of all champions."""
        gauge = GaugeMetricFamily(
            "tallystick_champion_info",
            "1 for the version of each model that answers.",
            labels=["model", "version", "contract_hash"],
        )
        for champion in list(self._champions.values()):
            gauge.add_metric([champion.model, champion.version, champion.contract_hash], 1)
        yield gauge


class _LogCollector(Collector):
    """The ledgers of the logs, read at each scrape."""

    def __init__(self, logs: Mapping[str, HasLedger]) -> None:
        self._logs = logs

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics of all logs."""
        read = {name: log.ledger for name, log in self._logs.items()}
        dropped = CounterMetricFamily(
            "tallystick_log_dropped", "Log rows dropped, by reason.", labels=["log", "reason"]
        )
        for name, ledger in read.items():
            for reason, rows in ledger.dropped_by.items():
                dropped.add_metric([name, reason], rows)
        yield dropped
        for state in ("accepted", "durable"):
            counter = CounterMetricFamily(
                f"tallystick_log_{state}", f"Log rows {state}.", labels=["log"]
            )
            for name, ledger in read.items():
                counter.add_metric([name], getattr(ledger, state))
            yield counter
        gauge = GaugeMetricFamily(
            "tallystick_log_in_flight",
            "Log rows accepted and not yet written.",
            labels=["log"],
        )
        for name, ledger in read.items():
            gauge.add_metric([name], ledger.in_flight)
        yield gauge
