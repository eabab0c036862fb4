"""Damages the log itself: bytes of a segment of the write-ahead log, or of a Parquet file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.audit.scene import HOUR_US, START_US, Scene

from tallystick.definitions.feature_repo import Repo, open_repo
from tallystick.prediction_log.frames import Frame, read_frames
from tallystick.prediction_log.log_import import import_file
from tallystick.prediction_log.manifest import read_manifests
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.streams import PREDICTIONS, log_location, stream_dir
from tallystick.prediction_log.write_ahead_log import segments_in

DAY_HOURS: Final = 24
_FLIP: Final = 0x40


def damage_segments(repo: Repo, scene: Scene, *, share: float, seed: int) -> frozenset[str]:
    """Flip a byte in frames that hold so large a share of the predictions; give their ids.

    Args:
        repo: A repo whose log is in segments, committed after every few requests.
        scene: What was played.
        share: Share of the predictions whose frames are damaged.
        seed: Of what is random.
    """
    rng = np.random.default_rng(seed)
    layout = RecordLayout(scene.contract)
    lost: set[str] = set()
    limit = share * len(scene.batches) * scene.sizes.batch_rows
    for path in segments_in(stream_dir(repo.state_dir, PREDICTIONS)):
        content = bytearray(path.read_bytes())
        frames = [one for one in read_frames(bytes(content)) if isinstance(one, Frame) and one.rows]
        for number in rng.permutation(len(frames)).tolist():
            if len(lost) >= limit:
                break
            payload = bytes(frames[number].payload)
            at = content.index(payload) + int(rng.integers(len(payload)))
            content[at] ^= _FLIP
            lost |= set(layout.table([payload])["prediction_id"].to_pylist())
        path.write_bytes(content)
    return frozenset(lost)


def damage_file(
    repo: Repo, scene: Scene, log: pa.Table, *, share: float, seed: int
) -> frozenset[str]:
    """Import the log as Parquet files, damage one with so large a share; give its ids.

    Args:
        repo: A repo without a log.
        scene: What was played.
        log: The predictions, ordered by time.
        share: Share of them that is in the damaged file; all of it lies in the second day.
        seed: Of what is random.
    """
    rng = np.random.default_rng(seed)
    request_us = log["request_time"].cast(pa.int64()).to_numpy()
    first = int(np.searchsorted(request_us, START_US + DAY_HOURS * HOUR_US))
    count = max(1, round(share * log.num_rows))
    rest = pa.concat_tables([log.slice(0, first), log.slice(first + count)])
    before = _files(repo)
    for name, table in (("damaged", log.slice(first, count)), ("rest", rest)):
        path = repo.path / f"{name}.parquet"
        pq.write_table(table, path)
        import_file(repo.state_dir, scene.contract, path)
        if name == "damaged":
            (victim,) = _files(repo) - before
    file = (log_location(repo.state_dir) / victim).local
    content = bytearray(file.read_bytes())
    # Past the first bytes, before the footer: within the pages.
    content[int(rng.integers(len(content) // 4, len(content) // 2))] ^= _FLIP
    file.write_bytes(content)
    return frozenset(log.slice(first, count)["prediction_id"].to_pylist())


def copy_repo(repo: Repo, folder: Path, *, with_log: bool) -> Repo:
    """A copy of a repo, opened; with its log or without."""
    left_out = ["__pycache__", *([] if with_log else ["wal", "log"])]
    shutil.copytree(repo.path, folder, ignore=shutil.ignore_patterns(*left_out))
    return open_repo(folder)


def _files(repo: Repo) -> set[str]:
    manifests = read_manifests(log_location(repo.state_dir), PREDICTIONS.name)
    return {file.path for each in manifests.values() for file in each.files}
