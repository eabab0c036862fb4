from __future__ import annotations

import re
from pathlib import Path

import pytest

from tallystick.errors import InputError
from tallystick.online_store.redis_options import RedisOptions
from tallystick.settings import PREFIX, Settings, settings

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _fresh():
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_defaults_need_no_environment():
    assert settings().request_rows_max == 1000


def test_variables_are_read_by_name(monkeypatch):
    monkeypatch.setenv("TALLYSTICK_LOG_WINDOW_S", "0.25")
    assert settings().log_window_s == 0.25


def test_every_wrong_variable_is_named_at_once(monkeypatch):
    monkeypatch.setenv("TALLYSTICK_REQUEST_ROWS_MAX", "many")
    monkeypatch.setenv("TALLYSTICK_NO_SUCH", "1")
    with pytest.raises(InputError) as caught:
        settings()
    text = str(caught.value)
    assert "TALLYSTICK_REQUEST_ROWS_MAX" in text
    assert "TALLYSTICK_NO_SUCH" in text


def test_the_documentation_has_every_setting_and_its_default():
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| (.*?) \|", DOCS.read_text(), re.MULTILINE)
    documented = dict(rows)
    assert len(documented) == len(rows)
    assert documented.keys() == {name.upper() for name in Settings.model_fields}
    defaults = {
        name.upper(): str(field.default).lower()
        for name, field in Settings.model_fields.items()
        if field.default is not None
    }
    assert {name: documented[name] for name in defaults} == defaults


def test_the_documentation_has_every_option_of_the_online_store():
    text = DOCS.read_text()
    assert [name for name in RedisOptions.model_fields if f"`{name}" not in text] == []


def test_a_relative_folder_stays_where_it_was_when_the_working_folder_changes(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALLYSTICK_STATE_DIR", "state")
    assert settings().state_dir == tmp_path / "state"
