"""The folder of a replay: which files are removed or refused, and which server is stopped."""

from __future__ import annotations

import fcntl

import pytest

from tallystick.errors import InputError
from tallystick.online_store import embedded_redis
from tallystick_simulation.demo_folder import claim


@pytest.fixture
def out(tmp_path):
    """A folder as an earlier replay leaves it."""
    folder = tmp_path / "out"
    with claim(folder) as state:
        (state / "clock").write_bytes(bytes(8))
        (state / "log").mkdir()
    for name in ("summary.json", "audit.json", "performance.png", "parity.png", "server.log"):
        (folder / name).write_text("{}")
    return folder


def test_an_earlier_replay_is_replaced(out):
    with claim(out) as state:
        assert list(state.iterdir()) == []
        assert {path.name for path in out.iterdir()} == {".replay.lock", "state"}


@pytest.mark.parametrize("name", ["thesis.txt", "state/mine.txt"])
def test_files_of_another_origin_are_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="no replay made"), claim(tmp_path):
        pass
    assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_claimed_by_one_replay_at_a_time(out):
    with claim(out) as state:
        (state / "clock").write_bytes(bytes(8))
        (out / "server.log").write_text("running")
        with pytest.raises(InputError, match="Another replay"), claim(out):
            pass
        assert (out / "server.log").read_text() == "running"
        assert (state / "clock").exists()
    with claim(out):
        pass


def test_a_redis_that_was_left_behind_is_stopped(out):
    socket = embedded_redis.start(out / "state")
    lock = (out / "state" / "redis" / "server.lock").open("a")
    with lock, claim(out):
        assert not socket.exists()
        # The server held this lock, now deleted, for as long as it lived.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
