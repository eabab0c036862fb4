"""A real Redis Cluster: many keys at once, and what happens while the cluster changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from redis_servers import eventually, free_port, wait_until
from tallystick.errors import UnavailableError
from tallystick.online_store.redis_commands import KEYS_PER_CALL
from tallystick.online_store.redis_connection import (
    connect_for_reads,
    redis_errors,
    shown_address,
)
from tallystick.online_store.redis_options import RedisOptions
from tls_relay import HOST, Gate, Relay

ADD = """
for i, key in ipairs(KEYS) do
  redis.call('SET', key, ARGV[1] .. ARGV[i + 1])
end
return #KEYS
"""
COUNT = "return {#KEYS, #ARGV}"
WAIT_S = 30.0


def fill(cluster, keys):
    for key in keys:
        cluster.client.set(key, b"value of " + key)
    return [b"value of " + key for key in keys]


def values_of(keys):
    return [b"value of " + key for key in keys]


@contextlib.contextmanager
def owned_by(cluster, slot, new):
    """Give a slot to another server, as moving it ends; give it back at the end."""
    old = next(one for one in cluster.servers if slot in slots_of(one))
    try:
        assign(cluster, slot, new)
        yield
    finally:
        cluster.heal()
        assign(cluster, slot, old)
        cluster.heal()


def slots_of(server):
    own = server.admin.cluster("myid")
    own = own.decode() if isinstance(own, bytes) else own
    return {
        slot
        for first, last, (_, _, node, *_), *_ in server.admin.execute_command("CLUSTER SLOTS")
        if node.decode() == own
        for slot in range(first, last + 1)
    }


def assign(cluster, slot, server, servers=None):
    """Give a slot to a server; first its epoch, so that what others still claim counts less."""
    server.admin.execute_command("CLUSTER BUMPEPOCH")
    new = server.admin.execute_command("CLUSTER MYID")
    for one in servers or cluster.servers:
        one.admin.execute_command("CLUSTER SETSLOT", slot, "NODE", new)


def test_values_come_in_the_order_of_the_keys(redis_cluster, caller):
    keys = redis_cluster.keys(300)
    values = fill(redis_cluster, keys)
    assert {redis_cluster.server_of(key).port for key in keys} == {
        server.port for server in redis_cluster.servers
    }
    text = redis_cluster.connection_string
    requested = [*reversed(keys), b"nothing", keys[7], keys[7], b"nothing"]
    expected = [*reversed(values), None, values[7], values[7], None]
    assert caller.mget(text, requested) == expected
    assert caller.mget(text, []) == []
    assert (
        caller.mget(f"{HOST}:{redis_cluster.servers[1].port},cluster=true", requested) == expected
    )


def test_one_server_gives_the_same(redis_server, caller):
    redis_server.client.mset({"a": "1", "b": "2"})
    requested = [b"b", b"none", b"a", b"b"]
    assert caller.mget(redis_server.connection_string, requested) == [b"2", None, b"1", b"2"]
    assert caller.mget(redis_server.connection_string, []) == []
    assert sorted(caller.scan(redis_server.connection_string, b"[ab]")) == [b"a", b"b"]


def test_each_node_gets_one_request(redis_cluster, caller):
    keys, text = redis_cluster.keys(90), redis_cluster.connection_string
    admins = [server.admin for server in redis_cluster.servers]
    items = [(key, b"x") for key in keys]
    caller.mget(text, keys)  # connects
    caller.run_script(text, ADD, items, shared=[b""])

    def reads():
        return [admin.info("stats")["total_reads_processed"] for admin in admins]

    for work in (
        lambda: caller.mget(text, keys),
        lambda: caller.run_script(text, ADD, items, shared=[b""]),
    ):
        before = reads()
        work()
        # One read more is the question for the number itself.
        assert [after - one for after, one in zip(reads(), before, strict=True)] == [2, 2, 2]


def test_nodes_work_at_the_same_time(tls_cluster, certificates, caller):
    text = f"{tls_cluster.connection_string},ssl=true,ssl_ca_certs={certificates.authority}"
    text += ",password=pass=word"
    keys = tls_cluster.keys(30)
    assert caller.mget(text, keys) == [None] * 30
    gate = Gate(tls_cluster.relays)
    for relay in tls_cluster.relays:
        relay.gate = gate
    try:
        # Answers are held back until each node has a request.
        assert caller.mget(text, keys) == [None] * 30
        assert gate.is_open
    finally:
        for relay in tls_cluster.relays:
            relay.gate = None


@pytest.mark.parametrize("kind", ["one server", "cluster"])
def test_a_script_runs_over_many_keys(request, kind, caller):
    is_cluster = kind == "cluster"
    server = request.getfixturevalue("redis_cluster" if is_cluster else "redis_server")
    text = server.connection_string
    keys = [b"{%d}%d" % (number % 100, number) for number in range(2 * KEYS_PER_CALL + 1)]
    items = [(key, b" of " + key) for key in keys]
    answers = caller.run_script(text, ADD, items, shared=[b"value"])
    assert sum(answers) == len(keys)
    assert answers == [1] * len(keys) if is_cluster else [KEYS_PER_CALL, KEYS_PER_CALL, 1]
    assert caller.mget(text, keys) == values_of(keys)
    server.client.script_flush()
    assert caller.run_script(text, COUNT, [(keys[0], None)], shared=[b"a", b"b"]) == [[1, 2]]
    assert caller.run_script(text, COUNT, []) == []


@pytest.mark.parametrize("kind", ["redis_server", "redis_cluster"])
def test_the_error_of_a_script_does_not_show_its_values(request, kind, caller):
    server = request.getfixturevalue(kind)
    with pytest.raises(UnavailableError, match="Unknown Redis command") as caught:
        caller.run_script(
            server.connection_string, "return redis.call('nonsense')", [(b"key", b"s3cret")]
        )
    assert "s3cret" not in str(caught.value)


def test_a_scan_goes_over_all_nodes(redis_cluster, caller):
    keys = [b"own:" + key for key in redis_cluster.keys(2_500)]
    caller.run_script(
        redis_cluster.connection_string, ADD, [(key, b"") for key in keys], shared=[b""]
    )
    fill(redis_cluster, [b"other:1"])
    assert sorted(set(caller.scan(redis_cluster.connection_string, b"own:*"))) == sorted(keys)


def test_a_slot_that_moved_is_followed(redis_cluster, caller):
    one, two, _ = redis_cluster.servers
    key, text = redis_cluster.key_at(one), redis_cluster.connection_string
    others = fill(redis_cluster, redis_cluster.keys(50, start=1_000))
    keys = [key, *redis_cluster.keys(50, start=1_000)]
    assert caller.mget(text, keys) == [None, *others]
    with owned_by(redis_cluster, key_slot(key), two):
        assert caller.run_script(text, ADD, [(key, b" now")], shared=[b"there"]) == [1]
        assert two.admin.get(key) == b"there now"
        assert caller.mget(text, keys) == [b"there now", *others]
        two.admin.delete(key)


def test_a_slot_that_is_moving_is_read_at_both_ends(redis_cluster, caller):
    one, two, _ = redis_cluster.servers
    slot_key, text = redis_cluster.key_at(one), redis_cluster.connection_string
    slot = key_slot(slot_key)
    still, moved = slot_key + b"still", slot_key + b"moved"
    ids = [server.admin.execute_command("CLUSTER MYID") for server in (one, two)]
    values = fill(redis_cluster, [still])
    assert caller.mget(text, [still, moved]) == [*values, None]
    two.admin.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
    one.admin.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    try:
        assert caller.run_script(text, ADD, [(moved, b"value")], shared=[b""]) == [1]
        assert one.admin.dbsize() == two.admin.dbsize() == 1
        assert caller.mget(text, [moved, still, moved]) == [b"value", *values, b"value"]
        assert caller.run_script(text, COUNT, [(moved, None), (still, None)]) == [[1, 0]] * 2
    finally:
        two.admin.flushall()
        for server in (one, two):
            server.admin.execute_command("CLUSTER SETSLOT", slot, "STABLE")


def test_a_cluster_that_is_down_is_unavailable_until_it_works(redis_cluster, caller):
    one, *_ = redis_cluster.servers
    keys, text = redis_cluster.keys(30), redis_cluster.connection_string
    values = fill(redis_cluster, keys)
    key = redis_cluster.key_at(one)
    slot = key_slot(key)
    assert caller.mget(text, keys) == values
    one.admin.execute_command("CLUSTER DELSLOTS", slot)
    try:
        for work in (
            lambda: caller.mget(text, [key]),
            lambda: caller.call(text, lambda client: client.get(key)),
        ):
            with pytest.raises(UnavailableError, match=r"Redis Cluster at .* did not answer \(.*"):
                work()
    finally:
        one.admin.execute_command("CLUSTER ADDSLOTS", slot)
        redis_cluster.heal()
    assert caller.mget(text, keys) == values


def test_a_killed_node_is_unavailable_and_comes_back(redis_cluster, caller):
    one, two, _ = redis_cluster.servers
    text = redis_cluster.connection_string
    lost, remaining = redis_cluster.key_at(one), redis_cluster.key_at(two)
    fill(redis_cluster, [lost, remaining])
    both = [lost, remaining]
    assert caller.mget(text, both) == values_of(both)
    one.kill()
    for _ in range(2):
        with pytest.raises(UnavailableError, match=rf"Redis Cluster at .*{one.port}"):
            caller.mget(text, both)
        with pytest.raises(UnavailableError, match=str(one.port)):
            caller.run_script(text, ADD, [(lost, b"")], shared=[b""])
        assert caller.mget(text, [remaining]) == [b"value of " + remaining]
    redis_cluster.heal()
    fill(redis_cluster, [lost])
    assert caller.mget(text, both) == values_of(both)
    assert caller.call(text, lambda client: client.get(lost)) == b"value of " + lost


def test_connections_that_were_closed_meanwhile_are_opened_again(redis_cluster, caller):
    keys, text = redis_cluster.keys(30), redis_cluster.connection_string
    values = fill(redis_cluster, keys)

    def close_all():
        for server in redis_cluster.servers:
            server.admin.client_kill_filter(_type="normal", skipme=True)

    assert caller.mget(text, keys) == values
    for work in (
        lambda: caller.mget(text, keys) == values,
        lambda: caller.run_script(text, COUNT, [(key, None) for key in keys]),
        lambda: caller.call(text, lambda client: client.ping()),
        lambda: caller.call(text, lambda client: client.set(keys[0], values[0])),
    ):
        close_all()
        assert work()


def test_many_connections_that_were_closed_meanwhile_cost_nothing(redis_cluster):
    keys = redis_cluster.keys(30)
    values = fill(redis_cluster, keys)
    start = Relay(redis_cluster.servers[0].port)  # which is not among the nodes' own addresses

    async def ask():
        client = connect_for_reads(
            RedisOptions(connection_string=f"{HOST}:{start.port},cluster=true")
        )
        try:
            for _ in range(2):
                # Many at once, so that each node has many idle connections afterwards.
                await asyncio.gather(*(client.mget(keys) for _ in range(5)))
                for server in redis_cluster.servers:
                    server.admin.client_kill_filter(_type="normal", skipme=True)
                assert await asyncio.gather(*(client.mget(keys) for _ in range(5))) == [values] * 5
        finally:
            await client.aclose()

    try:
        asyncio.run(ask())
    finally:
        start.close()


def test_a_node_that_is_new_to_the_client(redis_cluster, caller, tmp_path):
    text = redis_cluster.connection_string
    one = redis_cluster.servers[0]
    key = redis_cluster.key_at(one)
    slot = key_slot(key)
    other = f"{text},cluster=true"  # for a client that does not follow the move
    assert caller.mget(text, [key]) == caller.mget(other, [key]) == [None]
    with redis_cluster.another(tmp_path / "new") as new:
        ids = [server.admin.execute_command("CLUSTER MYID") for server in (one, new)]
        everybody = [*redis_cluster.servers, new]
        new.admin.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        one.admin.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        try:
            assert caller.run_script(text, ADD, [(key, b"there")], shared=[b""]) == [1]
            assert caller.mget(text, [key]) == [b"there"]
            assert new.admin.dbsize() == 1
            assign(redis_cluster, slot, new, everybody)
            assert caller.scan(other, b"*") == [key]
            assert caller.mget(text, [key]) == [b"there"]
        finally:
            new.admin.flushall()
            assign(redis_cluster, slot, one, everybody)


def test_a_node_that_hangs_is_given_up(redis_cluster, caller):
    one, two, _ = redis_cluster.servers
    text = redis_cluster.connection_string
    keys = [key for key in redis_cluster.keys(100) if redis_cluster.server_of(key) is one]
    other = redis_cluster.key_at(two)
    fill(redis_cluster, [*keys, other])
    assert caller.mget(text, keys, read_timeout_s=0.5) == values_of(keys)
    pid = one.admin.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"Timeout|no answer within 0.5 s"):
            caller.mget(text, keys, read_timeout_s=0.5)
        # A few timeouts, and not one for each key.
        assert time.monotonic() - began < 0.5 * len(keys) / 2
        assert caller.mget(text, [other], read_timeout_s=0.5) == values_of([other])
    finally:
        os.kill(pid, signal.SIGCONT)
    found = eventually(lambda: caller.mget(text, keys, read_timeout_s=0.5))
    assert found == values_of(keys)


def test_who_gave_up_waiting_learns_that_another_node_took_over(redis_cluster):
    one, two, three = redis_cluster.servers
    key = redis_cluster.key_at(one)
    slot = key_slot(key)
    fill(redis_cluster, [key])
    pid = one.admin.info("server")["process_id"]

    async def ask():
        client = connect_for_reads(RedisOptions(connection_string=redis_cluster.connection_string))
        try:
            with redis_errors(client):
                assert await client.mget([key]) == values_of([key])
                os.kill(pid, signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await client.mget([key])
                assign(redis_cluster, slot, two, [two, three])
                two.admin.set(key, "taken over")
                async with asyncio.timeout(WAIT_S):
                    while True:  # callers whose time runs out too early for an error of the node
                        with contextlib.suppress(TimeoutError, RedisError):
                            async with asyncio.timeout(0.3):
                                return await client.mget([key])
        finally:
            await client.aclose()

    try:
        assert asyncio.run(ask()) == [b"taken over"]
    finally:
        two.admin.delete(key)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: slot not in slots_of(one), "the first node has heard of the change")
        assign(redis_cluster, slot, one)
        redis_cluster.heal()


def test_nodes_that_all_have_other_addresses_are_found_by_the_start_node(redis_cluster, caller):
    start = Relay(redis_cluster.servers[0].port)
    text = f"{HOST}:{start.port},cluster=true"
    keys = redis_cluster.keys(10)
    try:
        assert caller.mget(text, keys) == [None] * 10
        for server in redis_cluster.servers:
            server.kill()
            server.move(free_port())
        with pytest.raises(UnavailableError, match=str(start.port)):
            caller.mget(text, keys)
        redis_cluster.heal()
        start.target = redis_cluster.servers[0].port
        assert eventually(lambda: caller.mget(text, keys)) == [None] * 10
    finally:
        start.close()


def test_nobody_there_is_unavailable(caller):
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    text = f"{HOST}:{port},localhost:{port},password=s3cret"
    with pytest.raises(UnavailableError) as caught:
        caller.mget(text, [b"key"])
    assert f"Redis Cluster at {HOST}:{port}, localhost:{port} did not answer" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_one_server_is_not_a_cluster(guarded_redis, caller):
    text = f"{HOST}:{guarded_redis.port},password=pass=word,cluster=true"
    with pytest.raises(UnavailableError, match="Cluster mode is not enabled"):
        caller.mget(text, [b"key"])


def test_the_address_of_a_client(redis_cluster):
    shown = redis_cluster.connection_string.replace(",", ", ")
    assert shown_address(redis_cluster.client) == f"Redis Cluster at {shown}"


def test_servers_of_tests_go_with_their_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from redis_servers import Server\n"
        f"server = Server(Path({str(tmp_path / 'server')!r})); server.start()\n"
        "print(server.port, flush=True); time.sleep(60)"
    )
    tests = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tests) as run:
        port = int(run.stdout.readline())
        run.kill()

    def is_free():
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) != 0

    wait_until(is_free, "the server is gone")
