"""The metrics of a server in which everything that is counted has happened."""

from __future__ import annotations

from tallystick.model_bundle.bundle import Champion
from tallystick.storage.background_writer import Ledger
from tallystick_serving.server_metrics import ServerMetrics


def exposed() -> ServerMetrics:
    metrics = ServerMetrics()
    metrics.add_logs({"predictions": lambda: Ledger(0, 0, {"full": 0})})
    champion = Champion(model="m", version="1", contract_hash="c")
    metrics.set_champion(champion)
    metrics.champion_failures.labels("m").inc()
    metrics.count_request("/ready", 200, 0.1)
    metrics.count_predictions(champion, 1, {"v": ["PRESENT"]})
    return metrics
