"""Redis servers that tests start for real: a cluster, one with users, and TLS in front of both.

Each server hangs on a pipe to this process, and goes with it, however it dies.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from redis_caller import Caller
from tallystick import server_process
from tallystick.errors import UnavailableError
from tallystick.online_store.embedded_redis import server_program
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.redis_options import RedisOptions
from tls_relay import HOST, Certificates, Relay, make_certificates

SLOTS = 16_384
MASTER = "features"
PASSWORD = "pass=word"
USER = "tally"
USER_PASSWORD = "another one"
POWERLESS_USER = "powerless"
LIMITED_USER = "limited"
LIMITS = "~ts3:* +@read +@write +@scripting -@dangerous +ping +command +cluster|slots"
"""What infra/README.md says a user needs."""
_START_S = 30.0
_BUS = 10_000
_FORMING_MS, _FORMED_MS = 1_000, 15_000
"""Nodes find together sooner when they hear of each other often. Later, they wait longer."""


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Try until it holds; a server that does not answer yet is not an error."""

    def holds_now() -> Any:
        with suppress(RedisError, OSError):
            return holds()
        return False

    assert server_process.wait_until(holds_now, timeout_s=_START_S), f"not in time: {what}"


def eventually(work: Callable[[], Any]) -> Any:
    """What work returns once it no longer fails: a client learns of a change by an error."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return work()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise


def free_port() -> int:
    """A port that is free, and so is the one that a cluster's nodes use among themselves."""
    while True:
        # Both are below those that clients are given, and no seed of the tests chooses them.
        port = 10_000 + secrets.randbelow(12_000)
        try:
            for one in (port, port + _BUS):
                with socket.socket() as probe:
                    probe.bind((HOST, one))
        except OSError:
            continue
        return port


