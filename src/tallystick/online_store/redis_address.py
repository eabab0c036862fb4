"""Where a Redis is and how to get in, as ``feature_store.yaml`` says it.

The form is that of Feast's own Redis store: ``host:port[,host2:port2…][,option=value…]``. Several
addresses, or the option ``cluster=true``, or ``redis_type: redis_cluster`` mean a Redis Cluster, of
which they are the nodes that are asked first. ``unix:///path[,option=value…]`` is a socket.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from tallystick.errors import InputError, Problem

RedisType: TypeAlias = Literal["redis", "redis_cluster"]
"""Feast's field ``redis_type``."""

FORM: Final = "host:port[,host2:port2…][,option=value…], unix:///path[,option=value…], or embedded"
JOURNAL_WITHOUT_TTL: Final = (
    "journal: true needs key_ttl_seconds unset: what Redis forgets by it, the journal cannot know"
)
_REDIS_TYPES: Final = ("redis", "redis_cluster")
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
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Redis is and how to get in. As text it is what an error may show.

    Attributes:
        addresses: Host and port; several for the start nodes of a cluster, none for a socket.
        socket: Path of a socket, or empty.
        is_cluster: Whether it is a Redis Cluster.
        options: What a client of redis-py has to be told besides. It may hold secrets.
    """

    addresses: tuple[tuple[str, int], ...] = ()
    socket: str = ""
    is_cluster: bool = False
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        hosts = [f"[{host}]" if ":" in host else host for host, _ in self.addresses]
        ports = [port for _, port in self.addresses]
        listed = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
        name = "Redis Cluster" if self.is_cluster else "Redis"
        way = " over TLS" if self.options.get("ssl") else ""
        return f"{name} at {', '.join(listed) or self.socket}{way}"


def read_place(connection_string: str, redis_type: str = "redis") -> Place:
    """Read what ``feature_store.yaml`` says.

    Args:
        connection_string: As the module says.
        redis_type: ``redis``, or ``redis_cluster`` for a cluster of which one node is named.

    Raises:
        InputError: It cannot be used, or a file that it names cannot; every reason is listed, and
            nothing that may be secret is shown.
    """
    problems: list[Problem] = []
    if redis_type not in _REDIS_TYPES:
        problems.append(Problem("redis_type", " or ".join(_REDIS_TYPES), repr(redis_type)))
    first, *others = connection_string.split(",")
    socket = first.removeprefix(_SOCKET) if first.startswith(_SOCKET) else ""
    # A part of a password behind a comma must not pass for an address, which errors show.
    after = next((place for place, text in enumerate(others) if "=" in text), len(others))
    addresses, found = _read_addresses([] if socket else [first, *others[:after]])
    problems += found
    options, found = _read_options(others if socket else others[after:])
    problems += found
    wants_cluster = options.pop("cluster", None)
    is_cluster = redis_type == "redis_cluster" or len(addresses) > 1
    if is_cluster and wants_cluster is False:
        problems.append(Problem("cluster", "true, as several nodes or their type say", "false"))
    is_cluster = is_cluster or bool(wants_cluster)
    problems += _contradictions(options, is_cluster=is_cluster, is_socket=bool(socket))
    problems += _unusable_files(options)
    if problems:
        raise InputError(
            "The online store's connection_string cannot be used.", problems, hint=f"Form: {FORM}"
        )
    if options.get("ssl_cert_reqs") == "none":
        options["ssl_check_hostname"] = False  # a certificate that is not checked names nobody
    return Place(tuple(addresses), socket, is_cluster, options)


def _read_addresses(texts: Sequence[str]) -> tuple[list[tuple[str, int]], list[Problem]]:
    addresses, problems = [], []
    for text in texts:
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isdecimal() and 0 < int(port) <= _PORT_MAX:
            addresses.append((host, int(port)))
        else:
            problems.append(Problem("address", "host:port", "another text"))
    return addresses, problems


def _read_options(texts: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    options: dict[str, Any] = {}
    problems = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            told = "option=value, as addresses come first and no value has a comma"
            problems.append(Problem("option", told, "a text without ="))
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


def _contradictions(options: dict[str, Any], *, is_cluster: bool, is_socket: bool) -> list[Problem]:
    problems = []
    if is_cluster and is_socket:
        problems.append(Problem("address", "host:port for a node of the cluster", "a socket"))
    if is_cluster and "db" in options:
        problems.append(Problem("db", "no db, as a cluster has one database", "a number"))
    needing = [name for name in options if name.startswith("ssl_")]
    if needing and not options.get("ssl"):
        problems.append(Problem("ssl", f"true, for {', '.join(needing)}", "no TLS"))
    if options.get("ssl") and is_socket:
        problems.append(Problem("ssl", "no TLS on a socket", "true"))
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        problems.append(Problem("ssl_certfile", "the certificate of ssl_keyfile", "none"))
    return problems


def _unusable_files(options: dict[str, Any]) -> list[Problem]:
    """What is wrong with the files of certificates; better told now than by each connection."""
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
        told = f"{authority}, which has none"
        problems.append(Problem("ssl_ca_certs", "certificates in PEM form", told))
    try:
        if certificate := options.get("ssl_certfile"):
            # An empty password, so that nobody is asked for one at the terminal.
            context.load_cert_chain(certificate, options.get("ssl_keyfile"), password="")
    except ssl.SSLError:
        key = options.get("ssl_keyfile", certificate)
        told = "a certificate and its key in PEM form, without a password"
        problems.append(Problem("ssl_certfile", told, f"{certificate} and {key}"))
    return problems
