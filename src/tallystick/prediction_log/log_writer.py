"""The logs that a serving process writes to: predictions, and the labels sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tallystick.definitions.columns import plain
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.record import Predictions
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.sent_labels import LabelRow, packed_labels
from tallystick.prediction_log.streams import LABELS, PREDICTIONS, stream_dir
from tallystick.prediction_log.write_ahead_log import WriteAheadLog
from tallystick.settings import Settings
from tallystick.storage.background_writer import OnWritten, report


def are_sampled(keys: Sequence[Sequence[Any]], share: float) -> list[bool]:
    """Whether each row's entity is among those whose predictions are logged.

    It depends only on the values of its keys. So all servers make the same choice every day, and an
    entity's history is complete or absent.

    Args:
        keys: Each key's column.
        share: Share of the entities, from 0 to 1.
    """
    limit = int(share * 2**64).to_bytes(9, "big")
    return [
        b"\0" + blake2b(repr(row).encode(), digest_size=8).digest() < limit
        for row in zip(*keys, strict=True)
    ]


class PredictionLog(WriteAheadLog):
    """The write-ahead log of predictions.

    Args:
        state_dir: The repo's state folder.
        settings: Bounds of the log, and the share of the entities that is logged.
    """

    def __init__(self, state_dir: Path, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        super().__init__(stream_dir(state_dir, PREDICTIONS), settings)
        self._share = settings.log_share
        self._layouts: dict[str, RecordLayout] = {}

    def append(
        self,
        contract: ModelContract,
        predictions: Predictions,
        *,
        on_written: OnWritten | None = None,
    ) -> bool:
        """Take the predictions of one request; see :meth:`WriteAheadLog.append_rows`."""
        layout = self._layouts.get(contract.contract_hash)
        if layout is None:
            layout = self._layouts[contract.contract_hash] = RecordLayout(contract)
        if self._share < 1:
            keys = [plain(predictions.keys[key.name]) for key in contract.entity_keys]
            predictions = predictions.only(are_sampled(keys, self._share))
            if not predictions.prediction_id:
                report([on_written], is_written=True)  # there is nothing to wait for
                return True
        return self.append_rows(
            contract,
            len(predictions.prediction_id),
            layout.packed(predictions),
            times=(predictions.request_us, predictions.request_us),
            on_written=on_written,
        )


class LabelLog(WriteAheadLog):
    """The write-ahead log of labels; parameters as for predictions."""

    def __init__(self, state_dir: Path, settings: Settings | None = None) -> None:
        super().__init__(stream_dir(state_dir, LABELS), settings or Settings())

    def append(
        self,
        contract: ModelContract,
        rows: Sequence[LabelRow],
        *,
        on_written: OnWritten | None = None,
    ) -> bool:
        """Take the labels of one request; see :meth:`WriteAheadLog.append_rows`."""
        known_us = [row.known_us for row in rows]
        return self.append_rows(
            contract,
            len(rows),
            packed_labels(contract, rows),
            times=(min(known_us), max(known_us)),
            on_written=on_written,
        )