class Server:
    """One Redis server on a port of this machine."""

    def __init__(self, folder: Path, options: Sequence[str] = (), password: str | None = None):
        self.folder = folder
        self.options = tuple(options)
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.move(free_port())

    def move(self, port: int) -> None:
        """Listen to another port from the next start on."""
        self.port = port
        self.admin: Any = Redis(HOST, port, password=self._password, socket_timeout=5)

    def start(self) -> None:
        """Start it, with what it had before, and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        own = [*self.options, "--port", self.port, "--bind", HOST, "--dir", self.folder]
        own += ["--save", "", "--logfile", self.folder / "log"]
        # The shell holds the pipe's other end; when it closes, so ends the server.
        self._process = subprocess.Popen(
            ["sh", "-c", '"$@" & cat; kill -9 $!', "sh", *map(str, [server_program(), *own])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self.admin.ping, f"Redis answers; see {self.folder / 'log'}")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    @contextmanager
    def running(self) -> Iterator[Server]:
        try:
            self.start()
            yield self
        finally:
            self.kill()
            self.admin.close()


@dataclass
class RedisCluster:
    """A running Redis Cluster of three primaries that holds nothing when a test begins."""

    servers: list[Server]
    relays: list[Relay] = field(default_factory=list)
    client: Any = None

    @property
    def connection_string(self) -> str:
        """As in feature_store.yaml; the other options may follow."""
        ports = [one.port for one in self.relays or self.servers]
        return ",".join(f"{HOST}:{port}" for port in ports)

    def server_of(self, key: bytes) -> Server:
        """The server that has a key's slot."""
        return self._owner(key_slot(key))

    def keys(self, count: int, start: int = 0) -> list[bytes]:
        """Keys; each third or so is on another server."""
        return [b"{%d}" % number for number in range(start, start + count)]

    def key_at(self, server: Server) -> bytes:
        """A key that a server has."""
        return next(key for key in self.keys(1_000) if self.server_of(key) is server)

    def form(self) -> None:
        """Make one cluster of servers that were just started."""
        for number, server in enumerate(self.servers):
            own = [slot for slot in range(SLOTS) if self._owner(slot) is server]
            server.admin.execute_command("CLUSTER ADDSLOTS", *own)
            server.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        self.wait()

    def wait(self) -> None:
        """Wait until all servers say that the cluster works and that they know each other."""
        for number, server in enumerate(self.servers):
            for other in self.servers[:number]:
                server.admin.execute_command("CLUSTER MEET", HOST, other.port)
        for server in self.servers:
            wait_until(lambda: self._is_well(server.admin), "the cluster works")  # noqa: B023
        for server in self.servers:
            server.admin.config_set("cluster-node-timeout", _FORMED_MS)

    def heal(self) -> None:
        """Start what a test ended, and wait until the cluster works."""
        for server in self.servers:
            if not server.is_running:
                server.start()
        self.wait()

    @contextmanager
    def another(self, folder: Path) -> Iterator[Server]:
        """One more node, which has no slots, and for which others do not wait."""
        with Server(folder, _node_options()).running() as new:
            everybody = [*self.servers, new]
            new.admin.execute_command("CLUSTER SET-CONFIG-EPOCH", len(everybody))
            for server in self.servers:
                new.admin.execute_command("CLUSTER MEET", HOST, server.port)
            for server in everybody:
                wait_until(
                    lambda: self._knows(server.admin, len(everybody)),  # noqa: B023
                    "all know the new node",
                )
            try:
                yield new
            finally:
                gone = new.admin.execute_command("CLUSTER MYID")
                for server in self.servers:
                    server.admin.execute_command("CLUSTER FORGET", gone)

    @staticmethod
    def _knows(admin: Any, count: int) -> bool:
        state = admin.cluster("info")
        known = (state["cluster_state"], int(state["cluster_known_nodes"]))
        return known == ("ok", count) and "handshake" not in str(admin.cluster("nodes"))

    def _owner(self, slot: int) -> Server:
        return self.servers[slot * len(self.servers) // SLOTS]

    def _is_well(self, admin: Any) -> bool:
        state = admin.cluster("info")
        ranges = admin.execute_command("CLUSTER SLOTS")
        covered = sum(last - first + 1 for first, last, *_ in ranges)
        owners = {primary[1] for _, _, primary, *_ in ranges}
        return (state["cluster_state"], covered, len(owners)) == ("ok", SLOTS, len(self.servers))


@dataclass
class SentinelRedis:
    """A running Redis with a replica and a Sentinel that watches both."""

    servers: list[Server]
    sentinel: Server

    @property
    def connection_string(self) -> str:
        """As in feature_store.yaml; the first Sentinel does not run."""
        return f"{HOST}:1,{HOST}:{self.sentinel.port}"

    @property
    def primary(self) -> Server:
        """The server that Sentinel names."""
        _, port = self.sentinel.admin.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(one for one in self.servers if one.port == int(port))

    @property
    def client(self) -> Any:
        return self.primary.admin

    def wait(self) -> None:
        """Wait until the replica follows the primary, and Sentinel knows both."""
        wait_until(
            lambda: (
                self.primary.admin.info("replication")["connected_slaves"] == 1
                and self.sentinel.admin.execute_command("SENTINEL REPLICAS", MASTER)
                and self.primary.admin.wait(1, 100) == 1
            ),
            "the replica follows",
        )


@contextmanager
def running_sentinel(folder: Path) -> Iterator[SentinelRedis]:
    """A Redis, its replica, and a Sentinel; Sentinel writes what it learns to its file."""
    with ExitStack() as stack:
        primary = stack.enter_context(Server(folder / "0").running())
        following = ["--replicaof", HOST, str(primary.port), "--repl-diskless-sync-delay", "0"]
        replica = stack.enter_context(Server(folder / "1", following).running())
        file = folder / "sentinel.conf"
        file.write_text(
            f"sentinel monitor {MASTER} {HOST} {primary.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\n"
            f"sentinel failover-timeout {MASTER} 5000\n"
        )
        sentinel = Server(folder / "sentinel", [str(file), "--sentinel"])
        redis = SentinelRedis([primary, replica], stack.enter_context(sentinel.running()))
        redis.wait()
        yield redis


@contextmanager
def running_cluster(folder: Path, context: ssl.SSLContext | None = None) -> Iterator[RedisCluster]:
    """A cluster; with a context, one that has TLS, a password and a user."""
    with ExitStack() as stack:
        cluster = RedisCluster([])
        for number in range(3):
            server = Server(folder / str(number), _node_options(), PASSWORD if context else None)
            if context is not None:
                relay = Relay(server.port, context)
                stack.callback(relay.close)
                cluster.relays.append(relay)
                announced = ["--cluster-announce-port", relay.port]
                announced += ["--cluster-announce-bus-port", server.port + _BUS]
                server.options += (*map(str, announced), *_GUARDED)
            cluster.servers.append(stack.enter_context(server.running()))
        cluster.form()
        yield cluster


def _node_options() -> list[str]:
    return ["--cluster-enabled", "yes", "--cluster-node-timeout", str(_FORMING_MS)]


_GUARDED = (
    *("--requirepass", PASSWORD),
    *("--user", USER, "on", f">{USER_PASSWORD}", "~*", "+@all"),
    *("--user", POWERLESS_USER, "on", f">{USER_PASSWORD}"),
    *("--user", LIMITED_USER, "on", f">{USER_PASSWORD}", *LIMITS.split()),
)


@pytest.fixture(params=["sync", "serving"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """The ways to reach Redis; a module that needs others has parameters of its own."""
    made = Caller(request.param)
    yield made
    made.close()


@pytest.fixture(scope="session")
def redis_folder() -> Iterator[Path]:
    """Where servers keep their files."""
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def redis_cluster_process(redis_folder: Path) -> Iterator[RedisCluster]:
    """One cluster for all tests of the session."""
    (redis_folder / "cluster").mkdir()
    with running_cluster(redis_folder / "cluster") as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(redis_cluster_process: RedisCluster) -> Iterator[RedisCluster]:
    """The session's cluster, whole and emptied, and a client of it."""
    redis_cluster_process.heal()
    for server in redis_cluster_process.servers:
        server.admin.flushall()
    redis_cluster_process.client = connect(
        RedisOptions(connection_string=redis_cluster_process.connection_string)
    )
    yield redis_cluster_process
    redis_cluster_process.client.close()


@pytest.fixture(scope="session")
def sentinel_redis_process(redis_folder: Path) -> Iterator[SentinelRedis]:
    """One Redis behind a Sentinel for all tests of the session."""
    (redis_folder / "sentinel").mkdir()
    with running_sentinel(redis_folder / "sentinel") as redis:
        yield redis


@pytest.fixture
def sentinel_redis(sentinel_redis_process: SentinelRedis) -> SentinelRedis:
    """The session's Redis behind a Sentinel, whole and emptied."""
    for server in sentinel_redis_process.servers:
        if not server.is_running:
            server.start()
    sentinel_redis_process.wait()
    sentinel_redis_process.client.flushall()
    return sentinel_redis_process


@pytest.fixture(scope="session")
def certificates(redis_folder: Path) -> Certificates:
    """Certificates made for this session."""
    folder = redis_folder / "certificates"
    folder.mkdir()
    return make_certificates(folder)


@pytest.fixture(scope="session")
def guarded_redis_process(redis_folder: Path) -> Iterator[Server]:
    """One Redis that asks for a password, and has users besides."""
    with Server(redis_folder / "guarded", _GUARDED, PASSWORD).running() as server:
        yield server


@pytest.fixture
def guarded_redis(guarded_redis_process: Server) -> Server:
    """The session's Redis with password and users, emptied."""
    guarded_redis_process.admin.flushall()
    return guarded_redis_process


@pytest.fixture
def tls_redis(guarded_redis: Server, certificates: Certificates) -> Iterator[Relay]:
    """The same, behind TLS."""
    relay = Relay(guarded_redis.port, certificates.context())
    yield relay
    relay.close()


@pytest.fixture
def mutual_tls_redis(guarded_redis: Server, certificates: Certificates) -> Iterator[Relay]:
    """The same, behind TLS that asks clients for a certificate."""
    relay = Relay(guarded_redis.port, certificates.context(asks_clients=True))
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def tls_cluster_process(redis_folder: Path, certificates: Certificates) -> Iterator[RedisCluster]:
    """A cluster whose nodes have TLS, a password and users."""
    (redis_folder / "tls_cluster").mkdir()
    with running_cluster(redis_folder / "tls_cluster", certificates.context()) as cluster:
        yield cluster


@pytest.fixture
def tls_cluster(tls_cluster_process: RedisCluster) -> RedisCluster:
    """The session's cluster with TLS, emptied."""
    for server in tls_cluster_process.servers:
        server.admin.flushall()
    return tls_cluster_process
