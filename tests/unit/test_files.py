from __future__ import annotations

import pytest

from tallystick.files import replacing, write_text


def test_a_file_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a" / "x.json", "one")
    write_text(tmp_path / "a" / "x.json", "two")
    assert (tmp_path / "a" / "x.json").read_text() == "two"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "x", "old")

    def fail():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
