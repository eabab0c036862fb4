"""Records of a worker that was killed: written, checked or compacted, in a process of its own.

    python -m benchmarks.log.log_records write|check|compact STATE CONTRACT RECORDS

Prints what it took, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.harness import peak_mb

from tallystick.definitions.contract import ModelContract
from tallystick.model_bundle.bundle import read_contract
from tallystick.online_store.view_decoder import ViewRows
from tallystick.point_in_time.feature_status import Status
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.record import Predictions
from tallystick.prediction_log.streams import PREDICTIONS, stream_dir
from tallystick.prediction_log.write_ahead_log import bytes_in
from tallystick.settings import Settings

START_US: Final = 1_700_000_000_000_000
DAY_US: Final = 86_400_000_000
SEED: Final = 3


def main() -> None:
    """Do one step."""
    step, state, contract, records = sys.argv[1:]
    found = _STEPS[step](Path(state), read_contract(Path(contract)), int(records))
    print(json.dumps(found), flush=True)
    if step == "write":
        os.kill(os.getpid(), signal.SIGKILL)


def write(state: Path, contract: ModelContract, records: int) -> dict[str, Any]:
    """One request per record, over a day; the worker does not end its last segment."""
    options = Settings(
        log_window_s=0.05,
        log_buffer_rows_max=records,
        log_budget_bytes=1 << 40,
        log_segment_s=3_600,
    )
    log = PredictionLog(state, options)
    rng = np.random.default_rng(SEED)
    numbers = rng.normal(size=records)
    started = time.perf_counter()
    for number in range(records):
        log.append(contract, _prediction(contract, number, float(numbers[number]), records))
    log.flush()
    seconds = time.perf_counter() - started
    assert log.ledger.durable == records
    size = bytes_in(stream_dir(state, PREDICTIONS))
    return {
        "segment_bytes_per_prediction": round(size / records, 1),
        "append_us": round(seconds / records * 1e6, 2),
    }


def check(state: Path, contract: ModelContract, records: int) -> dict[str, Any]:
    """Read all segments, compare every checksum, count."""
    del contract
    started = time.perf_counter()
    ledger = ledger_of(state, PREDICTIONS)
    seconds = time.perf_counter() - started
    assert ledger.in_segments == records
    return {"recovery_check_s": round(seconds, 2)}


def move(state: Path, contract: ModelContract, records: int) -> dict[str, Any]:
    """Move everything to Parquet, as the compactor does after a crash."""
    del contract
    started = time.perf_counter()
    compact(state)
    seconds = time.perf_counter() - started
    ledger = ledger_of(state, PREDICTIONS)
    assert (ledger.in_parquet, ledger.missing) == (records, 0)
    files = list((state / "log").rglob("*.parquet"))
    return {
        "recovery_s": round(seconds, 2),
        "compaction_rows_per_s": round(records / seconds),
        "compaction_peak_mb": round(peak_mb()),
        "parquet_bytes_per_prediction": round(
            sum(file.stat().st_size for file in files) / records, 1
        ),
    }


def _prediction(contract: ModelContract, number: int, noise: float, records: int) -> Predictions:
    """A record such as serving makes: every value is its own."""
    moment = START_US + number * DAY_US // records
    rows = {
        use.name: ViewRows(
            status=[Status.PRESENT],
            event_us=[moment - 3_600_000_000],
            created_us=[moment - 3_500_000_000],
            write_us=[moment - 3_000_000_000],
            definition=[use.spec.definition_hash],
            values={},
        )
        for use in contract.views
    }
    values: dict[str, list[float]] = {
        name: [number + column if dtype == "INT64" else noise * (column + 1)]
        for column, (name, dtype) in enumerate(contract.value_columns.items())
    }
    keys: dict[str, list[float]] = {key.name: [number % 10_000] for key in contract.entity_keys}
    fields = {field.name: [noise] for field in contract.request_fields}
    return Predictions(
        prediction_id=[f"01890a5d-ac96-774b-bcce-{number:012x}"],
        request_us=moment,
        model_version="1",
        keys=keys | fields,
        views=rows,
        values=values,
        prediction=[abs(noise) % 1],
        latency_us=900,
    )


_STEPS: Final = {"write": write, "check": check, "compact": move}


if __name__ == "__main__":
    main()
