"""Whatever becomes of the log's bytes: no wrong row, none twice, and what is whole is read."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from log_rows import CONTRACTS, END, MODEL, START, read_ids, request, rows_of
from tallystick.errors import ContractError, DamagedError
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.frames import (
    FRAME_VERSION,
    HEADER_BYTES,
    Damage,
    Frame,
    Totals,
    packed_frame,
    read_frames,
)
from tallystick.prediction_log.log_reader import read_log
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.manifest import read_manifest
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.streams import PREDICTIONS, log_location, site_of, stream_dir
from tallystick.prediction_log.write_ahead_log import CONTRACTS as CONTRACTS_FOLDER
from tallystick.prediction_log.write_ahead_log import OPEN, SEALED
from tallystick.settings import Settings

WORKER = "1-abcdef01"
CONTRACT = CONTRACTS[0]


def frame_of(number, first):
    rows, sent = rows_of(number), request(0, number)
    header = Frame(
        CONTRACT.contract_hash,
        first,
        rows,
        Totals(accepted=first + rows),
        first_us=sent.request_us,
        last_us=sent.request_us,
    )
    return b"".join(packed_frame(header, [RecordLayout(CONTRACT).packed(sent)]))


def last_frame(first):
    return b"".join(packed_frame(Frame("", first, 0, Totals(accepted=first), is_last=True), []))


def segments_of(shape):
    """Segments of so many frames each: lists of frames and of the ids in each."""
    number = first = 0
    segments = []
    for frames in shape:
        segment = []
        for _ in range(frames):
            segment.append((frame_of(number, first), set(request(0, number).prediction_id)))
            first += rows_of(number)
            number += 1
        segment.append((last_frame(first), set()))
        segments.append(segment)
    return segments, first


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def damaged(draw):
    """Segments with one damage: contents, ids of the frames that it left, and what it is."""
    segments, rows = segments_of(draw(SHAPES))
    contents = [b"".join(frame for frame, _ in segment) for segment in segments]
    damaged_at = draw(st.integers(0, len(segments) - 1))
    content = bytearray(contents[damaged_at])
    kind = draw(st.sampled_from(["cut", "flip", "insert", "zero", "drop"]))
    start = draw(st.integers(0, len(content) - 1))
    end = len(content)
    if kind == "cut":
        del content[start:]
    elif kind == "flip":
        end = min(end, start + draw(st.integers(1, 40)))
        for at in range(start, end):
            content[at] ^= draw(st.integers(1, 255))
    elif kind == "insert":
        end = start
        content[start:start] = draw(st.binary(min_size=1, max_size=300))
    elif kind == "zero":
        content[start:] = bytes(end - start)
    else:
        start = 0
    contents[damaged_at] = None if kind == "drop" else bytes(content)
    intact, at = set(), 0
    for number, segment in enumerate(segments):
        at = 0
        for frame, ids in segment:
            touched = number == damaged_at and at < max(end, start + 1) and at + len(frame) > start
            if kind == "insert" and at == start:
                touched = False  # before it, not within
            if not touched:
                intact |= ids
            at += len(frame)
    return contents, intact, rows, damaged_at


def lay_out(state, contents):
    folder = stream_dir(state, PREDICTIONS) / WORKER
    folder.mkdir(parents=True)
    for number, content in enumerate(contents):
        if content is not None:
            (folder / f"{number:08d}{SEALED}").write_bytes(content)
    contracts = stream_dir(state, PREDICTIONS) / CONTRACTS_FOLDER
    contracts.mkdir()
    for contract in CONTRACTS:
        (contracts / f"{contract.contract_hash}.json").write_text(contract.canonical_json())


def worker_rows(state):
    return read_manifest(log_location(state), PREDICTIONS.name, site_of(state)).workers.get(WORKER)


@settings(max_examples=60)
@given(given=damaged())
def test_damaged_segments(given):
    contents, intact, rows, damaged_at = given
    with TemporaryDirectory() as folder:
        state = Path(folder)
        lay_out(state, contents)
        found = read_ids(state)
        # What is inserted may be what was there, so that a frame is whole after all; never less.
        assert intact <= found
        compact(state)
        assert read_ids(state) == found
        worker = worker_rows(state)
        if worker is None:
            assert not found
            return
        assert worker.rows == len(found)
        assert worker.rows + worker.lost == worker.after
        if damaged_at < len(contents) - 1:
            assert worker.after == rows  # what follows says how many there were
        aside = [path.name for path in (state / "wal" / "damaged").rglob(f"*{SEALED}")]
        assert len(aside) == bool(worker.damages)


@settings(max_examples=30)
@given(shape=st.lists(st.integers(1, 3), min_size=2, max_size=4), data=st.data())
def test_swapped_segments_lose_no_row_uncounted(shape, data):
    segments, rows = segments_of(shape)
    contents = [b"".join(frame for frame, _ in segment) for segment in segments]
    one, other = data.draw(
        st.lists(st.integers(0, len(shape) - 1), min_size=2, max_size=2, unique=True)
    )
    contents[one], contents[other] = contents[other], contents[one]
    with TemporaryDirectory() as folder:
        state = Path(folder)
        lay_out(state, contents)
        found = read_ids(state)
        compact(state)
        assert read_ids(state) == found
        worker = worker_rows(state)
        assert (worker.rows, worker.rows + worker.lost) == (len(found), rows)


@settings(max_examples=30)
@given(frames=st.integers(0, 4), data=st.data())
def test_a_torn_end_of_a_killed_worker_is_no_damage(frames, data):
    segments, _ = segments_of([frames, 1])
    whole = segments[0][:-1]
    begun = segments[1][0][0]
    cut = data.draw(st.integers(0, len(begun) - 1))
    torn = begun[:cut] + bytes(data.draw(st.sampled_from([0, len(begun) - cut])))
    with TemporaryDirectory() as folder:
        state = Path(folder)
        lay_out(state, [b"".join(frame for frame, _ in whole) + torn])
        (path,) = stream_dir(state, PREDICTIONS).glob(f"*/*{SEALED}")
        path.rename(path.with_suffix(OPEN))
        expected = {row_id for _, ids in whole for row_id in ids}
        assert read_ids(state) == expected
        done = compact(state)[PREDICTIONS.name]
        assert (done.segments, done.rows, done.lost, done.damages) == (1, len(expected), 0, [])
        assert read_ids(state) == expected
        worker = worker_rows(state)
        assert (worker.rows, worker.lost, worker.damages, worker.totals.accepted) == (
            len(expected),
            0,
            0,
            len(expected),
        )


@given(content=st.binary(max_size=400), shape=st.integers(0, 3))
def test_frames_are_found_between_any_bytes(content, shape):
    segments, _ = segments_of([shape])
    frames = [frame for frame, _ in segments[0]]
    found = list(read_frames(content.join([b"", *frames, b""])))
    assert len([each for each in found if isinstance(each, Frame)]) == len(frames)
    damages = [each for each in found if isinstance(each, Damage)]
    assert len(damages) == (len(frames) + 1 if content else 0)
    assert [each.end - each.start for each in damages] == [len(content)] * len(damages)


def test_a_segment_of_another_version_is_put_aside_and_not_removed(tmp_path):
    segments, _ = segments_of([2])
    lay_out(tmp_path, [b"".join(frame for frame, _ in segments[0])])
    (path,) = stream_dir(tmp_path, PREDICTIONS).glob(f"*/*{SEALED}")
    foreign = bytearray(path.read_bytes())
    at = 0
    for frame, _ in segments[0]:
        foreign[at + 4] = FRAME_VERSION + 1
        end = at + HEADER_BYTES
        foreign[end - 4 : end] = zlib.crc32(foreign[at : end - 4]).to_bytes(4, "little")
        at += len(frame)
    path.write_bytes(foreign)
    path.rename(path.with_suffix(OPEN))
    done = compact(tmp_path)[PREDICTIONS.name]
    assert f"its version is {FRAME_VERSION + 1}, and" in done.damages[0]
    (aside,) = (tmp_path / "wal" / "damaged").rglob(f"*{OPEN}")
    assert aside.read_bytes() == foreign


@pytest.fixture(scope="module")
def compacted(tmp_path_factory):
    state = tmp_path_factory.mktemp("log")
    for numbers in (range(4), range(4, 9)):
        log = PredictionLog(state, Settings(log_window_s=60.0))
        for number in numbers:
            assert log.append(CONTRACT, request(0, number))
        log.close()
        compact(state)
    return state


def assert_right_or_error_names(state, path, expected):
    """The rows are right, or the error names the file."""
    problem = ""
    try:
        found = read_ids(state)
    except (DamagedError, ContractError) as error:
        found, problem = expected, str(error)
    assert found == expected
    assert not problem or path.name in problem
    return not problem


@pytest.mark.parametrize("pattern", ["*.parquet", "*.json"])
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_files_of_the_sink(compacted, pattern, data):
    expected = {row_id for number in range(9) for row_id in request(0, number).prediction_id}
    with TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        shutil.copytree(compacted, state)
        paths = sorted((state / "log").rglob(pattern))
        path = data.draw(st.sampled_from(paths))
        content = bytearray(path.read_bytes())
        before = bytes(content)
        # As often near the end as anywhere: there it says where everything is.
        at = data.draw(
            st.integers(0, len(content) - 1)
            | st.integers(1, min(2000, len(content))).map(int.__neg__)
        )
        if data.draw(st.booleans()):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[at:]
        path.write_bytes(content)
        newest = max((state / "log").rglob("manifest/*/*.json"))
        is_right = assert_right_or_error_names(state, path, expected)
        if path == newest:
            assert not is_right
        if path.name == "contract.json":
            # 1E-9 says what 1e-9 says.
            assert is_right == is_same_json(before, bytes(content))


def is_same_json(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_file_that_is_gone_is_an_error(compacted, tmp_path):
    state = tmp_path / "state"
    shutil.copytree(compacted, state)
    next((state / "log").rglob("*.parquet")).unlink()
    with pytest.raises(DamagedError, match="is gone"):
        read_log(state, MODEL, start=START, end=END)


def test_a_damaged_contract_keeps_segments(tmp_path):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0))
    assert log.append(CONTRACT, request(0, 0))
    log.close()
    (path,) = tmp_path.rglob(f"{CONTRACTS_FOLDER}/*.json")
    whole = path.read_text()
    path.write_text(whole.replace('"trips"', '"tripz"'))
    with pytest.raises(DamagedError, match=path.name):
        compact(tmp_path)
    path.write_text(whole)
    compact(tmp_path)
    assert read_ids(tmp_path) == set(request(0, 0).prediction_id)
