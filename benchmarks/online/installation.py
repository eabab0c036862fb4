"""Redis and the servers that are compared, with their data, ready to be asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.online.scene import MODEL, bare_rows, write_repos
from benchmarks.online.servers import (
    Server,
    free_port,
    http_answers,
    redis_answers,
    redis_command,
    run_together,
    running,
)
from redis import Redis

QUIET: Final = {"FEAST_USAGE": "False", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
FEASTS: Final = ("feast", "feast_precomputed")
BEGINNING: Final = "2020-01-01T00:00:00"


@dataclass(frozen=True, slots=True)
class Cores:
    """Where what runs: the server that is asked has a core of its own."""

    server: int
    client: int

    @classmethod
    def of_machine(cls) -> Cores:
        """The first two that this process may use."""
        first, second = sorted(os.sched_getaffinity(0))[:2]
        return cls(server=first, client=second)


@dataclass(frozen=True, slots=True)
class Installed:
    """What runs.

    Attributes:
        servers: ``feast``, ``feast_precomputed``, ``bare`` and ``tally``.
        ports: Where each listens.
        tally_repo: Folder of the repo that ``tally`` serves.
        cores: Where what runs.
    """

    servers: Mapping[str, Server]
    ports: Mapping[str, int]
    tally_repo: Path
    cores: Cores


def install(stack: ExitStack, folder: Path, *, entities: int, cores: Cores) -> Installed:
    """Write the repos, bring their rows online, train the model, start the servers.

    Args:
        stack: Ends everything that was started.
        folder: Where everything lies.
        entities: How many have rows.
        cores: Where what runs.

    Raises:
        FailedError: Something did not start or did not do its work.
    """
    # The compactor would share the server's core, which it does not where there is another one.
    os.environ.update(QUIET | {"TALLYSTICK_LOG_COMPACT_S": "0"})
    redis_port = start_redis(stack, "redis", folder, core=cores.client)
    repos = write_repos(folder, entities=entities, redis_port=redis_port)
    _fill(repos, logs=folder)
    client = Redis(host="127.0.0.1", port=redis_port)
    client.mset(bare_rows(folder))
    client.close()
    ports = {name: free_port() for name in (*repos, "bare")}
    commands = {
        **{name: _feast_server(repos[name], ports[name]) for name in FEASTS},
        "bare": [
            *(sys.executable, "-m", "benchmarks.online.bare"),
            *("--port", str(ports["bare"]), "--redis-port", str(redis_port)),
        ],
        "tally": _tally(repos["tally"], "serve", "--port", str(ports["tally"])),
    }
    servers = {
        name: stack.enter_context(
            running(Server(name, command, core=cores.server, log=folder / f"{name}-server.log"))
        )
        for name, command in commands.items()
    }
    for name, server in servers.items():
        page = "health" if name in FEASTS else "ready"
        server.wait_until(partial(http_answers, f"http://127.0.0.1:{ports[name]}/{page}"))
    return Installed(servers, ports, repos["tally"], cores)


def start_redis(stack: ExitStack, name: str, folder: Path, *, core: int) -> int:
    """A Redis that is ended with the stack; gives its port."""
    port = free_port()
    command = redis_command(port, folder)
    server = Server(name, command, core=core, log=folder / f"{name}-server.log")
    stack.enter_context(running(server))
    server.wait_until(partial(redis_answers, port))
    return port


def _fill(repos: Mapping[str, Path], *, logs: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    tally = repos["tally"]
    run_together(
        {
            **{f"{name} apply": _feast(repos[name], "apply") for name in FEASTS},
            "tally apply": _tally(tally, "apply"),
        },
        logs=logs,
    )
    run_together(
        {
            **{
                f"{name} materialize": _feast(repos[name], "materialize", BEGINNING, now)
                for name in FEASTS
            },
            "tally materialize": _tally(tally, "materialize"),
        },
        logs=logs,
    )
    run_together({"tally train": _tally(tally, "train", MODEL, "--promote")}, logs=logs)


def _feast_server(repo: Path, port: int) -> list[str]:
    """Feast's Python server as quick as its options make it: uvloop and httptools it takes itself.

    One worker, no access log; it neither starts anew after so many requests nor reads its registry
    again, which by default it does within a request.
    """
    return _feast(
        repo,
        "serve",
        *("--port", str(port), "--workers", "1", "--no-access-log", "--max-requests", "0"),
        *("--registry_ttl_sec", "0", "--keep-alive-timeout", "60"),
    )


def _feast(repo: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "feast.cli.cli", "-c", str(repo), *arguments]


def _tally(repo: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tallystick", "--repo", str(repo), *arguments]
