"""The ledger of a stream, from what is on disk: what became of each row that workers were given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallystick.prediction_log.manifest import read_manifest, retried, uncompacted
from tallystick.prediction_log.segment import is_live
from tallystick.prediction_log.streams import Stream, log_location, site_of, stream_dir
from tallystick.prediction_log.write_ahead_log import segments_in


@dataclass(frozen=True, slots=True)
class StreamLedger:
    """Where the rows of a stream are, of all workers of a state folder.

    Attributes:
        accepted: Rows that workers had been given when they last wrote.
        in_parquet: Rows in files.
        in_segments: Rows that wait for the compactor.
        expired: Rows removed by the retention.
        imported: Rows in files that no worker wrote.
        forgotten: Rows of files that were taken out by hand.
        dropped: Reason → rows that workers dropped.
        lost: Rows that were durable and are damaged.
        damages: Parts of segments that are not whole frames.
        in_flight: Rows that running workers held when they last wrote.
        cut_off: Rows that workers held when they last wrote before they were killed.
        died: Workers that were killed.
    """

    accepted: int
    in_parquet: int
    in_segments: int
    expired: int
    imported: int
    forgotten: int
    dropped: dict[str, int]
    lost: int
    damages: int
    in_flight: int
    cut_off: int
    died: int

    @property
    def missing(self) -> int:
        """Rows that should be somewhere and are not; more than should be there if negative."""
        found = self.in_parquet - self.imported + self.in_segments + self.expired + self.forgotten
        gone = sum(self.dropped.values()) + self.lost + self.in_flight + self.cut_off
        return self.accepted - found - gone


def ledger_of(state_dir: Path, stream: Stream) -> StreamLedger:
    """Count what is on disk.

    Raises:
        DamagedError: A manifest cannot be read.
        UnavailableError: The log's store did not answer.
    """
    return retried(lambda: _counted(state_dir, stream), f"The log of {stream.name}")


def _counted(state_dir: Path, stream: Stream) -> StreamLedger:
    segments = segments_in(stream_dir(state_dir, stream))
    live = {path.parent.name for path in segments if is_live(path)}
    manifest = read_manifest(log_location(state_dir), stream.name, site_of(state_dir))
    workers = dict(manifest.workers)
    waiting = sum(segment.rows for segment in uncompacted(segments, workers))
    every = [*workers.values(), manifest.past]
    in_memory = {
        name: each.totals.accepted - each.totals.dropped - each.after
        for name, each in workers.items()
        if not each.is_closed
    }
    return StreamLedger(
        accepted=sum(each.totals.accepted for each in every),
        in_parquet=manifest.rows,
        in_segments=waiting,
        expired=manifest.expired,
        imported=sum(manifest.imported.values()),
        forgotten=manifest.forgotten,
        dropped={
            reason: sum(getattr(each.totals, reason) for each in every)
            for reason in ("full", "budget", "refused")
        },
        lost=sum(each.lost for each in every),
        damages=sum(each.damages for each in every),
        in_flight=sum(rows for name, rows in in_memory.items() if name in live),
        cut_off=sum(rows for name, rows in in_memory.items() if name not in live),
        died=sum(1 for name in in_memory if name not in live),
    )
