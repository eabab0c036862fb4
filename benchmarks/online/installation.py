"""Redis and the servers that are compared, with their data, ready for requests."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import command
from benchmarks.online.serving_repo import MODEL, bare_rows, write_repos
from benchmarks.processes import Cores, feast, feast_online, start, start_redis, tally_online
from redis import Redis

from tallystick.server_process import ServerProcess, free_port, http_answers, tally_command

FEASTS: Final = ("feast", "feast_precomputed")


@dataclass(frozen=True, slots=True)
class Installed:
    """What runs.

    Attributes:
        servers: ``feast``, ``feast_precomputed``, ``bare`` and ``tally``.
        ports: The port of each.
        tally_repo: Folder of the repo that ``tally`` serves.
        cores: The cores of the servers and of the client.
    """

    servers: Mapping[str, ServerProcess]
    ports: Mapping[str, int]
    tally_repo: Path
    cores: Cores


def install(stack: ExitStack, folder: Path, *, entities: int, cores: Cores) -> Installed:
    """Write the repos, bring their rows online, train the model, start the servers.

    Args:
        stack: Ends everything that was started.
        folder: Folder of all data and logs.
        entities: How many have rows.
        cores: The cores of the servers and of the client.

    Raises:
        FailedError: Something did not start or did not do its work.
    """
    # The compactor would share the server's core, which it does not where there is another one.
    os.environ["TALLYSTICK_LOG_COMPACT_S"] = "0"
    redis_port = start_redis(stack, "redis", folder, core=cores.client)
    repos = write_repos(folder, entities=entities, redis_port=redis_port)
    for name in FEASTS:
        feast_online(repos[name])
    champion(repos["tally"])
    with Redis(port=redis_port) as client:
        client.mset(bare_rows(folder))
    ports = {name: free_port() for name in (*repos, "bare")}
    bare = (str(ports["bare"]), str(redis_port))
    commands = {
        **{name: _feast_server(repos[name], ports[name]) for name in FEASTS},
        "bare": [sys.executable, "-m", "benchmarks.online.bare", *bare],
        "tally": tally_command(repos["tally"], "serve", "--port", str(ports["tally"])),
    }
    servers = {
        name: start(stack, name, words, folder=folder, core=cores.server)
        for name, words in commands.items()
    }
    for name, server in servers.items():
        page = "health" if name in FEASTS else "ready"
        server.wait_until(partial(http_answers, f"http://127.0.0.1:{ports[name]}/{page}"))
    return Installed(servers, ports, repos["tally"], cores)


def champion(repo: Path) -> None:
    """Bring a repo's rows online and train its model, by commands of Tallystick."""
    tally_online(repo)
    command(*tally_command(repo, "train", MODEL, "--promote"))


def _feast_server(repo: Path, port: int) -> list[str]:
    """Feast's Python server as quick as its options make it: uvloop and httptools it takes itself.

    One worker, no access log; it neither starts anew after so many requests nor reads its registry
    again, which by default it does within a request.
    """
    return feast(
        repo,
        "serve",
        *("--port", str(port), "--workers", "1", "--no-access-log", "--max-requests", "0"),
        *("--registry_ttl_sec", "0", "--keep-alive-timeout", "60"),
    )
