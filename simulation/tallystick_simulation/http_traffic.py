"""Sends requests, labels and pushed rows over HTTP, as clients of the server do."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import aiohttp
import orjson

from tallystick.errors import UnavailableError
from tallystick_simulation.replay_history import Instance, KnownLabel, LabelKey

CONNECTIONS = 8
TIMEOUT_S = 30.0
KEEPALIVE_S = 3.0
"""Shorter than the server's, so that no request meets a connection that the server closes."""


class Traffic:
    """A client of one server.

    Args:
        url: The server.
        model: The model that predicts.
        label_keys: Request fields and entity keys that identify a label.
        labels: All labels of the replay.

    Attributes:
        sent: Predictions requested so far.
        calls: HTTP requests for them.
    """

    def __init__(
        self, url: str, model: str, label_keys: Sequence[str], labels: Mapping[LabelKey, KnownLabel]
    ) -> None:
        self._session = aiohttp.ClientSession(
            base_url=url,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        self._model = model
        self._label_keys = label_keys
        self._labels = labels
        self._due_labels: list[tuple[datetime, str, int]] = []
        self.sent = 0
        self.calls = 0

    async def predict(
        self, time: datetime, batches: Sequence[Sequence[Instance]], *, durable: bool
    ) -> None:
        """Request predictions, in concurrent HTTP requests, and schedule their labels.

        Args:
            time: Request time of all of them.
            batches: The instances of each HTTP request.
            durable: Whether to wait until these and all earlier predictions are in the log.

        Raises:
            UnavailableError: The server refused or did not answer.
        """
        path, parameters = f"/v1/models/{self._model}:predict", {"durable": durable}
        answers = await asyncio.gather(
            *(self._post(path, {"instances": batch, "parameters": parameters}) for batch in batches)
        )
        for batch, answer in zip(batches, answers, strict=True):
            self.calls += 1
            self.sent += len(batch)
            for instance, prediction in zip(batch, answer["predictions"], strict=True):
                key = (*(instance[name] for name in self._label_keys), time)
                known = self._labels.get(key)
                if known is not None:
                    item = (known.known_time, prediction["prediction_id"], known.value)
                    heapq.heappush(self._due_labels, item)

    async def send_labels(self, until: datetime) -> None:
        """Send the labels that have become known by ``until``."""
        rows = []
        while self._due_labels and self._due_labels[0][0] <= until:
            known, prediction_id, value = heapq.heappop(self._due_labels)
            rows.append(
                {
                    "prediction_id": prediction_id,
                    "value": value,
                    "known_time": known.isoformat(),
                }
            )
        for start in range(0, len(rows), 500):
            await self._post(
                f"/v1/models/{self._model}/labels", {"labels": rows[start : start + 500]}
            )

    async def push(self, source: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Push rows to the online store, as a feed would."""
        await self._post("/push", {"push_source_name": source, "df": dict(columns), "to": "online"})

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _post(self, path: str, body: Any) -> Any:
        try:
            async with self._session.post(
                path, data=orjson.dumps(body), headers={"Content-Type": "application/json"}
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError as error:
            raise UnavailableError(f"POST {path}", str(error)) from error
        if not answer.ok:
            raise UnavailableError(f"POST {path}", f"{answer.status}: {content[:500]!r}")
        return orjson.loads(content) if content else None
