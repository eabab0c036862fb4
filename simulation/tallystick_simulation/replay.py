"""Plays a scenario: rows go online, requests are answered, labels arrive, decisions are taken.

The order within one time is that of production: the rows that have become known go online, then the
requests of that time are answered. Their labels arrive when they become known.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tallystick.clock import EPOCH, SimulatedClock
from tallystick.materialization.materializer import Materializer
from tallystick.records.record_store import Decision, Incident, MonitorReport
from tallystick_simulation.http_traffic import Traffic
from tallystick_simulation.replay_history import PushFeed, ReplayRequests, by_minute, labels_of
from tallystick_simulation.scenario import Scenario

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

DAY = timedelta(days=1)
WEEK = timedelta(days=7)
LABELS_EVERY = timedelta(hours=6)
"""The interval between two deliveries of the labels that became known."""


class Stopwatch:
    """Seconds spent in each stage, by the machine's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block to a stage."""
        before = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - before
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass
class ReplayResult:
    """What happened in a replay.

    Attributes:
        sent: Predictions requested.
        calls: HTTP requests for them.
        looks: Monitoring reports, week by week.
        decisions: Retraining decisions, week by week.
        incidents: Incidents by id, in the order in which they were found.
    """

    sent: int = 0
    calls: int = 0
    looks: list[MonitorReport] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    incidents: dict[str, Incident] = field(default_factory=dict)


class Replay:
    """Plays a scenario against a running server.

    Args:
        repo: The repo; its models are trained and promoted.
        scenario: The scenario.
        clock: The simulated time, shared with the server.
        url: The server.
        stopwatch: Measures the stages.
        show: Called with the share done, between 0 and 1, and a text.
    """

    def __init__(
        self,
        repo: Repo,
        scenario: Scenario,
        *,
        clock: SimulatedClock,
        url: str,
        stopwatch: Stopwatch,
        show: Callable[[float, str], None],
    ) -> None:
        self._repo = repo
        self._scenario = scenario
        self._clock = clock
        self._url = url
        self._watch = stopwatch
        self._show = show
        self._materializer = Materializer(repo)
        self._feeds = {view: PushFeed(repo, view, push) for view, push in scenario.push.items()}
        self._watched = 0
        self.result = ReplayResult()

    async def run(self) -> ReplayResult:
        """Play every day of the scenario; monitor and decide at the end of each week."""
        model = self._repo.model(self._scenario.model)
        inputs = self._repo.inputs(model)
        requests = ReplayRequests(self._repo, model, inputs)
        labels = labels_of(self._repo, model, set(self._scenario.days))
        # This data stays to the end: the garbage collector need not scan it again and again.
        gc.freeze()
        traffic = Traffic(self._url, model.name, model.label.keys, labels)
        days = sorted(self._scenario.days)
        week_start = _monday(self._scenario.train_until)
        try:
            for number, day in enumerate(days):
                start = datetime(day.year, day.month, day.day, tzinfo=UTC)
                while week_start + WEEK <= start:
                    await self._end_week(traffic, week_start)
                    week_start += WEEK
                self._show(number / len(days), f"{day:%d %B}")
                await self._play_day(traffic, requests, start)
            await self._end_week(traffic, week_start)
        finally:
            gc.unfreeze()
            await traffic.close()
        self.result.sent, self.result.calls = traffic.sent, traffic.calls
        return self.result

    async def _play_day(self, traffic: Traffic, requests: ReplayRequests, start: datetime) -> None:
        self._clock.set(start)
        await self._refresh(traffic, start, catch_up=True)
        with self._watch.stage("labels"):
            await traffic.send_labels(start)
        tick = self._tick
        moment = start
        while moment < start + DAY:
            self._clock.set(moment)
            if moment > start:
                await self._refresh(traffic, moment, catch_up=False)
                await self._label_and_watch(traffic, moment)
            end = moment + tick
            due = requests.between(moment, end)
            # The log has to hold all requests at each watch.
            is_watched = not requests.has_between(end, _next(moment, self._scenario.watch_every))
            with self._watch.stage("serve"):
                for request_time, batches in by_minute(due, self._scenario.batch_by):
                    self._clock.set(request_time)
                    durable = is_watched and request_time == due[-1][0]
                    await traffic.predict(request_time, batches, durable=durable)
            moment = end
        self._clock.set(moment)
        await self._label_and_watch(traffic, moment)

    @property
    def _tick(self) -> timedelta:
        """The shortest interval of the scenario."""
        return min(
            *self._scenario.refresh.values(),
            *(push.every for push in self._scenario.push.values()),
            self._scenario.watch_every,
        )

    async def _refresh(self, traffic: Traffic, moment: datetime, *, catch_up: bool) -> None:
        """Bring rows online that have become known: of views that are due, after a gap of all."""
        down = self._scenario.outage.view if self._is_out(moment) else None
        views = [
            view
            for view, every in self._scenario.refresh.items()
            if catch_up or _is_due(moment, every)
        ]
        if catch_up:
            # Rows that were pushed on the days between come from history.
            views += self._feeds
        views = [view for view in views if view != down]
        with self._watch.stage("materialize"):
            if views:  # none would mean all of them
                self._materializer.run(views=views, until=moment)
        with self._watch.stage("push"):
            for view, feed in self._feeds.items():
                if view != down and not catch_up and _is_due(moment, feed.every):
                    for columns in feed.between(moment - feed.every, moment):
                        await traffic.push(feed.source, columns)

    def _is_out(self, moment: datetime) -> bool:
        outage = self._scenario.outage
        return outage.start <= moment < outage.end

    async def _label_and_watch(self, traffic: Traffic, moment: datetime) -> None:
        """Send labels and check for incidents, when they are due."""
        from tallystick_monitoring.incidents import watch

        if _is_due(moment, LABELS_EVERY):
            with self._watch.stage("labels"):
                await traffic.send_labels(moment)
        if _is_due(moment, self._scenario.watch_every) and traffic.sent > self._watched:
            self._watched = traffic.sent
            with self._watch.stage("watch"):
                found = watch(
                    self._repo,
                    self._scenario.model,
                    at=moment,
                    window=self._scenario.watch_every,
                )
            self._add_incidents(found)

    async def _end_week(self, traffic: Traffic, start: datetime) -> None:
        """Monitor the week, and decide about retraining."""
        from tallystick.prediction_log.log_reader import read_log
        from tallystick_monitoring.monitor_report import monitor
        from tallystick_training.retrain import retrain

        end = start + WEEK
        self._clock.set(end)
        with self._watch.stage("labels"):
            await traffic.send_labels(end)
        name = self._scenario.model
        times = read_log(
            self._repo.state_dir, name, start=start, end=end, columns=lambda _: ["request_time"]
        )
        if not times:
            return
        with self._watch.stage("monitor"):
            report = monitor(self._repo, name, at=end, start=start, end=end)
        self._add_incidents(report.incidents)
        self.result.looks.append(report)
        with self._watch.stage("retrain"):
            decision = retrain(self._repo, self._repo.model(name), report, at=end, repair=False)
        self.result.decisions.append(decision)

    def _add_incidents(self, incidents: list[Incident]) -> None:
        for incident in incidents:
            self.result.incidents[incident.incident_id] = incident


def _monday(moment: datetime) -> datetime:
    """Midnight of the Monday on or before a moment, so that weeks are ISO weeks."""
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())


def _is_due(moment: datetime, every: timedelta) -> bool:
    return (moment - EPOCH) % every == timedelta(0)


def _next(moment: datetime, every: timedelta) -> datetime:
    """The first full multiple of an interval after a moment."""
    return moment + every - (moment - EPOCH) % every
