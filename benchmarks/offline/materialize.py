"""Bringing entities online: Tallystick's way and Feast's, each into a Redis of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.offline.history import write_history
from benchmarks.processes import Cores, feast_online, start_redis, tally_online
from benchmarks.wide_views import FEAST_STORES, TALLYSTICK_STORES, write_repo
from redis import Redis

_DEFINITIONS: Final = """\
from datetime import timedelta

from benchmarks.wide_views import account, wide_view

view_0 = wide_view(0, "{path}", ttl=timedelta(days=100_000))
"""
_ONLINE: Final = {"tallystick": tally_online, "feast": feast_online}
_STORES: Final = {"tallystick": TALLYSTICK_STORES, "feast": FEAST_STORES}


def measure_materialize(folder: Path, engines: Mapping[str, int]) -> dict[str, Any]:
    """Rows a second of each, by its own command, start of the process included.

    Args:
        folder: Folder of all data.
        engines: Engine → how many entities it brings online.
    """
    found: dict[str, Any] = {}
    for name, entities in engines.items():
        rows = folder / f"materialize_{name}.parquet"
        write_history(rows, view=0, rows=2 * entities, keys=entities)
        with ExitStack() as stack:
            core = Cores.of_machine().client
            port = start_redis(stack, f"redis-{name}", folder, core=core)
            repo = write_repo(
                folder / f"repo_{name}",
                _DEFINITIONS.format(path=rows),
                stores=_STORES[name],
                address=f"127.0.0.1:{port}",
                project=f"bench_{name}",
            )
            seconds = _ONLINE[name](repo)
            with Redis(port=port) as client:
                written = int(client.dbsize())
        found[name] = round(written / seconds)
        print(f"materialize {name}: {written} entities in {seconds:.1f} s", flush=True)
    found["ratio_vs_feast"] = round(found["tallystick"] / found["feast"], 1)
    return found
