"""A real Redis behind a Sentinel: clients go to the server that Sentinel names."""

from __future__ import annotations

import pytest

from redis_servers import MASTER, eventually, wait_until
from tallystick.errors import UnavailableError
from tls_relay import HOST

WAIT_S = 30.0
OPTIONS = {"redis_type": "redis_sentinel", "sentinel_master": MASTER}


def test_clients_follow_a_failover(sentinel_redis, caller):
    text, key = sentinel_redis.connection_string, b"key"
    first = sentinel_redis.primary
    caller.call(text, lambda client: client.set(key, b"before"), **OPTIONS)
    assert caller.mget(text, [key], **OPTIONS) == [b"before"]
    wait_until(lambda: first.admin.wait(1, 100) == 1, "the replica has the value")
    first.kill()
    with pytest.raises(UnavailableError, match=f"Redis {MASTER} of the Sentinels at {HOST}:1, "):
        caller.mget(text, [key], **OPTIONS)
    assert eventually(lambda: caller.mget(text, [key], **OPTIONS)) == [b"before"]
    assert sentinel_redis.primary is not first
    caller.call(text, lambda client: client.set(key, b"after"), **OPTIONS)
    assert caller.mget(text, [key], **OPTIONS) == [b"after"]
    assert sentinel_redis.primary.admin.get(key) == b"after"


def test_a_switch_without_failure_is_followed(sentinel_redis, caller):
    text, key = sentinel_redis.connection_string, b"key"
    first = sentinel_redis.primary
    assert caller.mget(text, [key], **OPTIONS) == [None]
    wait_until(
        lambda: sentinel_redis.sentinel.admin.execute_command("SENTINEL FAILOVER", MASTER),
        "Sentinel begins",
    )
    wait_until(lambda: sentinel_redis.primary is not first, "Sentinel names the other server")
    wait_until(lambda: first.admin.info("replication")["role"] == "slave", "the first one follows")
    eventually(lambda: caller.call(text, lambda client: client.set(key, b"new"), **OPTIONS))
    assert sentinel_redis.primary.admin.get(key) == b"new"
    assert eventually(lambda: caller.mget(text, [key], **OPTIONS)) == [b"new"]


def test_a_name_that_sentinel_does_not_know(sentinel_redis, caller):
    text = sentinel_redis.connection_string
    with pytest.raises(UnavailableError, match=r"Redis other of the Sentinels at .*'other'"):
        caller.mget(text, [b"key"], redis_type="redis_sentinel", sentinel_master="other")
