"""Redis servers that tests start for real: a cluster, one with users, and TLS in front of both.

The embedded server's program has no TLS, so a relay ends it: what a client sees is a real TLS
socket. Each server hangs on a pipe to this process, and goes with it, however it dies.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import random
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from tallystick.online_store.commands import (
    Item,
    mget,
    mget_async,
    run_script,
    run_script_async,
    scan,
    scan_async,
)
from tallystick.online_store.connection import connect, connect_for_reads, redis_errors
from tallystick.online_store.embedded import server_program

HOST = "127.0.0.1"
SLOTS = 16_384
PASSWORD = "pass=word"
USER = "tally"
USER_PASSWORD = "another one"
LIMITED_USER = "limited"
LIMITS = "~ts2:* +@read +@write +@scripting +ping +command +cluster|slots -@dangerous"
"""What infra/README.md says a user needs."""
_START_S = 30.0
_BUS = 10_000
_FORMING_MS, _FORMED_MS = 1_000, 15_000
"""Nodes that hear of each other often find together soon; later, a slow machine is no failure."""


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Ask again until it holds; a server that does not answer yet is no error."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            if holds():
                return
        except (RedisError, OSError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {_START_S} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """A port that is free, and so is the one that a cluster's nodes use among themselves."""
    while True:
        port = random.randrange(10_000, 22_000)  # both are below those that clients are given
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
        own = ["--port", self.port, "--bind", HOST, "--dir", self.folder, "--save", ""]
        own += ["--logfile", self.folder / "log", *self.options]
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


class Gate:
    """Holds all answers until each of some relays has had a request."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._awaited = set(relays)
        self.is_open = False

    def pass_request(self, relay: Relay) -> None:
        self._awaited.discard(relay)
        self.is_open = self.is_open or not self._awaited


class Relay:
    """Passes what it gets to a port and back; ends TLS if it has a context."""

    def __init__(self, target: int, context: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.gate: Gate | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # clients that break off are expected
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, HOST, 0, ssl=context))
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            answers, requests = await asyncio.open_connection(HOST, self.target)
            writers.append(requests)
            ways = [self._pass(reader, requests, is_answer=False)]
            ways.append(self._pass(answers, writer, is_answer=True))
            # One end closed is all closed.
            await asyncio.wait(map(asyncio.ensure_future, ways), return_when="FIRST_COMPLETED")
        except OSError:
            pass
        finally:
            for one in writers:
                one.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while data := await reader.read(65_536):
            gate = self.gate
            if gate is not None and not is_answer:
                gate.pass_request(self)
            # Each relay has a loop of its own, so that no event of asyncio can be shared.
            while gate is not None and is_answer and not gate.is_open:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            writer.write(data)
            await writer.drain()


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form. The server's is for this machine, the one named elsewhere is not."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def other_authority(self) -> Path:
        return self.folder / "other_authority.pem"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def context(self, name: str = "server", *, asks_clients: bool = False) -> ssl.SSLContext:
        """What a TLS server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate(name), self.key(name))
        if asks_clients:
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(folder: Path) -> Certificates:
    """An authority with certificates of servers and a client, and an authority of nobody."""
    made = Certificates(folder)
    authority_key = _write_key(folder / "authority.key")
    authority = _write_certificate(made.authority, authority_key, authority_key, "authority")
    _write_certificate(made.other_authority, *[_write_key(folder / "other.key")] * 2, "authority")
    for name in ("server", "elsewhere", "client"):
        key = _write_key(made.key(name))
        _write_certificate(made.certificate(name), key, authority_key, name, authority)
    return made


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return key


def _write_certificate(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    authority_key: ec.EllipticCurvePrivateKey,
    name: str,
    authority: x509.Certificate | None = None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
    places = here if name == "server" else [x509.DNSName(f"{name}.example")]
    usage = {"key_encipherment": False, "data_encipherment": False, "key_agreement": False}
    usage |= {"encipher_only": False, "decipher_only": False, "content_commitment": False}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
    )
    if authority is None:
        signs = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage)
        builder = builder.add_extension(signs, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
    certificate = builder.sign(authority_key, hashes.SHA256())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate


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
        """Keys of which each third or so is on another server."""
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
    *("--user", LIMITED_USER, "on", f">{USER_PASSWORD}", *LIMITS.split()),
)


