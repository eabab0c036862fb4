"""The likeliest mistakes on the command line: one message, exit 1, never a traceback."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tallystick.cli.commands import main
from tallystick.clock import process_clock
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.materialization.materializer import Materializer
from tallystick.online_store import embedded_redis
from tallystick.online_store.entity_keys import marks_key
from tallystick.settings import settings
from tiny_repo import copy_tiny_repo, make_tiny_repo

STORE = "tallystick.online_store.RedisOnlineStore"
NOBODY = f'{{type: {STORE}, connection_string: "unix:///nowhere/redis.sock"}}'


@pytest.fixture(autouse=True)
def _fresh_settings():
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    path = make_tiny_repo(tmp_path_factory.mktemp("mistakes") / "repo")
    file = path / "feature_store.yaml"
    file.write_text(file.read_text().replace("{type: sqlite, path: data/online.db}", NOBODY))
    apply(open_repo(path))
    return path


@pytest.fixture
def repo(applied, tmp_path):
    return copy_tiny_repo(applied, tmp_path / "repo")


def refused(repo, *arguments):
    """What the command says as it refuses."""
    done = CliRunner().invoke(main, ["--repo", str(repo), *arguments])
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 1
    return done.output


@pytest.mark.parametrize("text", ["project: [", "", "- a list", "a text"])
def test_a_store_file_that_is_no_mapping(repo, text):
    (repo / "feature_store.yaml").write_text(text)
    assert "feature_store.yaml cannot be used" in refused(repo, "check")


def test_a_misspelt_option_of_a_store(repo):
    file = repo / "feature_store.yaml"
    file.write_text(file.read_text().replace("connection_string", "conection_string"))
    assert "conection_string" in refused(repo, "materialize")


def test_a_damaged_registry(repo):
    (repo / "data" / "registry.db").write_bytes(b"garbage" * 50)
    assert "registry" in refused(repo, "check")


def test_types_that_are_not_supported(tmp_path):
    path = make_tiny_repo(tmp_path / "repo")
    file = path / "tiny_definitions.py"
    text = file.read_text().replace("import Float32,", "import Float32, ZonedTimestamp,")
    text = text.replace('"load", dtype=Float64', '"load", dtype=ZonedTimestamp')
    text = text.replace('name="item", dtype=Int64', 'name="item", dtype=Float64')
    text = text.replace("value_type=ValueType.INT64", "value_type=ValueType.DOUBLE")
    file.write_text(text)
    apply(open_repo(path))
    said = refused(path, "check")
    assert (
        "feature load of view shop_stats: expected UNIX_TIMESTAMP, and a STRING for the zone, "
        "got ZONED_TIMESTAMP"
    ) in said
    assert "entity key item of view item_stats: expected INT32 or INT64 or STRING" in said
    # A model that uses them lists the same.
    assert "feature shop_stats__load: expected UNIX_TIMESTAMP" in said
    assert "entity key item: expected INT32 or INT64 or STRING" in said


@pytest.mark.parametrize("text", ["{", "[]", '{"until_us": null}'])
def test_a_damaged_mark(repo, redis_server, text):
    file = repo / "feature_store.yaml"
    string = redis_server.connection_string
    file.write_text(file.read_text().replace("unix:///nowhere/redis.sock", string))
    redis_server.client.hset(marks_key("tiny"), "mark:shop_stats", text)
    said = "The materialization mark of view shop_stats in Redis cannot be read."
    assert said in refused(repo, "materialize")
    assert said in CliRunner().invoke(main, ["--repo", str(repo), "status"]).output
    again = ["--repo", str(repo), "materialize", "--again", "--view", "shop_stats"]
    assert CliRunner().invoke(main, again).exit_code == 0
    assert "online view shop_stats: rows known until" in (
        CliRunner().invoke(main, ["--repo", str(repo), "status"]).output
    )


def test_redis_does_not_answer(repo):
    assert "Redis at /nowhere/redis.sock did not answer" in refused(repo, "materialize")


def test_a_file_that_python_does_not_find_by_its_name(repo):
    (repo / "json.py").write_text("")
    assert "json.py is not read" in refused(repo, "check")


def test_a_repo_that_fails_does_not_stand_in_for_the_next(applied, tmp_path):
    broken = copy_tiny_repo(applied, tmp_path / "broken")
    (broken / "tiny_definitions.py").write_text("raise RuntimeError('broken')")
    assert "RuntimeError: broken" in refused(broken, "check")
    whole = copy_tiny_repo(applied, tmp_path / "whole")
    assert set(open_repo(whole).models) == {"demo_model"}


@pytest.mark.parametrize(
    ("column", "expected"),
    [("returned", "0 or 1"), ("created_time", "a timestamp"), ("quantity", "INT64")],
)
def test_a_label_column_of_another_type(repo, column, expected):
    path = repo / "data" / "labels.parquet"
    table = pq.read_table(path)
    index = table.schema.get_field_index(column)
    text = pa.array(["text"] * table.num_rows)
    pq.write_table(table.set_column(index, column, text), path)
    assert f"column {column}: expected {expected}" in refused(repo, "train", "demo_model")


def test_one_view_by_two_sets_of_keys_without_an_alias(repo):
    file = repo / "tiny_definitions.py"
    two = 'features=[shop_stats, item_stats.with_join_key_map({"item": "other"}), order_value]'
    text = file.read_text().replace("features=[shop_stats, item_stats, order_value]", two)
    assert two in text
    file.write_text(text)
    apply(open_repo(repo))
    assert "view item_stats: expected one view, by one set of keys" in refused(repo, "check")


def test_what_the_system_refuses_is_one_sentence(repo):
    location = repo / "feature_store.yaml" / "set.parquet"
    output = refused(repo, "dataset", "demo_model", "--end", "2024-02-01", "--out", str(location))
    assert output.startswith("tally: ")
    assert "feature_store.yaml" in output


def test_the_watermark_is_never_ahead_of_the_clock(repo):
    file = repo / "feature_store.yaml"
    file.write_text(file.read_text().replace("unix:///nowhere/redis.sock", "embedded"))
    opened = open_repo(repo)
    done = CliRunner().invoke(
        main, ["--repo", str(repo), "materialize", "--view", "shop_stats", "--until", "2100-01-01"]
    )
    marks = Materializer(opened).marks()
    embedded_redis.stop(opened.state_dir)
    assert done.exit_code == 0, done.output
    assert marks["shop_stats"].until_us <= process_clock().now_us()


def test_a_time_column_may_be_a_feature(tmp_path):
    repo = make_tiny_repo(tmp_path / "repo")
    file = repo / "feature_store.yaml"
    embedded_store = NOBODY.replace("unix:///nowhere/redis.sock", "embedded")
    file.write_text(
        file.read_text().replace("{type: sqlite, path: data/online.db}", embedded_store)
    )
    path = repo / "data" / "shop_stats.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["shop", "load", "orders", "ts", "created_time"]), path)
    definitions = repo / "tiny_definitions.py"
    text = definitions.read_text()
    text = text.replace("Int64, String", "Int64, String, UnixTimestamp", 1)
    text = text.replace(
        'name="orders", dtype=Int64),',
        'name="orders", dtype=Int64), Field(name="ts", dtype=UnixTimestamp),',
    )
    text = text.replace(
        'source=source("shop_stats"),',
        'source=FileSource(path="data/shop_stats.parquet", timestamp_field="ts", '
        'created_timestamp_column="created_time"),',
    )
    definitions.write_text(text)
    apply(open_repo(repo))
    arguments = ["--repo", str(repo), "materialize", "--view", "shop_stats"]
    done = CliRunner().invoke(main, arguments)
    embedded_redis.stop(open_repo(repo).state_dir)
    assert done.exit_code == 0, repr(done.exception)
    assert "shop_stats: 6 rows written" in done.output


def test_a_check_before_the_first_apply_leaves_nothing_behind(tmp_path):
    repo = make_tiny_repo(tmp_path / "repo")
    before = {file for file in repo.rglob("*") if "__pycache__" not in file.parts}
    refused(repo, "check")
    after = {file for file in repo.rglob("*") if "__pycache__" not in file.parts}
    assert after == before


def test_a_check_names_the_views_that_are_not_materialized(tmp_path):
    path = make_tiny_repo(tmp_path / "repo")
    with (path / "tiny_definitions.py").open("a") as file:
        file.write(
            "@on_demand_feature_view(sources=[item_stats], mode='python', "
            "write_to_online_store=True, schema=[Field(name='written', dtype=Float64)])\n"
            "def written(inputs):\n"
            "    return {'written': [0.0 for _ in next(iter(inputs.values()))]}\n"
        )
    apply(open_repo(path))
    done = CliRunner().invoke(main, ["--repo", str(path), "check"])
    assert (
        "on-demand view written has write_to_online_store: only  feast materialize" in done.output
    )
