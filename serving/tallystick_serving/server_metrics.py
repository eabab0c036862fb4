"""What is measured, in the text format of Prometheus; docs/http-api.md lists every metric."""

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
    """A log that says where its rows are."""

    @property
    def ledger(self) -> Ledger:
        """Where they are."""


class Measures:
    """The metrics of one app, in a registry of their own."""

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
        self.registry.register(_Champions(self._champions))
        self._children: dict[Any, Any] = {}

    def add_ledgers(self, ledgers: Mapping[str, HasLedger]) -> None:
        """Measure the ledgers of logs, by name, whenever somebody asks."""
        self.registry.register(_Ledgers(ledgers))

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Measure how many requests are being worked on, whenever somebody asks."""
        self._in_flight.set_function(count)

    def set_champion(self, champion: Champion) -> None:
        """Say which version of a model answers."""
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
        """All metrics, as Prometheus reads them."""
        return generate_latest(self.registry)

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric's child, remembered: looking it up in the library takes longer than counting."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class _Champions(Collector):
    """Which version of each model answers, read when asked for.

    A gauge of prometheus_client would have to drop the labels of the champion before, which it does
    not do once something in the process, as Feast does, has switched it to files.
    """

    def __init__(self, champions: Mapping[str, Champion]) -> None:
        self._champions = champions

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give the metric of all champions."""
        gauge = GaugeMetricFamily(
            "tallystick_champion_info",
            "1 for the version of each model that answers.",
            labels=["model", "version", "contract_hash"],
        )
        for champion in list(self._champions.values()):
            gauge.add_metric([champion.model, champion.version, champion.contract_hash], 1)
        yield gauge


class _Ledgers(Collector):
    """The ledgers of the logs, read when asked for."""

    def __init__(self, ledgers: Mapping[str, HasLedger]) -> None:
        self._ledgers = ledgers

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Give the metrics of all ledgers."""
        read = {name: log.ledger for name, log in self._ledgers.items()}
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
