"""What a serving process writes to: the log of predictions, and that of the labels sent to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tallystick.definitions.columns import plain
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.record import Predictions
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.sent_labels import LabelRow, packed_labels
from tallystick.prediction_log.streams import LABELS, PREDICTIONS, stream_dir
from tallystick.prediction_log.write_ahead_log import WalOptions, WriteAheadLog


def are_sampled(keys: Sequence[Sequence[Any]], share: float) -> list[bool]:
    """Whether each row's entity is among those whose predictions are logged.

    It depends on the values of its keys alone, so that servers and days agree, and an entity's
    history is whole or not there.

    Args:
        keys: Each key's column.
        share: Share of the entities, from 0 to 1.
    """
    limit = int(share * 2**64).to_bytes(9, "big")
    return [
        b"\0" + blake2b(repr(row).encode(), digest_size=8).digest() < limit
        for row in zip(*keys, strict=True)
    ]


class PredictionLog:
    """Takes predictions, without waiting.

    Args:
        state_dir: The repo's state folder.
        options: See :class:`tallystick.prediction_log.write_ahead_log.WalOptions`.
        share: Share of the entities whose predictions are logged: all of theirs, or none.

    Attributes:
        wal: The write-ahead log behind it.
    """

    def __init__(
        self, state_dir: Path, options: WalOptions | None = None, *, share: float = 1.0
    ) -> None:
        self.wal = WriteAheadLog(stream_dir(state_dir, PREDICTIONS), options or WalOptions())
        self._share = share
        self._layouts: dict[str, RecordLayout] = {}

    def append(
        self,
        contract: ModelContract,
        predictions: Predictions,
        *,
        told: Callable[[bool], None] | None = None,
    ) -> bool:
        """Log the predictions of one request; False if they had to be dropped.

        Args:
            contract: The contract under which they were made.
            predictions: They.
            told: See :meth:`tallystick.prediction_log.write_ahead_log.WriteAheadLog.append`.
        """
        if not self._share:
            if told is not None:
                told(True)
            return True
        layout = self._layouts.get(contract.contract_hash)
        if layout is None:
            layout = self._layouts[contract.contract_hash] = RecordLayout(contract)
        if self._share < 1:
            keys = [plain(predictions.keys[key.name]) for key in contract.entity_keys]
            predictions = predictions.only(are_sampled(keys, self._share))
            if not predictions.prediction_id:
                if told is not None:
                    told(True)  # there is nothing to wait for
                return True
        rows = len(predictions.prediction_id)
        return self.wal.append(contract, rows, layout.packed(predictions), told=told)


class LabelLog:
    """Takes labels, without waiting.

    Args:
        state_dir: The repo's state folder.
        options: As for predictions.

    Attributes:
        wal: The write-ahead log behind it.
    """

    def __init__(self, state_dir: Path, options: WalOptions | None = None) -> None:
        self.wal = WriteAheadLog(stream_dir(state_dir, LABELS), options or WalOptions())

    def append(
        self,
        contract: ModelContract,
        rows: Sequence[LabelRow],
        *,
        told: Callable[[bool], None] | None = None,
    ) -> bool:
        """Take labels for writing; False if the buffer is full and none was taken."""
        return self.wal.append(contract, len(rows), packed_labels(contract, rows), told=told)