class Caller:
    """Asks Redis in one of the ways that there are, with one client for all calls.

    Args:
        way: ``sync``; ``async``; or ``serving``, which reads with a client of its own.
    """

    def __init__(self, way: str) -> None:
        self._way = way
        self._runner = asyncio.Runner()
        self._clients: dict[tuple[str, float, bool], Any] = {}

    def call(
        self,
        text: str,
        work: Callable[[Any], Any],
        *,
        read_timeout_s: float = 5.0,
        writes: bool = True,
    ) -> Any:
        """What ``work`` gives for the client of a connection string, awaited if it has to be."""
        for_reads = self._way == "serving" and not writes
        known = (text, read_timeout_s, for_reads)
        if known not in self._clients:
            self._clients[known] = (
                connect_for_reads(text, read_timeout_s=read_timeout_s)
                if for_reads
                else connect(text, asynchronous=self._way != "sync", read_timeout_s=read_timeout_s)
            )
        client = self._clients[known]

        async def awaited() -> Any:
            with redis_errors(client):
                return await work(client)

        if self._way != "sync":
            return self._runner.run(awaited())
        with redis_errors(client):
            return work(client)

    def ping(self, text: str, **options: Any) -> None:
        self.call(text, lambda client: client.ping(), writes=False, **options)

    def mget(self, text: str, keys: Sequence[bytes], **options: Any) -> list[bytes | None]:
        function: Any = mget if self._way == "sync" else mget_async
        return self.call(text, lambda client: function(client, keys), writes=False, **options)

    def run_script(
        self, text: str, script: str, items: Sequence[Item], **options: Any
    ) -> list[Any]:
        function: Any = run_script if self._way == "sync" else run_script_async
        return self.call(text, lambda client: function(client, script, items, **options))

    def scan(self, text: str, pattern: bytes) -> list[bytes]:
        async def listed(client: Any) -> list[bytes]:
            return [key async for key in scan_async(client, pattern)]

        if self._way == "sync":
            return self.call(text, lambda client: list(scan(client, pattern)))
        return self.call(text, listed)

    def close(self) -> None:
        for client in self._clients.values():
            if self._way == "sync":
                client.close()
            else:
                self._runner.run(client.aclose())
        self._runner.run(self._parted())
        self._runner.close()

    @staticmethod
    async def _parted() -> None:
        """Wait until connections that were told to close have closed: TLS says goodbye first."""
        open_files = asyncio.get_running_loop()._selector.get_map()
        async with asyncio.timeout(_START_S):
            while len(open_files) > 1:  # noqa: ASYNC110 - the loop's own is always there
                await asyncio.sleep(0.005)


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """The ways to ask; a module that asks in others has parameters of its own."""
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
    redis_cluster_process.client = connect(redis_cluster_process.connection_string)
    yield redis_cluster_process
    redis_cluster_process.client.close()


@pytest.fixture(scope="session")
def certificates(redis_folder: Path) -> Certificates:
    """Certificates made for this session."""
    folder = redis_folder / "certificates"
    folder.mkdir()
    return make_certificates(folder)


@pytest.fixture(scope="session")
def guarded_redis(redis_folder: Path) -> Iterator[Server]:
    """A Redis that asks for a password, and has a user besides."""
    with Server(redis_folder / "guarded", _GUARDED, PASSWORD).running() as server:
        yield server


@pytest.fixture(scope="session")
def tls_redis(guarded_redis: Server, certificates: Certificates) -> Iterator[Relay]:
    """The Redis with password and user, behind TLS."""
    relay = Relay(guarded_redis.port, certificates.context())
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def mutual_tls_redis(guarded_redis: Server, certificates: Certificates) -> Iterator[Relay]:
    """The same behind TLS that asks clients for a certificate."""
    relay = Relay(guarded_redis.port, certificates.context(asks_clients=True))
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def tls_cluster(redis_folder: Path, certificates: Certificates) -> Iterator[RedisCluster]:
    """A cluster of which each node has TLS, a password and a user."""
    (redis_folder / "tls_cluster").mkdir()
    with running_cluster(redis_folder / "tls_cluster", certificates.context()) as cluster:
        yield cluster
