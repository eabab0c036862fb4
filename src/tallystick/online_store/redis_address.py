"""The address of a Redis and how to log in, as ``feature_store.yaml`` states them.

The form is that of Feast's own Redis store: ``host:port[,host2:port2…][,option=value…]``. Several
addresses, the option ``cluster=true`` or ``redis_type: redis_cluster`` mean a Redis Cluster, and
the addresses are its start nodes. With ``redis_type: redis_sentinel`` they are those of Sentinels,
which know where the Redis named ``sentinel_master`` is. ``unix:///path[,option=value…]`` is a
socket.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from tallystick.errors import InputError, Problem
from tallystick.online_store.redis_options import RedisOptions, RedisType

FORM: Final = "host:port[,host2:port2…][,option=value…], unix:///path[,option=value…], or embedded"
_SOCKET: Final = "unix://"
_PORT_MAX: Final = 65_535


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _database(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def _requirement(text: str) -> str:
    return {"required": "required", "optional": "optional", "none": "none"}[text.lower()]


_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "username": ("text", str),
    "password": ("text", str),
    "db": ("a number", _database),
    "cluster": ("true or false", _truth),
    "ssl": ("true or false", _truth),
    "ssl_ca_certs": ("a path", str),
    "ssl_certfile": ("a path", str),
    "ssl_keyfile": ("a path", str),
    "ssl_cert_reqs": ("required, optional or none", _requirement),
    "ssl_check_hostname": ("true or false", _truth),
    "sentinel_username": ("text", str),
    "sentinel_password": ("text", str),
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis and how to log in. Its text form is safe to show in an error.

    Attributes:
        redis_type: One server, a cluster, or a server that Sentinels watch.
        nodes: Host and port of the server, of the cluster's start nodes or of the Sentinels; empty
            for a socket.
        socket: Path of a socket, or empty.
        sentinel_master: Name by which Sentinels know the Redis.
        options: Further arguments of redis-py's client; may hold secrets.
        sentinel_options: Those of a client of a Sentinel.
    """

    redis_type: RedisType = "redis"
    nodes: tuple[tuple[str, int], ...] = ()
    socket: str = ""
    sentinel_master: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        hosts = [f"[{host}]" if ":" in host else host for host, _ in self.nodes]
        ports = [port for _, port in self.nodes]
        listed = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
        name = {
            "redis": "Redis",
            "redis_cluster": "Redis Cluster",
            "redis_sentinel": f"Redis {self.sentinel_master} of the Sentinels",
        }[self.redis_type]
        tls = " over TLS" if self.options.get("ssl") else ""
        return f"{name} at {', '.join(listed) or self.socket}{tls}"


def read_address(store: RedisOptions) -> RedisAddress:
    """Read the address that ``feature_store.yaml`` states.

    Raises:
        InputError: It cannot be used, or a file that it names cannot. All problems are listed, and
            nothing that may be secret is shown.
    """
    problems: list[Problem] = []
    redis_type: str = store.redis_type
    first, *others = store.connection_string.split(",")
    socket = first.removeprefix(_SOCKET) if first.startswith(_SOCKET) else ""
    # A part of a password behind a comma must not pass for an address, which errors show.
    after = next((index for index, text in enumerate(others) if "=" in text), len(others))
    nodes, found = _read_nodes([] if socket else [first, *others[:after]])
    problems += found
    options, found = _read_options(others if socket else others[after:])
    problems += found
    cluster_option = options.pop("cluster", None)
    if redis_type == "redis" and (len(nodes) > 1 or cluster_option):
        redis_type = "redis_cluster"
    if cluster_option is not None and cluster_option != (redis_type == "redis_cluster"):
        problems.append(Problem("cluster", f"none, as this is a {redis_type}", str(cluster_option)))
    problems += _contradictions(options, redis_type, is_socket=bool(socket))
    problems += _unusable_files(options)
    if problems:
        raise InputError(
            "The online store's connection_string cannot be used.", problems, hint=f"Form: {FORM}"
        )
    if options.get("ssl_cert_reqs") == "none":
        options["ssl_check_hostname"] = (
            False  # a host name in an unchecked certificate proves nothing
        )
    login = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    return RedisAddress(
        redis_type=cast("RedisType", redis_type),
        nodes=tuple(nodes),
        socket=socket,
        sentinel_master=store.sentinel_master,
        options=options,
        sentinel_options={**login, **tls},
    )


def _read_nodes(texts: Sequence[str]) -> tuple[list[tuple[str, int]], list[Problem]]:
    nodes, problems = [], []
    for text in texts:
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isdecimal() and 0 < int(port) <= _PORT_MAX:
            nodes.append((host, int(port)))
        else:
            problems.append(Problem("address", "host:port", "another text"))
    return nodes, problems


def _read_options(texts: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    options: dict[str, Any] = {}
    problems = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            form = "option=value, as addresses come first and no value has a comma"
            problems.append(Problem("option", form, "a text without ="))
        elif name not in _OPTIONS:
            problems.append(Problem("option", f"one of {', '.join(_OPTIONS)}", "another name"))
        elif name in options:
            problems.append(Problem(name, "one value", "several"))
        else:
            expected, read = _OPTIONS[name]
            try:
                options[name] = read(value)
            except (KeyError, ValueError):
                problems.append(Problem(name, expected, "another value"))
    return options, problems


def _contradictions(options: dict[str, Any], redis_type: str, *, is_socket: bool) -> list[Problem]:
    problems = []
    if is_socket and redis_type != "redis":
        problems.append(Problem("address", f"host:port, for {redis_type}", "a socket"))
    if redis_type == "redis_cluster" and "db" in options:
        problems.append(Problem("db", "no db, as a cluster has one database", "a number"))
    if redis_type != "redis_sentinel":
        problems += [
            Problem(name, "redis_type: redis_sentinel", redis_type)
            for name in options
            if name.startswith("sentinel_")
        ]
    needing = [name for name in options if name.startswith("ssl_")]
    if needing and not options.get("ssl"):
        problems.append(Problem("ssl", f"true, for {', '.join(needing)}", "no TLS"))
    if options.get("ssl") and is_socket:
        problems.append(Problem("ssl", "no TLS on a socket", "true"))
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        problems.append(Problem("ssl_certfile", "the certificate of ssl_keyfile", "none"))
    return problems


def _unusable_files(options: dict[str, Any]) -> list[Problem]:
    """Problems of the certificate files, reported before the first connection."""
    named = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    problems = []
    for name in (name for name in named if name in options):
        try:
            Path(options[name]).open("rb").close()
        except OSError as error:
            problems.append(
                Problem(name, "a file that can be read", f"{options[name]} ({error.strerror})")
            )
    if problems:
        return problems
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if authority := options.get("ssl_ca_certs"):
            context.load_verify_locations(authority)
    except ssl.SSLError:
        problems.append(
            Problem("ssl_ca_certs", "certificates in PEM form", f"{authority}, which has none")
        )
    try:
        if certificate := options.get("ssl_certfile"):
            # An empty password, so that OpenSSL does not ask for one at the terminal.
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), password="")
    except ssl.SSLError:
        key = options.get("ssl_keyfile", certificate)
        form = "a certificate and its key in PEM form, without a password"
        problems.append(Problem("ssl_certfile", form, f"{certificate} and {key}"))
    return problems
